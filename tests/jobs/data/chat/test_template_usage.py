"""A chat template uses every field of a conversation, or the row is refused, or the field is named."""

from typing import Any

import pytest

from edgetune_jobs.data.chat.messages import Message
from edgetune_jobs.data.chat.shared import differing_context, with_shared_context
from edgetune_jobs.data.examples import Example, RowParser
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow
from edgetune_jobs.data.tokenization import ExampleTokenizer, TokenizedExample, prompt_ids
from support.data_rows import dataset_spec
from support.tiny_tokenizer import CHAT_TEMPLATE, make_tokenizer

EOS = "<|im_end|>"
FORMAT = PromptFormat.of(dataset_spec(format="Chat"))
TOOL = {"type": "function", "function": {"name": "level", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "level", "arguments": {"tank": 7}}}
# Like Qwen3's: tools, tool calls, and reasoning of the last answer only.
ALL_FIELDS = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenize(
    template: str, *messages: dict[str, Any], **columns: object
) -> tuple[list[TokenizedExample | BadRow], ExampleTokenizer, Any]:
    parsed = RowParser(dataset_spec(format="Chat")).parse(RawRow(Place("a"), {"messages": list(messages), **columns}))
    assert isinstance(parsed, Example), parsed
    tokenizer = make_tokenizer(chat_template=template)
    tokenizing = ExampleTokenizer(tokenizer, FORMAT, 512)
    return tokenizing.tokenize([parsed], each_answer=True), tokenizing, tokenizer


def learned(template: str, *messages: dict[str, Any], **columns: object) -> list[str]:
    """The learned text of each tokenized example."""
    results, _, tokenizer = tokenize(template, *messages, **columns)
    return [
        tokenizer.decode([i for i, mask in zip(each.input_ids, each.completion_mask, strict=True) if mask])
        for each in results
        if isinstance(each, TokenizedExample)
    ]


def refusal(template: str, *messages: dict[str, Any], **columns: object) -> str:
    (bad,) = tokenize(template, *messages, **columns)[0]
    assert isinstance(bad, BadRow)
    return bad.reason


USER = {"role": "user", "content": "How full is tank 7?"}
ANSWER = {"role": "assistant", "content": "Nearly full."}


def test_a_template_gets_tools_tool_calls_and_reasoning() -> None:
    calling = {"role": "assistant", "reasoning_content": "Look it up.", "content": None, "tool_calls": [CALL]}
    observed = {"role": "tool", "content": "80 %", "tool_call_id": "a"}

    texts = learned(ALL_FIELDS, USER, calling, observed, ANSWER, tools=[TOOL])

    assert texts == [f'<think>Look it up.</think><call>level {{"tank": 7}}{EOS}', f"Nearly full.{EOS}"]
    results, tokenizing, tokenizer = tokenize(ALL_FIELDS, USER, calling, observed, ANSWER, tools=[TOOL])
    assert isinstance(results[-1], TokenizedExample)
    assert tokenizer.decode(results[-1].prompt_ids).startswith('TOOLS [{"type": "function"')
    assert tokenizing.unused_fields == {"tool_call_id": 1}


def test_messages_with_unused_fields_are_counted_once_however_many_examples_they_are_in() -> None:
    thinking = ANSWER | {"reasoning_content": "Look it up."}
    named = USER | {"name": "operator"}

    results, tokenizing, _ = tokenize(ALL_FIELDS, named, thinking, named, thinking, named, thinking)

    assert len(results) == 3, "earlier reasoning is dropped, so each answer is an example"
    assert tokenizing.unused_fields == {"name": 3}


def test_the_reference_of_a_tool_call_is_its_text() -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    (result,) = tokenize(ALL_FIELDS, USER, calling)[0]

    assert isinstance(result, TokenizedExample)
    assert result.reference == '<call>level {"tank": 7}'


