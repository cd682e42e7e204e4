"""A tokenizer in the words of llama.cpp: vocabulary, merges, special tokens, and how text is split before merging.

llama.cpp knows two kinds of tokenizers that matter here. `gpt2` is byte-level BPE, its split named by `pre`: only
splits that llama.cpp has under a name can be written. `llama` is SentencePiece's BPE, which merges by the score of the
merged token: merges that are ordered in that way can be written as scores.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetune_jobs.tensors.formats.errors import Unsupported

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
# llama.cpp's names of splits by their regular expression, and whether whole words that are tokens are taken unmerged.
_SPLITS: Mapping[str, tuple[str, bool]] = {
    rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_WORDS_AND_SPACES}": ("llama-bpe", True),
    rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_WORDS_AND_SPACES}": ("qwen2", False),
    _TEKKEN: ("tekken", True),
}
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPECIAL_IDS = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True)
class Token:
    """A token as GGUF lists it."""

    text: str
    type: str
    """A member of gguf.TokenType."""

    score: float = 0.0


@dataclass(frozen=True)
class GgufVocabulary:
    """All that GGUF says of a tokenizer."""

    model: str
    """gpt2 or llama."""

    pre: str
    """llama.cpp's name of the split before merging."""

    tokens: tuple[Token, ...]
    """By id; as many as the embedding has rows."""

    merges: tuple[str, ...]
    """gpt2: pairs, first things first."""

    special_ids: Mapping[str, int]
    """Ids of bos, eos, pad, unk and eot, as far as there are such tokens."""

    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None
    differences: tuple[str, ...]
    """Where llama.cpp makes other tokens than the tokenizer does, in sentences for people."""

    def add_to(self, writer: "GGUFWriter") -> None:
        """Write it as metadata."""
        from gguf import TokenType

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


def describe_vocabulary(tokenizer: "PreTrainedTokenizerBase", rows: int, other_ends: Sequence[int]) -> GgufVocabulary:
    """A loaded tokenizer as GGUF describes it.

    Args:
        tokenizer: the tokenizer, as training used it.
        rows: rows of the embedding; ids without a token are filled up to it.
        other_ends: ids that end an answer besides the tokenizer's EOS; llama.cpp takes the first.

    Raises:
        Unsupported: llama.cpp would cut text into other tokens.
    """
    backend = _backend(tokenizer)
    model, added = backend["model"], backend["added_tokens"]
    if model["type"] != "BPE":
        raise Unsupported(f"its tokenizer is of the type {model['type']}; llama.cpp is given BPE tokenizers only")
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise Unsupported("its tokenizer marks parts of words by a prefix or suffix, llama.cpp does not")
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise Unsupported(f"its tokenizer takes white space around {token['content']!r} away, llama.cpp does not")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    kind = _SentencePiece(model, merges, added) if model.get("byte_fallback") else _ByteLevel(model, added)
    split = kind.judge_split(backend["normalizer"], backend["pre_tokenizer"])
    special_ids = {name: getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL_IDS}
    if other_ends:
        special_ids["eot"] = other_ends[0]
    add_bos, add_eos = _added_around(tokenizer)
    template = tokenizer.chat_template
    return GgufVocabulary(
        model=kind.name,
        pre=split.pre,
        tokens=_tokens(model["vocab"], added, rows, kind),
        merges=tuple(" ".join(merge) for merge in merges),
        special_ids={name: token_id for name, token_id in special_ids.items() if token_id is not None},
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=split.add_space_prefix,
        chat_template=template.get("default") if isinstance(template, dict) else template,
        differences=split.differences,
    )


@dataclass(frozen=True)
class _Split:
    """How text is cut before merging."""

    pre: str
    add_space_prefix: bool = False
    differences: tuple[str, ...] = ()


