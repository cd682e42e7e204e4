"""Edge models answer a message as they were trained: in llama.cpp's handler of chats, and in transformers."""

from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.tokenization import prompt_ids
from edgetune_jobs.models import loading
from edgetune_jobs.models.quantization.gguf_loading import find_file
from edgetune_jobs.stages import quantize
from support.edge_models import make_model
from support.llama_cpp import run_llama_cpp
from support.ollama import read_modelfile
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters
from support.tiny_tokenizer import CHAT_TEMPLATE, make_tokenizer
from support.tokenizers import byte_level, sentence_piece

pytestmark = pytest.mark.slow

FORMATS = ["GGUF-Q8_0", "BitsAndBytesInt8", "CompressedTensorsW8A8"]
PROMPTS = ("Valve V-7 reads 27 bar. State?", "it's {{ 1 + 1 }}\n\nwhat?", "日本 9.3 mm/s")
SYSTEM = "You know valves."


def tokenizer_of(kind: str) -> Any:
    if kind == "tiny":
        return make_tokenizer(chat_template=CHAT_TEMPLATE)
    if kind == "tiny-bos":
        return make_tokenizer(chat_template="{{ bos_token }}" + CHAT_TEMPLATE, adds_bos=True)
    tokenizer = byte_level("llama-bpe") if kind == "llama-bpe" else sentence_piece(kind)
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    return tokenizer


def quantized(folder: Path, kind: str, formats: list[str], *, system: str = "", **dataset: Any) -> tuple[Path, Any]:
    """The folder of the edge models of a random model with this tokenizer, and its tokenizer as training loads it."""
    merged = make_model(folder / "merged", "llama", tokenizer=tokenizer_of(kind), dtype="bfloat16")
    parameters = tiny_parameters(quantization={"formats": formats}, dataset=dataset)
    PromptFormat.of(parameters.dataset).model_copy(update={"system": system}).write(merged)
    context = stage_context(Stage.QUANTIZE, parameters, folder, {"merged": merged})
    quantize.run(context)
    return context.output, loading.load_tokenizer(merged)


def expected_ids(tokenizer: Any, system: str = "", **dataset: Any) -> list[list[int]]:
    spec = tiny_parameters(dataset=dataset).dataset
    prompt_format = PromptFormat.of(spec).model_copy(update={"system": system})
    return [prompt_ids(prompt_format, tokenizer, text) for text in PROMPTS]


def ids_of_messages(folder: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = (
        tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=True) for message in MESSAGES
    )
    return [list(each["input_ids"]) for each in rendered]


MESSAGES = [{"role": "user", "content": text} for text in PROMPTS]


@pytest.mark.parametrize("artifact", [EdgeFormat(each).artifact for each in FORMATS])
def test_transformers_gives_a_message_the_tokens_of_training(
    edges: tuple[Path, list[list[int]]], artifact: str
) -> None:
    folder, expected = edges

    assert ids_of_messages(folder / artifact) == expected


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """The folder of an edge model in each format, and the prompts' token ids in training."""
    folder, tokenizer = quantized(tmp_path_factory.mktemp("edges"), "tiny", FORMATS)
    return folder, expected_ids(tokenizer)


@pytest.mark.parametrize("kind", ["tiny", "tiny-bos", "llama-bpe", "legacy", "first", "never"])
def test_llama_cpp_gives_a_message_the_tokens_of_training(kind: str, tmp_path: Path) -> None:
    folder, tokenizer = quantized(tmp_path, kind, FORMATS[:1])
    file = find_file(folder / "edge-gguf-q8_0")
    assert file is not None
    expected = expected_ids(tokenizer)

    found = run_llama_cpp(file, chats=[[message] for message in MESSAGES], max_new_tokens=1)

    assert [chat["tokens"] for chat in found["chats"]] == expected
    assert ids_of_messages(folder / "edge-gguf-q8_0") == expected


@pytest.mark.parametrize("dataset", [{"format": "Chat"}, {"template": "ChatTemplate"}], ids=["chat", "instruction"])
def test_a_chat_template_of_the_base_is_the_edge_models_with_the_shared_system_message(
    dataset: dict[str, str], tmp_path: Path
) -> None:
    system = SYSTEM if dataset.get("format") == "Chat" else ""
    folder, tokenizer = quantized(tmp_path, "tiny-bos", FORMATS[:2], system=system, **dataset)
    file = find_file(folder / "edge-gguf-q8_0")
    assert file is not None
    expected = expected_ids(tokenizer, system, **dataset)

    found = run_llama_cpp(file, chats=[[message] for message in MESSAGES], max_new_tokens=1)

    assert [chat["tokens"] for chat in found["chats"]] == expected
    for artifact in ("edge-gguf-q8_0", "edge-bnb-int8"):
        assert ids_of_messages(folder / artifact) == expected


@pytest.mark.parametrize("kind", ["tiny", "tiny-bos", "first"])
def test_llama_cpp_answers_the_prompt_that_ollama_makes_of_the_modelfile(kind: str, tmp_path: Path) -> None:
    """Ollama runs llama.cpp on the text of its template, to which llama.cpp adds BOS. Its server is not here."""
    folder, tokenizer = quantized(tmp_path, kind, FORMATS[:1])
    edge = folder / "edge-gguf-q8_0"
    found = read_modelfile(edge / "Modelfile", *([message] for message in MESSAGES))

    (model,) = found.commands["model"]
    assert run_llama_cpp(edge / model, texts=found.prompts)["tokens"] == expected_ids(tokenizer)
    assert found.commands["stop"] == [tokenizer.eos_token]
    assert found.commands["num_ctx"] == ["512"]


def test_a_template_in_an_older_field_of_the_tokenizer_is_replaced_too(tmp_path: Path) -> None:
    import json

    merged = make_model(tmp_path / "merged", "llama", tokenizer=make_tokenizer(), dtype="bfloat16")
    config = json.loads((merged / "tokenizer_config.json").read_text())
    (merged / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHAT_TEMPLATE}))
    parameters = tiny_parameters(quantization={"formats": FORMATS[1:2]})
    context = stage_context(Stage.QUANTIZE, parameters, tmp_path, {"merged": merged})

    quantize.run(context)

    edge = context.output / "edge-bnb-int8"
    written = json.loads((edge / "tokenizer_config.json").read_text())["chat_template"]
    assert written == (edge / "chat_template.jinja").read_text()
    assert "### Response" in written
    assert ids_of_messages(edge) == expected_ids(loading.load_tokenizer(merged))
