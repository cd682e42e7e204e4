"""Prompts have the same tokens in training, evaluation and inference; response and EOS are learned."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune_jobs.data.chat.messages import Message
from edgetune_jobs.data.chat.renderers import renderer_for
from edgetune_jobs.data.examples import Example
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.readers.rows import BadRow, Place, Unit
from edgetune_jobs.data.tokenization import ExampleTokenizer, TokenizedExample, prompt_ids, runtime_adds_bos
from edgetune_jobs.errors import InvalidInput
from support.data_rows import dataset_spec
from support.tiny_tokenizer import CHAT_TEMPLATE, make_tokenizer
from support.tokenizers import BYTE_LEVEL, byte_level, sentence_piece

PLACE = Place("rows.jsonl", Unit.LINE, 3)
EOS = "<|im_end|>"


def instruction(question: str, answer: str) -> Example:
    return Example(PLACE, (Message("user", question),), answer)


def tokenize(example: Example, tokenizer: Any, max_length: int = 512, **options: Any) -> TokenizedExample | BadRow:
    tokenizing = ExampleTokenizer(tokenizer, PromptFormat.of(dataset_spec(**options)), max_length)
    return tokenizing.tokenize([example])[0]


def encoded(example: Example, tokenizer: Any, max_length: int = 512, **options: Any) -> TokenizedExample:
    result = tokenize(example, tokenizer, max_length, **options)
    assert isinstance(result, TokenizedExample), result
    assert len(result.input_ids) == len(result.completion_mask) <= max_length
    return result


def learned(result: TokenizedExample, tokenizer: Any) -> str:
    """The text of the tokens that are learned."""
    pairs = zip(result.input_ids, result.completion_mask, strict=True)
    return str(tokenizer.decode([token for token, mask in pairs if mask]))


def test_only_the_response_and_one_eos_are_learned() -> None:
    tokenizer = make_tokenizer()
    result = encoded(instruction("What is wrong?", "Fault: bearing wear."), tokenizer)
    assert result.prompt == "### Instruction:\nWhat is wrong?\n\n### Response:\n"
    assert tokenizer.decode(result.input_ids) == f"{result.prompt}Fault: bearing wear.{EOS}"
    assert learned(result, tokenizer) == f"Fault: bearing wear.{EOS}"
    assert not result.is_truncated


@pytest.mark.parametrize("response", [f"a{EOS}", f"a{EOS}\n", f"a{EOS} "])
def test_eos_is_not_added_twice(response: str) -> None:
    tokenizer = make_tokenizer()
    assert learned(encoded(instruction("x", response), tokenizer), tokenizer) == f"a{EOS}"


def test_eos_in_the_middle_of_a_response_does_not_end_it() -> None:
    tokenizer = make_tokenizer()
    assert learned(encoded(instruction("x", f"a{EOS}b"), tokenizer), tokenizer) == f"a{EOS}b{EOS}"


@pytest.mark.parametrize("adds_eos", [False, True])
def test_bos_is_first_if_and_only_if_the_tokenizer_adds_it(adds_eos: bool) -> None:
    plain, with_bos = make_tokenizer(adds_eos=adds_eos), make_tokenizer(adds_bos=True, adds_eos=adds_eos)
    example = instruction("x", "y")
    without = encoded(example, plain)
    result = encoded(example, with_bos)
    assert result.prompt_ids == [with_bos.bos_token_id, *without.prompt_ids]
    assert result.completion_ids == without.completion_ids
    assert result.completion_ids.count(plain.eos_token_id) == 1
    assert result.completion_mask[0] == 0


def test_bos_of_a_chat_template_is_not_added_twice() -> None:
    tokenizer = make_tokenizer(adds_bos=True, chat_template="{{ bos_token }}" + CHAT_TEMPLATE)
    result = encoded(instruction("x", "y"), tokenizer, template="ChatTemplate")
    assert result.input_ids.count(tokenizer.bos_token_id) == 1


WITH_BOS = "<s>### Instruction:\n{instruction}\n\n### Response:\n"


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize(
    ("example", "options"),
    [
        (instruction("x", "y"), {"template": WITH_BOS}),
        (instruction("x", "y"), {"template": f"<s>{WITH_BOS}"}),
        (instruction("<s>x", "y"), {"template": "{instruction}\n"}),
        (Example(PLACE, (), "<s>a text"), {"format": "Text"}),
        (instruction("x", "y"), {"template": "ChatTemplate"}),
    ],
)
def test_bos_from_text_and_tokenizer_is_there_once(adds_bos: bool, example: Example, options: dict[str, Any]) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos, chat_template="<s>{{ bos_token }}" + CHAT_TEMPLATE)

    result = encoded(example, tokenizer, **options)

    assert result.input_ids[0] == tokenizer.bos_token_id
    assert result.input_ids.count(tokenizer.bos_token_id) == 1
    comes_twice = adds_bos or options.get("template") in (f"<s>{WITH_BOS}", "ChatTemplate")
    assert result.had_repeated_start is comes_twice
    if example.prompt and not example.prompt[0].content.startswith("<s>"):
        prompt_format = PromptFormat.of(dataset_spec(**options))
        assert prompt_ids(prompt_format, tokenizer, "x") == result.prompt_ids


def test_bos_from_one_place_is_not_reported() -> None:
    assert not encoded(instruction("x", "y"), make_tokenizer(adds_bos=True)).had_repeated_start


def test_several_eos_at_the_end_of_a_response_are_one() -> None:
    tokenizer = make_tokenizer()
    assert learned(encoded(instruction("x", f"a{EOS}{EOS}"), tokenizer), tokenizer) == f"a{EOS}"


@pytest.mark.parametrize(
    ("chat_template", "options", "adds"),
    [
        (None, {}, True),
        (None, {"template": WITH_BOS}, False),
        (CHAT_TEMPLATE, {"template": "ChatTemplate"}, False),
        ("{{ bos_token }}" + CHAT_TEMPLATE, {"template": "ChatTemplate"}, True),
        (None, {"format": "Text"}, True),
    ],
)
def test_a_runtime_adds_bos_only_where_training_had_it_from_the_tokenizer(
    chat_template: str | None, options: dict[str, str], adds: bool
) -> None:
    tokenizer = make_tokenizer(adds_bos=True, chat_template=chat_template)

    assert runtime_adds_bos(PromptFormat.of(dataset_spec(**options)), tokenizer) is adds


def test_a_chat_template_wraps_instruction_rows() -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    result = encoded(instruction("x", "y"), tokenizer, template="ChatTemplate")
    assert result.prompt == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert learned(result, tokenizer) == f"y{EOS}"


def test_all_assistant_messages_are_learned_and_the_last_is_the_completion() -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    turns = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    result = encoded(Example(PLACE, turns, "d"), tokenizer, format="Chat")
    assert learned(result, tokenizer) == f"b{EOS}\nd{EOS}"
    assert tokenizer.decode(result.completion_ids) == f"d{EOS}"
    assert tokenizer.decode(result.prompt_ids) == result.prompt
    assert result.prompt.endswith("<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")


DROPS_EARLIER_ANSWERS = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'assistant' and not loop.last %}…{% else %}{{ message['content'] }}{% endif %}",
)
EOS_AT_THE_END_ONLY = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% else %}{{ eos_token }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (CHAT_TEMPLATE, f"<|im_start|>user\na{EOS}\n<|im_start|>assistant\n"),
        (DROPS_EARLIER_ANSWERS, f"<|im_start|>user\na{EOS}\n<|im_start|>assistant\n"),
        (EOS_AT_THE_END_ONLY, "[user]a[assistant]"),
    ],
    ids=["same text for earlier answers", "drops earlier answers", "EOS at the end only"],
)
def test_every_answer_is_learned_after_the_prompt_that_inference_sees(template: str, prompt: str) -> None:
    tokenizer = make_tokenizer(chat_template=template)
    tokenizing = ExampleTokenizer(tokenizer, PromptFormat.of(dataset_spec(format="Chat")), 512)
    turns = (Message("user", "a"), Message("assistant", "first"), Message("user", "c"))
    example = Example(PLACE, turns, "second")

    results = [each for each in tokenizing.tokenize([example], each_answer=True) if isinstance(each, TokenizedExample)]

    answers = "".join(learned(result, tokenizer) for result in results).replace("\n", "")
    assert answers == f"first{EOS}second{EOS}"
    assert tokenizer.decode(results[0].input_ids).startswith(f"{prompt}first{EOS}")
    (asked,) = tokenizing.tokenize([example])
    assert isinstance(asked, TokenizedExample)
    assert tokenizer.decode(asked.completion_ids) == f"second{EOS}"


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, DROPS_EARLIER_ANSWERS, EOS_AT_THE_END_ONLY])
def test_of_a_conversation_that_is_too_long_the_answers_that_fit_are_learned(template: str) -> None:
    tokenizer = make_tokenizer(chat_template=template)
    tokenizing = ExampleTokenizer(tokenizer, PromptFormat.of(dataset_spec(format="Chat")), 64)
    turns = (Message("user", "a"), Message("assistant", "first"), Message("user", "long " * 100))
    example = Example(PLACE, turns, "second")

    (result,) = tokenizing.tokenize([example], each_answer=True)

    assert isinstance(result, TokenizedExample)
    assert learned(result, tokenizer) == f"first{EOS}"
    assert result.is_truncated
    assert result.full_length > 64
    (asked,) = tokenizing.tokenize([example])
    assert isinstance(asked, TokenizedExample)
    assert asked.reference == "first"
    (with_keywords,) = tokenizing.tokenize([replace(example, keywords=("second",))])
    assert isinstance(with_keywords, BadRow)
    assert "leaves no tokens for the response" in with_keywords.reason


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages | length }}", "renders the prompt differently when the response follows"),
        ("{{ raise_exception('no such role') }}", "the base model's chat template rejects it: no such role"),
        ("{{ messages[0].content + 1 }}", "the base model's chat template fails on it: "),
        ("{{ 1 / 0 }}", "the base model's chat template fails on it: division by zero"),
        ("{{ messages.nothing.more }}", "the base model's chat template rejects it: "),
        ("{% for", "the base model's chat template rejects it: "),
        ("{{ '' }}", "renders the prompt differently when the response follows"),
    ],
)
def test_a_row_that_the_chat_template_cannot_render_is_an_error(template: str, reason: str) -> None:
    tokenizer = make_tokenizer(chat_template=template)
    result = tokenize(instruction("x", "y"), tokenizer, template="ChatTemplate")
    assert isinstance(result, BadRow)
    assert result.place == PLACE
    assert reason in result.reason


@pytest.mark.parametrize("options", [{"template": "ChatTemplate"}, {"format": "Chat"}])
def test_the_error_about_a_missing_chat_template_names_the_field(options: dict[str, str]) -> None:
    field, value = next(iter(options.items()))
    with pytest.raises(InvalidInput, match=f"spec.dataset.{field}: {value} needs a chat template") as caught:
        renderer_for(PromptFormat.of(dataset_spec(**options)), make_tokenizer())
    assert "use an instruction-tuned base model" in str(caught.value)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_whole_text_is_learned_in_the_format_text(adds_bos: bool) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    result = encoded(Example(PLACE, (), "all of it"), tokenizer, format="Text")
    assert (result.prompt, result.prompt_ids) == ("", [])
    assert set(result.completion_mask) == {1}
    assert tokenizer.decode(result.completion_ids) == "<s>" * adds_bos + f"all of it{EOS}"


def test_braces_in_instruction_and_template_are_kept() -> None:
    tokenizer = make_tokenizer()
    template = '{"a": 1} {instruction} { b } }{ {} {c: d}'
    result = encoded(instruction("{response} {0} {instruction}", "y"), tokenizer, template=template)
    assert result.prompt == '{"a": 1} {response} {0} {instruction} { b } }{ {} {c: d}'


def test_the_space_at_the_end_of_a_template_belongs_to_the_prompt() -> None:
    """If the text were tokenized as a whole, the space would become part of the response's first token."""
    tokenizer = make_tokenizer()
    template = "Q: {instruction} A: "
    result = encoded(instruction("x", "bearing"), tokenizer, template=template)
    assert result.prompt_ids == tokenizer("Q: x A: ")["input_ids"]
    assert result.prompt_ids + result.completion_ids[:-1] != tokenizer("Q: x A: bearing")["input_ids"]


