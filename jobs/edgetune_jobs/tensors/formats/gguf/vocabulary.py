"""The tokenizer in GGUF: vocabulary, merges, special tokens, and the pre-tokenizer of llama.cpp.

Two tokenizer models of llama.cpp are supported. `gpt2` is byte-level BPE, whose pre-tokenizer is given by its name in
llama.cpp, so only pre-tokenizers with a name can be written. `llama` is SentencePiece BPE, which merges by the score of
the merged token, so merges can be written as scores only if they are in the order of scores.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.gguf import stripping

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CL100K = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_WORDS_AND_SPACES}"
# llama.cpp's names of pre-tokenizers by their regular expression, and whether they ignore merges for whole tokens.
_SPLITS: Mapping[tuple[str, bool], str] = {
    (_CL100K, True): "llama-bpe",
    (_CL100K, False): "dbrx",
    (rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_WORDS_AND_SPACES}", False): "qwen2",
    (_TEKKEN, True): "tekken",
    (_O200K, False): "gpt-4o",
}
# Both keep the matches of such an expression as words, because it matches every character.
_KEEPS_MATCHES = (("Isolated", False), ("Removed", True))
_SPACE = "\u2581"
_A_SPACE = {"String": " "}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPECIAL_IDS = ("bos", "eos", "pad", "unk")
_UNSUPPORTED_NORMALIZER = "llama.cpp does not support the normalizer of the tokenizer"
_UNSUPPORTED_PRE_TOKENIZER = "llama.cpp does not support the pre_tokenizer of the tokenizer"


@dataclass(frozen=True)
class Token:
    """A token in GGUF."""

    text: str
    type: str
    """Name of a member of gguf.TokenType."""

    score: float = 0.0


@dataclass(frozen=True)
class GgufVocabulary:
    """The metadata of a tokenizer in GGUF."""

    model: str
    """gpt2 or llama."""

    pre: str
    """llama.cpp's name of the pre-tokenizer."""

    tokens: tuple[Token, ...]
    """By id; one per row of the embedding."""

    merges: tuple[str, ...]
    """For gpt2: pairs in order of priority."""

    special_ids: Mapping[str, int]
    """Ids of bos, eos, pad, unk and eot, if the tokenizer has them."""

    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None
    strips_as_phi3: bool
    """Whether white space after special tokens is removed, as llama.cpp does only in a model of a certain name."""

    differences: tuple[str, ...]
    """Warnings about texts for which llama.cpp gives other tokens than the tokenizer."""

    def add_to(self, writer: "GGUFWriter", name: str) -> None:
        """Write the metadata, with the name of the model."""
        from gguf import TokenType

        writer.add_name(stripping.name_for(name, strips_as_phi3=self.strips_as_phi3))
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list([token.text for token in self.tokens])
        writer.add_token_types([TokenType[token.type] for token in self.tokens])
        if self.model == "llama":
            writer.add_token_scores([token.score for token in self.tokens])
            writer.add_add_space_prefix(self.add_space_prefix)
        else:
            writer.add_token_merges(self.merges)
        for name, token_id in self.special_ids.items():
            getattr(writer, f"add_{name}_token_id")(token_id)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def describe_vocabulary(
    tokenizer: "PreTrainedTokenizerBase", rows: int, other_eos_ids: Sequence[int]
) -> GgufVocabulary:
    """The metadata in GGUF of a tokenizer.

    Args:
        tokenizer: the tokenizer of training.
        rows: rows of the embedding; ids without a token get padding tokens.
        other_eos_ids: ids that end a response besides the tokenizer's EOS; llama.cpp uses the first one.

    Raises:
        Unsupported: llama.cpp does not support the tokenizer.
    """
    backend = _backend(tokenizer)
    model, added = backend["model"], backend["added_tokens"]
    if model["type"] != "BPE":
        raise Unsupported(f"the tokenizer type {model['type']!r} is not BPE")
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise Unsupported("the tokenizer has continuing_subword_prefix or end_of_word_suffix, unlike llama.cpp")
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    strips_as_phi3 = stripping.is_phi3(model["vocab"], added)
    differences = () if strips_as_phi3 else stripping.differences(added, template or "")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    kind = _SentencePiece(model, merges, added) if model.get("byte_fallback") else _ByteLevel(model, added)
    split = kind.find_split(backend["normalizer"], backend["pre_tokenizer"])
    special_ids = {name: getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL_IDS}
    if other_eos_ids:
        special_ids["eot"] = other_eos_ids[0]
    add_bos, add_eos = _added_around(tokenizer)
    return GgufVocabulary(
        model=kind.name,
        pre=split.pre,
        tokens=_tokens(model["vocab"], added, rows, kind),
        merges=tuple(" ".join(merge) for merge in merges),
        special_ids={name: token_id for name, token_id in special_ids.items() if token_id is not None},
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=split.add_space_prefix,
        chat_template=template,
        strips_as_phi3=strips_as_phi3,
        differences=(*split.differences, *differences),
    )


