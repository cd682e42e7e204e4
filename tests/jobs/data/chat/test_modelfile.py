"""Ollama's own parser and templates make the prompts of training from the Modelfile. Its server is not tested here."""

from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.spec import DatasetSpec
from edgetune_jobs.data.chat.modelfile import MODELFILE, RuntimeSettings, modelfile, write_modelfile
from edgetune_jobs.data.chat.trained_template import trained_template
from edgetune_jobs.data.prompt_format import PromptFormat
from support.ollama import Modelfile, read_modelfile
from support.tiny_tokenizer import CHAT_TEMPLATE, make_tokenizer

SETTINGS = RuntimeSettings("model-Q8_0.gguf", adds_bos=True, ends=(2, 1, 2), context_length=4096)
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": 'State of "P-17"?'}
TALK = (ASKED, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "And P-18?"})
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}" + CHAT_TEMPLATE
)
THINKING = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}<think></think>{% endif %}"
    "{{ m['content'] | trim }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def format_of(**options: Any) -> PromptFormat:
    return PromptFormat.of(DatasetSpec.model_validate({"train": {"uri": "s3://data/k"}, **options}))


def read(folder: Path, prompt_format: PromptFormat, tokenizer: Any, *conversations: Any) -> Modelfile:
    write_modelfile(folder, prompt_format, tokenizer, SETTINGS)
    return read_modelfile(folder / MODELFILE, *conversations)


@pytest.mark.parametrize(
    "template",
    [
        DatasetSpec.model_validate({"train": {"uri": "s3://data/k"}}).template,
        "{instruction}",
        "{{instruction}}",
        '"{instruction}"',
        'say """{instruction}""" {{ .Prompt }} {{ end }} `x` {"a": {}}\n',
        "C:\\new\n\t'it' {instruction}\n\n",
        "FROM x\nPARAMETER stop y\n# {instruction} 日本 🙂",
    ],
)
def test_ollama_makes_the_prompt_of_training_from_a_template(tmp_path: Path, template: str) -> None:
    found = read(tmp_path, format_of(template=template), make_tokenizer(), [ASKED])

    assert found.prompts == [template.replace("{instruction}", ASKED["content"])]


def test_what_ollama_reads_besides_the_prompt(tmp_path: Path) -> None:
    found = read(tmp_path, format_of(), make_tokenizer())

    assert {name: value for name, value in found.commands.items() if name != "template"} == {
        "model": ["./model-Q8_0.gguf"],
        "temperature": ["0"],
        "repeat_penalty": ["1.0"],
        "num_ctx": ["4096"],
        "stop": ["<|im_end|>", "<|im_start|>"],
    }


def test_an_adapter_is_named_beside_its_base(tmp_path: Path) -> None:
    settings = RuntimeSettings("base.gguf", adds_bos=True, ends=(2,), context_length=512, adapter="adapter.gguf")
    write_modelfile(tmp_path, format_of(), make_tokenizer(), settings)

    found = read_modelfile(tmp_path / MODELFILE)

    assert (found.commands["model"], found.commands["adapter"]) == (["./base.gguf"], ["./adapter.gguf"])


def test_a_conversation_is_prompts_and_answers_in_turn(tmp_path: Path) -> None:
    tokenizer, prompt_format = make_tokenizer(), format_of(template="Q:{instruction} A:")
    template = trained_template(prompt_format, tokenizer)
    assert template is not None

    found = read(tmp_path, prompt_format, tokenizer, TALK, (SYSTEM, *TALK))

    expected = [
        tokenizer.apply_chat_template(list(talk), chat_template=template.text, tokenize=False)
        for talk in (TALK, (SYSTEM, *TALK))
    ]
    assert found.prompts == expected


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, DEFAULT_SYSTEM, THINKING], ids=["chatml", "default", "thinking"])
@pytest.mark.parametrize("options", [{"format": "Chat"}, {"template": "ChatTemplate"}], ids=["chat", "instruction"])
def test_a_chat_template_gives_the_same_prompts_in_ollama(
    tmp_path: Path, template: str, options: dict[str, str]
) -> None:
    tokenizer = make_tokenizer(chat_template="{{ bos_token }}" + template, adds_bos=True)
    talks = [[ASKED], list(TALK), [SYSTEM, ASKED], [SYSTEM, *TALK]]

    found = read(tmp_path, format_of(**options), tokenizer, *talks)

    for talk, prompt in zip(talks, found.prompts, strict=True):
        expected = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert f"<s>{prompt}" == expected  # Ollama adds BOS


def test_a_shared_system_message_is_the_default_in_ollama_too(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    shared = format_of(format="Chat").model_copy(update={"system": 'You know "tanks" {{ .Prompt }}.'})
    template = trained_template(shared, tokenizer)
    assert template is not None
    tokenizer.chat_template = template.text

    found = read(tmp_path, shared, tokenizer, [ASKED], [SYSTEM, ASKED])

    expected = [
        tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        for talk in ([ASKED], [SYSTEM, ASKED])
    ]
    assert found.prompts == expected


@pytest.mark.parametrize(
    "template",
    ["{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE, "{{ raise_exception('no') }}", "{{ messages | length }}"],
)
def test_a_chat_template_that_cannot_be_translated_is_left_out_with_a_note(template: str) -> None:
    text = modelfile(format_of(format="Chat"), make_tokenizer(chat_template=template), SETTINGS)

    assert "TEMPLATE" not in text
    assert "# Its chat template cannot be written as a template of Ollama" in text


def test_columns_that_ollama_has_no_values_for_are_named_and_empty(tmp_path: Path) -> None:
    prompt_format = format_of(template="{instruction} at {site}: ")

    found = read(tmp_path, prompt_format, make_tokenizer(), [ASKED])

    assert found.prompts == [f"{ASKED['content']} at : "]
    assert "no values for the columns site" in (tmp_path / MODELFILE).read_text()


def test_a_model_of_texts_gets_the_prompt_as_it_is(tmp_path: Path) -> None:
    assert read(tmp_path, format_of(format="Text"), make_tokenizer(), [ASKED]).prompts == [ASKED["content"]]
