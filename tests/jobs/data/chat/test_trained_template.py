"""A message of the user has the tokens of the prompt that training used, by the chat template of the tuned model."""

from typing import Any

import pytest

from edgetune_contract.spec import DatasetSpec
from edgetune_jobs.data.chat.trained_template import COLUMNS, trained_template
from edgetune_jobs.data.examples import RowParser
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow
from edgetune_jobs.data.tokenization import ExampleTokenizer
from support.tiny_tokenizer import CHAT_TEMPLATE, make_tokenizer
from support.tokenizers import BYTE_LEVEL, TEXTS, byte_level, sentence_piece

DEFAULT = DatasetSpec.model_validate({"train": {"uri": "s3://data/k"}}).template
# Templates whose text could end or begin something in Jinja.
HOSTILE = (
    "{instruction}",
    "Q: {instruction}\nA:",
    "<s>{instruction}</s>",
    "{{instruction}} {{ 1 + 1 }} {% raw %} {# no comment #} -%} }}",
    "it's \"quoted\" \\n \\' C:\\new\n\ttab {instruction}   \n",
    '{"a": "{instruction}", "b": {}}',
    "  Grüße 日本 🙂 {instruction} {instruction} ",
)
PROMPTS = tuple(text for text in TEXTS if text.strip())


def dataset(**options: Any) -> DatasetSpec:
    return DatasetSpec.model_validate({"train": {"uri": "s3://data/k"}, **options})


def prompt_of_training(spec: DatasetSpec, tokenizer: Any, row: dict[str, str]) -> list[int]:
    """Token ids of a row's prompt, as prepare writes them."""
    example = RowParser(spec).parse(RawRow(Place("train.jsonl", number=1), {**row, "response": "yes"}))
    assert not isinstance(example, BadRow), example
    (made,) = ExampleTokenizer(tokenizer, PromptFormat.of(spec), 4096).tokenize([example])
    assert not isinstance(made, BadRow), made
    return made.prompt_ids


def prompt_of_chat(template: str, tokenizer: Any, text: str, **variables: Any) -> list[int]:
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        chat_template=template,
        add_generation_prompt=True,
        return_dict=True,
        **variables,
    )
    return list(rendered["input_ids"])


def template_of(spec: DatasetSpec, tokenizer: Any) -> str:
    made = trained_template(PromptFormat.of(spec), tokenizer)
    assert made is not None
    assert made.warnings == ()
    return made.text


def tokenizer_of(kind: str) -> Any:
    if kind == "tiny":
        return make_tokenizer(adds_bos=True, adds_eos=True, chat_template=CHAT_TEMPLATE)
    return byte_level(kind) if kind in BYTE_LEVEL else sentence_piece(kind)


@pytest.mark.parametrize("kind", ["tiny", *BYTE_LEVEL, "legacy", "first", "never", "gemma"])
def test_a_message_has_the_tokens_of_the_prompt_of_training(kind: str) -> None:
    tokenizer, spec = tokenizer_of(kind), dataset()
    template = template_of(spec, tokenizer)

    for text in PROMPTS:
        expected = prompt_of_training(spec, tokenizer, {"instruction": text})
        assert prompt_of_chat(template, tokenizer, text) == expected, text


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("kind", ["tiny", "legacy"])
def test_no_text_of_a_template_is_code(kind: str, text: str) -> None:
    tokenizer, spec = tokenizer_of(kind), dataset(template=text)
    template = template_of(spec, tokenizer)

    for prompt in ("Name the fault.", "{{ 1 + 1 }} {% x"):
        expected = prompt_of_training(spec, tokenizer, {"instruction": prompt})
        assert prompt_of_chat(template, tokenizer, prompt) == expected


def test_other_columns_are_a_variable_of_the_template_and_empty_without_it() -> None:
    tokenizer = make_tokenizer()
    spec = dataset(template="{instruction}\nSite: {site name}\n> ")
    template = template_of(spec, tokenizer)

    given = prompt_of_chat(template, tokenizer, "State?", **{COLUMNS: {"site name": "hall 2"}})
    assert given == prompt_of_training(spec, tokenizer, {"instruction": "State?", "site name": "hall 2"})
    assert prompt_of_chat(template, tokenizer, "State?") == list(tokenizer("State?\nSite: \n> ")["input_ids"])


def test_a_conversation_is_prompts_and_answers_in_turn() -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]

    text = tokenizer.apply_chat_template(
        talk, chat_template=template_of(dataset(template="Q:{instruction} A:"), tokenizer), tokenize=False
    )

    assert text == "<s>Be brief.\n\nQ:a A:b<|im_end|>Q:c A:"


def test_a_role_that_training_had_not_is_refused_by_name() -> None:
    from jinja2 import TemplateError

    tokenizer = make_tokenizer()
    with pytest.raises(TemplateError, match="without messages of role tool"):
        tokenizer.apply_chat_template(
            [{"role": "tool", "content": "9"}], chat_template=template_of(dataset(), tokenizer), tokenize=False
        )


@pytest.mark.parametrize(
    "options", [{"format": "Text"}, {"format": "Chat"}, {"template": "ChatTemplate"}], ids=["text", "chat", "own"]
)
def test_the_chat_template_of_the_base_stays_where_training_used_it_or_none(options: dict[str, str]) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)

    assert trained_template(PromptFormat.of(dataset(**options)), tokenizer) is None


def test_a_shared_system_message_is_the_default_of_the_chat_template() -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    shared = PromptFormat.of(dataset(format="Chat")).model_copy(update={"system": "It's {{ 1 + 1 }}.\n"})
    made = trained_template(shared, tokenizer)
    assert made is not None
    assert made.warnings == ()
    asked = {"role": "user", "content": "State?"}

    def rendered(*messages: dict[str, str], template: str | None = None) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )

    assert rendered(asked, template=made.text) == rendered({"role": "system", "content": shared.system}, asked)
    other = {"role": "system", "content": "Be brief."}
    assert rendered(other, asked, template=made.text) == rendered(other, asked)
    tokenizer.chat_template = made.text
    assert trained_template(shared, tokenizer) is None


def test_a_template_that_takes_no_system_message_stays_with_a_warning() -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE
    tokenizer = make_tokenizer(chat_template=refusing)
    shared = PromptFormat.of(dataset(format="Chat")).model_copy(update={"system": "Be brief."})

    made = trained_template(shared, tokenizer)

    assert made is not None
    assert made.text == refusing
    assert made.warnings == (
        "the chat template cannot begin with the system message of the training data by itself: send it with each "
        "conversation",
    )