@dataclass(frozen=True)
class _Split:
    """How llama.cpp splits text before merging."""

    pre: str
    add_space_prefix: bool = False
    differences: tuple[str, ...] = ()


class _ByteLevel:
    """Byte-level BPE, with bytes as printable characters: GPT-2, SmolLM, Llama 3, Qwen, Mistral Nemo."""

    name = "gpt2"

    def __init__(self, model: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> None:
        self._ignores_merges = bool(model.get("ignore_merges"))
        self._added = {token["content"]: token["special"] for token in added}

    def token(self, text: str) -> Token:
        """A token of the vocabulary."""
        if text not in self._added:
            return Token(text, "NORMAL")
        return Token(text, "CONTROL" if self._added[text] else "USER_DEFINED")

    def find_split(self, normalizer: Any, pre_tokenizer: Any) -> _Split:
        """The split of llama.cpp that equals the tokenizer's.

        Raises:
            Unsupported: llama.cpp has no such split.
        """
        if any(step["type"] != "NFC" for step in _steps(normalizer, "normalizers")):
            raise Unsupported(_UNSUPPORTED_NORMALIZER)
        *splits, last = _steps(pre_tokenizer, "pretokenizers") or [{"type": "none"}]
        known = None
        if last["type"] == "ByteLevel" and not last["add_prefix_space"]:
            known = self._known_split(splits, bool(last["use_regex"]))
        if known is None:
            raise Unsupported(_UNSUPPORTED_PRE_TOKENIZER)
        not_nfc = "llama.cpp does not normalize text to NFC, so decomposed accents become other tokens"
        return _Split(known, differences=(not_nfc,) if normalizer else ())

    def _known_split(self, splits: Sequence[Mapping[str, Any]], byte_level_splits: bool) -> str | None:
        if byte_level_splits and (self._ignores_merges or len(splits) > 1):
            return None
        if byte_level_splits and not splits:
            return "gpt-2"
        if len(splits) != 1:
            return None
        (split,) = splits
        if byte_level_splits:
            return "smollm" if split["type"] == "Digits" and split["individual_digits"] else None
        if split["type"] != "Split" or (split["behavior"], split["invert"]) not in _KEEPS_MATCHES:
            return None
        return _SPLITS.get((split["pattern"].get("Regex", ""), self._ignores_merges))


class _SentencePiece:
    """SentencePiece BPE in the tokenizers library: Llama 2, Mistral, Gemma. The order of merges gives the scores."""

    name = "llama"

    def __init__(
        self, model: Mapping[str, Any], merges: Sequence[tuple[str, ...]], added: Sequence[Mapping[str, Any]]
    ) -> None:
        self._unknown = model.get("unk_token")
        self._added = {token["content"]: token["special"] for token in added}
        self._scores = _scores(model["vocab"], merges, set(self._added))

    def token(self, text: str) -> Token:
        """A token of the vocabulary."""
        if text == self._unknown:
            return Token(text, "UNKNOWN")
        if text in self._added:
            special = self._added[text]
            return Token(text if special else text.replace(_SPACE, " "), "CONTROL" if special else "USER_DEFINED")
        if _BYTE.fullmatch(text):
            return Token(text, "BYTE")
        return Token(text, "NORMAL", self._scores.get(text, -float(len(self._scores))))

    def find_split(self, normalizer: Any, pre_tokenizer: Any) -> _Split:
        """SentencePiece does not split text; it may add a space before it.

        Raises:
            Unsupported: the tokenizer normalizes or splits text in another way.
        """
        prefix, differences, has_spaces = False, [], True
        for step in _steps(normalizer, "normalizers"):
            prepends = step["type"] == "Prepend" and step["prepend"] == _SPACE
            if not prepends and not (step["type"] == "Replace" and step["content"] == _SPACE):
                raise Unsupported(_UNSUPPORTED_NORMALIZER)
            prefix |= prepends
            has_spaces &= prepends or step["pattern"] != _A_SPACE
        for step in _steps(pre_tokenizer, "pretokenizers"):
            if step["type"] == "Split" and step["pattern"] == _A_SPACE and not has_spaces:
                continue  # Gemma: nothing is left to split at
            if step["type"] != "Metaspace" or step["replacement"] != _SPACE or step.get("split", True):
                raise Unsupported(_UNSUPPORTED_PRE_TOKENIZER)
            prefix |= step["prepend_scheme"] != "never"
            if step["prepend_scheme"] != "never":
                differences.append("llama.cpp adds a space also before a text that starts with a space")
            if step["prepend_scheme"] == "first":
                differences.append("llama.cpp adds a space also before the text after a special token")
        if any(_SPACE in text and not special for text, special in self._added.items()):
            differences.append(f"llama.cpp gives other tokens for a text that has the character {_SPACE} itself")
        return _Split("default", prefix, tuple(differences))


def _scores(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, ...]], added: set[str]) -> dict[str, float]:
    """Score of each merged token: 0 for the first merge, then descending.

    Raises:
        Unsupported: merging by score would give other tokens than merging by the list.
    """
    scores: dict[str, float] = {}
    last = ""
    for pair in merges:
        merged = "".join(pair)
        if merged in added:  # cut out of a text before anything is merged
            continue
        if merged != last and merged in scores:
            raise Unsupported("the merges of the tokenizer are not in the order of SentencePiece scores")
        scores.setdefault(merged, -float(len(scores)))
        last = merged
    listed = set(merges)
    for text in vocabulary:
        if text in added or _BYTE.fullmatch(text):
            continue
        for cut in range(1, len(text)):
            pair = (text[:cut], text[cut:])
            if pair not in listed and pair[0] in vocabulary and pair[1] in vocabulary:
                raise Unsupported(f"the tokenizer does not merge {pair[0]!r} and {pair[1]!r}, but SentencePiece would")
    return scores