@pytest.mark.parametrize(
    "written", ["{{ call.function.arguments }}", "{{ '' + call.function.arguments }}"], ids=["as it is", "added"]
)
def test_arguments_are_json_in_templates_that_write_them_as_they_are(written: str) -> None:
    template = ALL_FIELDS.replace("{{ call.function.arguments | tojson }}", written)

    assert learned(template, USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}) == [
        f'<call>level {{"tank": 7}}{EOS}'
    ]


def test_answers_of_weight_0_are_not_learned() -> None:
    wrong = {"role": "assistant", "content": "Empty.", "weight": 0}

    assert learned(CHAT_TEMPLATE, USER, wrong, {"role": "user", "content": "Sure?"}, ANSWER) == [f"Nearly full.{EOS}"]


@pytest.mark.parametrize(
    ("messages", "columns", "expected"),
    [
        ([USER, ANSWER], {"tools": [TOOL]}, "does not use tools"),
        ([USER, {**ANSWER, "tool_calls": [CALL]}], {}, "does not use tool_calls of message 1 (assistant)"),
        ([USER, {**ANSWER, "reasoning_content": "a"}], {}, "does not use reasoning_content of message 1 (assistant)"),
        ([USER, {**ANSWER, "thinking": "a"}], {}, "does not use thinking of message 1 (assistant)"),
        ([USER, {**ANSWER, "refusal": "I cannot."}], {}, "does not use refusal of message 1 (assistant)"),
    ],
)
def test_a_row_with_a_field_that_the_template_drops_is_refused(
    messages: list[dict[str, Any]], columns: dict[str, object], expected: str
) -> None:
    assert refusal(CHAT_TEMPLATE, *messages, **columns).startswith(f"the base model's chat template {expected}; use a")


@pytest.mark.parametrize("role", ["developer", "tool", "system"])
def test_a_row_with_a_role_that_the_template_drops_is_refused(role: str) -> None:
    template = CHAT_TEMPLATE.replace("<|im_start|>", "{% if message.role in ('user', 'assistant') %}<|im_start|>", 1)
    template = template.replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
    messages = [{"role": role, "content": "be brief"}, USER, ANSWER]

    assert refusal(template, *messages).startswith(
        f"the base model's chat template does not use messages of role {role}"
    )
    assert learned(CHAT_TEMPLATE, *messages) == [f"Nearly full.{EOS}"]


def test_content_beside_tool_calls_that_the_template_drops_is_refused() -> None:
    template = ALL_FIELDS.replace("{{ m.content }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}")

    assert "does not use the content of message 1 (assistant beside tool_calls)" in refusal(
        template, USER, {**ANSWER, "tool_calls": [CALL]}
    )


def _example(system: str = "", tools: tuple[dict[str, Any], ...] = ()) -> Example:
    prompt = (*([Message("system", system)] if system else ()), Message("user", "a"))
    return Example(Place("a"), prompt, "b", tools=tools)


def test_a_typed_prompt_begins_with_the_system_message_and_tools_that_all_rows_share() -> None:
    tokenizer = make_tokenizer(chat_template=ALL_FIELDS)
    examples = [_example("You know tanks.", (TOOL,))] * 2
    shared = with_shared_context(FORMAT, examples)

    (seen,) = ExampleTokenizer(tokenizer, FORMAT, 512).tokenize(examples[:1])

    assert isinstance(seen, TokenizedExample)
    assert prompt_ids(shared, tokenizer, "a") == seen.prompt_ids
    assert differing_context(shared, examples) == []


def test_system_messages_and_tools_that_differ_are_named() -> None:
    examples = [_example("You know tanks.", (TOOL,)), _example()]
    shared = with_shared_context(FORMAT, examples)

    assert shared == FORMAT
    assert differing_context(shared, examples)[0].startswith(
        "the system messages and tools of the training rows differ, so edgetune generate uses none"
    )
    assert differing_context(FORMAT, [_example()]) == []