def test_an_example_is_truncated_to_the_maximum_length_without_eos() -> None:
    tokenizer = make_tokenizer()
    whole = encoded(instruction("x", "bearing wear " * 20), tokenizer)
    cut = encoded(instruction("x", "bearing wear " * 20), tokenizer, max_length=len(whole.prompt_ids) + 3)
    assert cut.is_truncated
    assert cut.full_length == len(whole.input_ids)
    assert cut.completion_ids == whole.completion_ids[:3]


def test_a_prompt_that_leaves_no_room_is_an_error_that_names_the_limit() -> None:
    tokenizer = make_tokenizer()
    length = len(encoded(instruction("x", "y"), tokenizer).prompt_ids)
    assert len(encoded(instruction("x", "y"), tokenizer, max_length=length + 1).completion_ids) == 1
    result = tokenize(instruction("x", "y"), tokenizer, max_length=length)
    assert isinstance(result, BadRow)
    assert (result.place, result.reason) == (
        PLACE,
        f"the prompt has {length} tokens and spec.training.maxLength is {length}, which leaves no tokens for the "
        "response; raise maxLength or shorten the prompt",
    )


def _prompt_ids(tokenizer: Any, question: str, **options: Any) -> Sequence[int]:
    return prompt_ids(PromptFormat.of(dataset_spec(**options)), tokenizer, question)


