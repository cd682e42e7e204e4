"""A typed prompt has the same tokens as in training and evaluation."""

from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.spec import DatasetSpec
from edgetune_jobs.data.chat.messages import Message
from edgetune_jobs.data.examples import Example
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.readers.rows import Place
from edgetune_jobs.data.tokenization import ExampleTokenizer, TokenizedExample, prompt_ids
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.loading import load_tokenizer
from support.answers import answer

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTION = "Pump 07 reports {low flow}.\nWhat is it?"


@pytest.fixture
def tokenizer(random_base: Path) -> Any:
    loaded = load_tokenizer(random_base)
    loaded.chat_template = CHAT
    return loaded


@pytest.mark.parametrize(
    "options",
    [{"format": "Instruction"}, {"format": "Instruction", "template": "ChatTemplate"}, {"format": "Chat"}],
    ids=["template", "chat template", "chat"],
)
@pytest.mark.parametrize("leading", [False, True], ids=["plain", "bos first"])
def test_a_typed_prompt_has_the_tokens_that_training_and_evaluation_saw(
    tokenizer: Any, options: dict[str, str], leading: bool
) -> None:
    if leading:
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
        )
    dataset = DatasetSpec.model_validate({"train": {"uri": "s3://datasets/x.jsonl"}, **options})
    example = Example(Place("x.jsonl"), (Message("user", QUESTION),), "Clogged.")
    seen = ExampleTokenizer(tokenizer, PromptFormat.of(dataset), 512).tokenize([example])[0]
    assert isinstance(seen, TokenizedExample)

    assert prompt_ids(PromptFormat.of(dataset), tokenizer, QUESTION) == seen.prompt_ids


def test_the_prompt_format_is_read_as_it_was_written(tmp_path: Path) -> None:
    dataset = DatasetSpec.model_validate({"train": {"uri": "s3://datasets/x.jsonl"}, "template": "Q: {instruction} A:"})

    PromptFormat.of(dataset).write(tmp_path)

    assert PromptFormat.read(tmp_path) == PromptFormat.of(dataset)


def test_a_model_folder_that_edgetune_did_not_write_is_refused(tmp_path: Path, random_base: Path) -> None:
    with pytest.raises(InvalidInput, match=r"has no edgetune.json, so Edgetune did not write this model"):
        answer(random_base, QUESTION, 8)
    with pytest.raises(InvalidInput, match=r"edgetune\.json"):
        answer(tmp_path / "nowhere", QUESTION, 8)


def test_an_invalid_prompt_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "edgetune.json").write_text('{"template": 3}')

    with pytest.raises(InvalidInput, match=r"edgetune\.json is invalid"):
        PromptFormat.read(tmp_path)


def test_an_empty_prompt_is_refused(tmp_path: Path) -> None:
    PromptFormat(template="{instruction}", format="Instruction").write(tmp_path)

    with pytest.raises(InvalidInput, match="the prompt is empty"):
        answer(tmp_path, " \n", 8)


def test_a_typed_prompt_needs_exactly_the_columns_of_the_template(tokenizer: Any) -> None:
    shape = PromptFormat(template="{instruction}|{input}|", format="Instruction")

    assert tokenizer.decode(prompt_ids(shape, tokenizer, "a", {"input": "{instruction}"})) == "a|{instruction}|"
    with pytest.raises(InvalidInput, match=r"the model's template also has \{input\}; give its value"):
        prompt_ids(shape, tokenizer, "a")
    with pytest.raises(InvalidInput, match=r"has no \{year\} \(its columns besides the prompt: 'input'\)"):
        prompt_ids(shape, tokenizer, "a", {"input": "b", "year": "c"})
