"""Text has the same tokens in llama.cpp, in transformers from the GGUF file, and in the tokenizer itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from edgetune_jobs.models import loading
from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.gguf.vocabulary import GgufVocabulary, describe_vocabulary
from support.edge_models import make_model, write_gguf
from support.llama_cpp import run_llama_cpp
from support.tiny_tokenizer import CHAT_TEMPLATE, make_tokenizer
from support.tokenizers import BYTE_LEVEL, TEXTS, byte_level, sentence_piece, wrap

pytestmark = pytest.mark.slow


def written(folder: Path, tokenizer: Any, family: str = "llama") -> tuple[Path, Any]:
    """A GGUF file with this tokenizer, and the tokenizer as training would load it."""
    model = make_model(folder / "model", family, tokenizer=tokenizer)
    return write_gguf(model, folder / "edge"), loading.load_tokenizer(model)


def ids(tokenizer: Any, texts: tuple[str, ...] = TEXTS) -> list[list[int]]:
    return [list(tokenizer(text)["input_ids"]) for text in texts]


def alone(file: Path) -> Any:
    """The tokenizer that transformers loads from the file alone."""
    from transformers import AutoTokenizer

    folder = file.parent / "alone"
    folder.mkdir()
    shutil.copy(file, folder)
    return AutoTokenizer.from_pretrained(folder, gguf_file=file.name)


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, "legacy", "never", "gemma"])
def test_llama_cpp_and_transformers_give_the_tokens_of_the_tokenizer(kind: str, tmp_path: Path) -> None:
    made = byte_level(kind) if kind in BYTE_LEVEL else sentence_piece(kind)
    families = {"qwen2": "qwen2", "gemma": "gemma2", "phi-4": "phi3", "phi-4-mini": "phi3"}
    file, tokenizer = written(tmp_path, made, families.get(kind, "llama"))
    expected = ids(tokenizer)

    assert run_llama_cpp(file, texts=TEXTS)["tokens"] == expected
    # From GGUF alone, transformers supports only one way to add spaces before text, and does not split digits as
    # SmolLM does. So the model folder also has tokenizer.json.
    if kind not in ("legacy", "never", "gemma", "smollm", "phi-4", "phi-4-mini"):
        assert ids(alone(file)) == expected


def test_a_space_before_text_differs_as_the_warnings_say(tmp_path: Path) -> None:
    file, tokenizer = written(tmp_path, sentence_piece("first"))
    alike = tuple(text for text in TEXTS if not text.startswith(" ") and "<" not in text)

    assert run_llama_cpp(file, texts=alike)["tokens"] == ids(tokenizer, alike)
    assert describe(tokenizer).differences == (
        "llama.cpp adds a space also before a text that starts with a space",
        "llama.cpp adds a space also before the text after a special token",
    )
    for text in (" leading", "<|im_start|>user"):
        assert run_llama_cpp(file, texts=[text])["tokens"] != ids(tokenizer, (text,))


def test_the_character_that_stands_for_a_space_differs_as_the_warning_says(tmp_path: Path) -> None:
    file, tokenizer = written(tmp_path, sentence_piece("gemma"), "gemma2")

    (difference,) = describe(tokenizer).differences
    assert difference == "llama.cpp gives other tokens for a text that has the character ▁ itself"
    assert run_llama_cpp(file, texts=["a▁▁b"])["tokens"] != ids(tokenizer, ("a▁▁b",))


def describe(tokenizer: Any, rows: int = 2000, other_eos_ids: tuple[int, ...] = ()) -> GgufVocabulary:
    return describe_vocabulary(tokenizer, rows, other_eos_ids)


def test_special_tokens_and_the_chat_template_are_in_the_file(tmp_path: Path) -> None:
    file, tokenizer = written(tmp_path, make_tokenizer(chat_template=CHAT_TEMPLATE, adds_bos=True, adds_eos=True))
    fields = GGUFReader(file).fields

    def value(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    assert value("chat_template") == CHAT_TEMPLATE
    assert value("ggml.bos_token_id") == tokenizer.bos_token_id
    assert value("ggml.eos_token_id") == tokenizer.eos_token_id
    assert value("ggml.padding_token_id") == tokenizer.pad_token_id
    assert (value("ggml.add_bos_token"), value("ggml.add_eos_token")) == (True, True)
    assert len(value("ggml.tokens")) == len(tokenizer) + 9
    assert value("ggml.tokens")[-1] == f"[PAD{len(tokenizer) + 8}]"
    assert run_llama_cpp(file)["template"] == CHAT_TEMPLATE


def test_the_first_other_eos_token_is_the_eot_token() -> None:
    assert describe(make_tokenizer(), other_eos_ids=(1, 0)).special_ids["eot"] == 1


def changed(change: dict[str, Any], tokenizer: Any) -> Any:
    """A tokenizer with parts of its JSON replaced, given by paths such as `model.merges`."""
    from tokenizers import Tokenizer

    document = json.loads(tokenizer.backend_tokenizer.to_str())
    for path, value in change.items():
        node = document
        *parents, last = path.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return wrap(Tokenizer.from_str(json.dumps(document)), adds_bos=False)


LOWERCASE = {"type": "Lowercase"}
PREFIXED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
PUNCTUATION = {"type": "Punctuation", "behavior": "Isolated"}
REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "lower case": ({"normalizer": LOWERCASE}, "llama.cpp does not support the normalizer"),
    "an unknown split": ({"pre_tokenizer": PUNCTUATION}, "llama.cpp does not support the pre_tokenizer"),
    "no split": ({"pre_tokenizer": None}, "llama.cpp does not support the pre_tokenizer"),
    "a space before text": ({"pre_tokenizer": PREFIXED}, "llama.cpp does not support the pre_tokenizer"),
    "whole words first": ({"model.ignore_merges": True}, "llama.cpp does not support the pre_tokenizer"),
    "suffixes": ({"model.end_of_word_suffix": "</w>"}, "has continuing_subword_prefix or end_of_word_suffix"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_tokenizer_that_llama_cpp_does_not_support_is_refused(name: str) -> None:
    change, message = REFUSALS[name]

    with pytest.raises(Unsupported, match=message):
        describe(changed(change, byte_level("gpt-2")))


def with_token(**options: bool) -> Any:
    from tokenizers import AddedToken

    tokenizer = byte_level("gpt-2")
    tokenizer.add_tokens([AddedToken("<mask>", special=True, **options)])
    return tokenizer


def test_a_token_within_words_is_refused() -> None:
    with pytest.raises(Unsupported, match="matches '<mask>' with single_word"):
        describe(with_token(single_word=True))


def test_an_added_token_that_strips_white_space_differs_as_the_warning_says(tmp_path: Path) -> None:
    file, tokenizer = written(tmp_path, with_token(lstrip=True, rstrip=True))

    assert describe(tokenizer).differences == (
        "llama.cpp keeps white space beside <mask>, which the tokenizer removes",
    )
    assert run_llama_cpp(file, texts=["a<mask>b"])["tokens"] == ids(tokenizer, ("a<mask>b",))
    assert run_llama_cpp(file, texts=["a <mask> b"])["tokens"] != ids(tokenizer, ("a <mask> b",))


@pytest.mark.parametrize(
    ("template", "is_refused"),
    [
        ("{{ '<mask>\\n' + messages[0].content }}", True),
        ("{{ '<mask>' + '\\n' + messages[0].content }}", True),
        ("<mask>\n{{ messages[0].content }}", True),
        ("{{ '<mask>' + messages[0].content + '\\n' }}", False),
        ("{{ messages[0].content + ' <mask>' }}", False),
    ],
)
def test_a_template_with_white_space_that_the_tokenizer_removes_is_refused(template: str, is_refused: bool) -> None:
    tokenizer = with_token(rstrip=True)
    tokenizer.chat_template = template

    if not is_refused:
        assert len(describe(tokenizer).differences) == 1
        return
    with pytest.raises(Unsupported, match="removes white space beside '<mask>', which its chat template has there"):
        describe(tokenizer)


@pytest.mark.parametrize("name", ["model", "phi-3-faults"])
def test_the_tokenizer_of_phi3_strips_white_space_in_llama_cpp_too(name: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "phi3", tokenizer=sentence_piece("phi3"))
    tokenizer = loading.load_tokenizer(model)
    texts = (*TEXTS, "<|user|>\n What's up?<|end|>\n<|assistant|>\n", "<|user|>  a<|endoftext|>\n b</s> \n c <|end|>")

    file = write_gguf(model, tmp_path / "edge", name=name)

    assert describe(tokenizer).differences == ()
    assert run_llama_cpp(file, texts=texts)["tokens"] == ids(tokenizer, texts)


def test_llama_cpp_loads_another_model_whatever_its_name(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama", tokenizer=byte_level("gpt-2"))
    tokenizer = loading.load_tokenizer(model)

    file = write_gguf(model, tmp_path / "edge", name="Phi3-and-phi-3")

    assert GGUFReader(file).fields["general.name"].contents() == "Phi 3-and-Phi 3"
    assert run_llama_cpp(file, texts=TEXTS)["tokens"] == ids(tokenizer)


def test_merges_that_sentencepiece_scores_cannot_represent_are_refused() -> None:
    tokenizer = sentence_piece("never")
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]

    with pytest.raises(Unsupported, match="does not merge"):
        describe(changed({"model.merges": merges[:-1]}, tokenizer))
    made = ["".join(merge) for merge in merges]
    twice = next(number for number, token in enumerate(made) if token in made[:number] and number < len(made) - 1)
    with pytest.raises(Unsupported, match="not in the order of SentencePiece scores"):
        describe(changed({"model.merges": [*merges[:twice], *merges[twice + 1 :], merges[twice]]}, tokenizer))


def test_more_tokens_than_rows_of_the_embedding_are_refused() -> None:
    with pytest.raises(Unsupported, match="the embedding has only 100 rows"):
        describe(make_tokenizer(), rows=100)