@settings(deadline=None, max_examples=60)
@given(question=st.text(min_size=1, max_size=30), answer=st.text(min_size=1, max_size=30), adds_bos=st.booleans())
@pytest.mark.parametrize(
    "template", ["### Instruction:\n{instruction}\n\n### Response:\n", "{instruction} ", "ChatTemplate"]
)
def test_the_prompt_has_the_same_tokens_as_a_typed_prompt(
    template: str, question: str, answer: str, adds_bos: bool
) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos, chat_template=CHAT_TEMPLATE)
    result = encoded(instruction(question, answer), tokenizer, template=template)
    assert result.prompt_ids == _prompt_ids(tokenizer, question, template=template)
    assert result.completion_ids[-1] == tokenizer.eos_token_id


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "plain": partial(make_tokenizer),
    "BOS": partial(make_tokenizer, adds_bos=True),
    "EOS": partial(make_tokenizer, adds_eos=True),
    "BOS and EOS": partial(make_tokenizer, adds_bos=True, adds_eos=True),
    **{f"SentencePiece {prefix}": partial(sentence_piece, prefix) for prefix in ("legacy", "first", "never")},
    **{kind: partial(byte_level, kind) for kind in BYTE_LEVEL},
}


@pytest.mark.parametrize("question", ["Why does pump 7 hum?", " two  spaces\n", "Grüße, 日本語"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_typed_prompt_has_the_ids_that_the_library_gives_without_a_trailing_eos(name: str, question: str) -> None:
    tokenizer = TOKENIZERS[name]()
    tokenizer.chat_template = CHAT_TEMPLATE
    eos, turns = tokenizer.eos_token_id, [{"role": "user", "content": question}]
    wrapped = {"Text": question, "Instruction": f"Q: {question}\nA: "}

    for row_format, text in wrapped.items():
        ids = tokenizer(text)["input_ids"]
        expected = ids[:-1] if ids[-1] == eos else ids
        assert _prompt_ids(tokenizer, question, format=row_format, template="Q: {instruction}\nA: ") == expected
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert _prompt_ids(tokenizer, question, format="Chat") == expected
    assert _prompt_ids(tokenizer, question, template="ChatTemplate") == expected


def test_a_typed_prompt_that_ends_in_the_text_of_eos_keeps_it() -> None:
    tokenizer = make_tokenizer()

    assert _prompt_ids(tokenizer, f"what does {EOS}", template="{instruction}")[-1] == tokenizer.eos_token_id


def test_a_typed_prompt_that_the_chat_template_rejects_is_refused_with_the_reason() -> None:
    tokenizer = make_tokenizer(chat_template="{{ raise_exception('no such role') }}")

    with pytest.raises(
        InvalidInput, match="cannot render the prompt: the base model's chat template rejects it: no such"
    ):
        _prompt_ids(tokenizer, "x", format="Chat")


def test_a_batch_gives_the_same_tokens_as_single_rows() -> None:
    tokenizer = make_tokenizer()
    examples = [instruction(f"question {number}", "answer " * number) for number in range(1, 20)]
    tokenizing = ExampleTokenizer(tokenizer, PromptFormat.of(dataset_spec()), 64)
    assert tokenizing.tokenize(examples) == [tokenizing.tokenize([example])[0] for example in examples]
    assert tokenizing.tokenize([]) == []