def _tokens(
    vocabulary: Mapping[str, int], added: Sequence[Mapping[str, Any]], rows: int, kind: _ByteLevel | _SentencePiece
) -> tuple[Token, ...]:
    by_id = {token_id: text for text, token_id in vocabulary.items()}
    by_id |= {token["id"]: token["content"] for token in added}
    if max(by_id) >= rows:
        raise Unsupported(f"the tokenizer has token id {max(by_id)}, but the embedding has only {rows:,} rows")
    return tuple(kind.token(by_id[row]) if row in by_id else Token(f"[PAD{row}]", "UNUSED") for row in range(rows))


def _added_around(tokenizer: "PreTrainedTokenizerBase") -> tuple[bool, bool]:
    """Whether the tokenizer adds BOS before and EOS after a text."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for before, after in ((False, False), (True, False), (False, True), (True, True)):
        if whole == bos * before + plain + eos * after:
            return before, after
    raise Unsupported("the tokenizer adds other tokens than BOS and EOS to a text")


def _backend(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise Unsupported("the tokenizer is not a fast tokenizer with a tokenizer.json")
    described: dict[str, Any] = json.loads(backend.to_str())
    return described


def _steps(node: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be missing or nested."""
    if node is None:
        return []
    return [step for child in node[name] for step in _steps(child, name)] if node["type"] == "Sequence" else [node]