class _ByteLevel:
    """BPE over bytes that are spelled as printable characters: GPT-2, SmolLM, Llama 3, Qwen, Mistral Nemo."""

    name = "gpt2"

    def __init__(self, model: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> None:
        self._ignores_merges = bool(model.get("ignore_merges"))
        self._added = {token["content"]: token["special"] for token in added}

    def token(self, text: str) -> Token:
        """A token of the vocabulary."""
        if text not in self._added:
            return Token(text, "NORMAL")
        return Token(text, "CONTROL" if self._added[text] else "USER_DEFINED")

    def judge_split(self, normalizer: Any, pre_tokenizer: Any) -> _Split:
        """How llama.cpp is told to split.

        Raises:
            Unsupported: it has no name for it.
        """
        if any(step["type"] != "NFC" for step in _steps(normalizer, "normalizers")):
            raise Unsupported("its tokenizer changes text in a way that llama.cpp does not know (normalizer)")
        *splits, last = _steps(pre_tokenizer, "pretokenizers") or [{"type": "none"}]
        known = None
        if last["type"] == "ByteLevel" and not last["add_prefix_space"]:
            known = self._known_split(splits, bool(last["use_regex"]))
        if known is None or known[1] != self._ignores_merges:
            raise Unsupported("its tokenizer splits text in a way that llama.cpp has no name for (pre_tokenizer)")
        composed = "llama.cpp does not compose characters (NFC): decomposed accents become other tokens"
        return _Split(known[0], differences=(composed,) if normalizer else ())

    def _known_split(self, splits: Sequence[Mapping[str, Any]], byte_level_splits: bool) -> tuple[str, bool] | None:
        if byte_level_splits and not splits:
            return "gpt-2", False
        if len(splits) != 1:
            return None
        (split,) = splits
        if byte_level_splits:
            return ("smollm", False) if split["type"] == "Digits" and split["individual_digits"] else None
        if split["type"] != "Split" or split["behavior"] != "Isolated" or split["invert"]:
            return None
        return _SPLITS.get(split["pattern"].get("Regex", ""))


class _SentencePiece:
    """SentencePiece's BPE as the tokenizers library holds it: Llama 2, Mistral. The merges' order makes the scores."""

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

    def judge_split(self, normalizer: Any, pre_tokenizer: Any) -> _Split:
        """How llama.cpp is told to split: not at all, with a space before the text or none.

        Raises:
            Unsupported: text is changed or split in another way than SentencePiece's.
        """
        prefix, differences = False, []
        for step in _steps(normalizer, "normalizers"):
            prepends = step["type"] == "Prepend" and step["prepend"] == _SPACE
            if not prepends and not (step["type"] == "Replace" and step["content"] == _SPACE):
                raise Unsupported("its tokenizer changes text in a way that llama.cpp does not know (normalizer)")
            prefix |= prepends
        for step in _steps(pre_tokenizer, "pretokenizers"):
            if step["type"] != "Metaspace" or step["replacement"] != _SPACE or step.get("split", True):
                raise Unsupported("its tokenizer splits text in a way that llama.cpp does not know (pre_tokenizer)")
            prefix |= step["prepend_scheme"] != "never"
            if step["prepend_scheme"] != "never":
                differences.append("llama.cpp puts a space before a text that begins with one too")
            if step["prepend_scheme"] == "first":
                differences.append("llama.cpp puts a space before the text after a special token too")
        return _Split("default", prefix, tuple(differences))


def _scores(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, ...]], added: set[str]) -> dict[str, float]:
    """Score of each token that merges make, 0 for the first and falling.

    Raises:
        Unsupported: by score, other tokens would be merged than by the list, or in another order.
    """
    scores: dict[str, float] = {}
    last = ""
    for pair in merges:
        made = "".join(pair)
        if made != last and made in scores:
            raise Unsupported("its tokenizer's merges are not in the order of SentencePiece's scores")
        scores.setdefault(made, -float(len(scores)))
        last = made
    listed = set(merges)
    for text in vocabulary:
        if text in added or _BYTE.fullmatch(text):
            continue
        for cut in range(1, len(text)):
            pair = (text[:cut], text[cut:])
            if pair not in listed and pair[0] in vocabulary and pair[1] in vocabulary:
                raise Unsupported(
                    f"its tokenizer does not merge {pair[0]!r} and {pair[1]!r}, which SentencePiece would"
                )
    return scores


def _tokens(
    vocabulary: Mapping[str, int], added: Sequence[Mapping[str, Any]], rows: int, kind: _ByteLevel | _SentencePiece
) -> tuple[Token, ...]:
    by_id = {token_id: text for text, token_id in vocabulary.items()}
    by_id |= {token["id"]: token["content"] for token in added}
    if max(by_id) >= rows:
        raise Unsupported(f"its tokenizer has the token {max(by_id)}, but its embedding has {rows:,} rows")
    return tuple(kind.token(by_id[row]) if row in by_id else Token(f"[PAD{row}]", "UNUSED") for row in range(rows))


def _added_around(tokenizer: "PreTrainedTokenizerBase") -> tuple[bool, bool]:
    """Whether BOS comes before and EOS after every text."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for before, after in ((False, False), (True, False), (False, True), (True, True)):
        if whole == bos * before + plain + eos * after:
            return before, after
    raise Unsupported("its tokenizer puts other tokens than BOS and EOS around a text")


def _backend(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise Unsupported("its tokenizer is not one of the tokenizers library: save it with tokenizer.json")
    described: dict[str, Any] = json.loads(backend.to_str())
    return described


def _steps(node: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer; none when there is none."""
    if node is None:
        return []
    return [step for child in node[name] for step in _steps(child, name)] if node["type"] == "Sequence" else [node]
