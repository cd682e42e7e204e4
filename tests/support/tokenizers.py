"""Small tokenizers with the pre-tokenizers and merges of real models' tokenizers."""

from functools import cache
from typing import Any

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = (
    "Pump P-17 in hall 2 reports strong vibration (9.3 mm/s), don't wait: it's 1234567 hours old.\n\n",
    "  Grüße aus Köln; naïve café — 日本語のテキスト и русский текст.\tTAB\r\n",
    "### Instruction:\nName the fault.\n\n### Response:\nFault: bearing wear. I'LL replace it 🙂🙂.   \n",
)
TEXTS = (
    *_CORPUS,
    "",
    " ",
    "a",
    "ngi angina, singing",
    " leading and trailing  ",
    "<|im_start|>user\nWhat's up in 2024?<|im_end|>\n<|im_start|>assistant\n",
    "عربي 中文 한국어 ελληνικά 🏳️‍🌈 ٣٤٥ x²½",
    "tabs\t\tand\n\n\nlines\r\n  and 12345678901 numbers, don't DON'T we'll",
    "def f(x):\n    return {'a': [1, 2.5e-3]}  # <s> not special? </s>",
)


def byte_level(kind: str) -> Any:
    """A byte-level tokenizer that splits text like GPT-2, SmolLM, Llama 3, Qwen 2, Phi-4 or Phi-4-mini.

    Args:
        kind: gpt-2, smollm, llama-bpe, qwen2, phi-4 or phi-4-mini.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    # All kinds learn the same merges, also of digits, so that they differ only in how they split text.
    tokenizer.pre_tokenizer = whole
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 3, trainer)
    if kind == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    elif kind == "phi-4-mini":
        tokenizer.pre_tokenizer = _split(_O200K)
    elif kind != "gpt-2":
        digits = r"\p{N}" if kind == "qwen2" else r"\p{N}{1,3}"
        tokenizer.pre_tokenizer = _split(f"{_LETTERS}|{digits}|{_REST}", is_inverted=kind == "phi-4")
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(["<think>"])
    return wrap(tokenizer, adds_bos=kind == "llama-bpe")


def sentence_piece(prefix: str) -> Any:
    """SentencePiece BPE with byte fallback, as in Llama 2, Mistral and Gemma; BOS is added before every text.

    Args:
        prefix: where a space is added: legacy (before each text between special tokens), first, or never; or gemma:
            never, and runs of spaces and of line ends are tokens by themselves; or phi3: as legacy, and most special
            tokens remove the white space after them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.tokenization_utils_base import generate_merges

    runs = ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁"] if prefix == "gemma" else []
    marks = ["<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"] if prefix == "phi3" else []
    pieces = [*_pieces(), *runs, *marks]
    vocabulary = {text: number for number, text in enumerate(pieces)}
    scores = {text: -float(number) for text, number in vocabulary.items() if number >= len(_SPECIAL) + 256}
    scores |= dict.fromkeys(runs, 0.0)
    merges = generate_merges(vocabulary, scores)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if prefix in ("legacy", "phi3"):
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    elif prefix == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prefix, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(_SPECIAL if prefix != "phi3" else _phi3_tokens())
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in runs])
    return wrap(tokenizer, adds_bos=True)


BYTE_LEVEL = ("gpt-2", "smollm", "llama-bpe", "qwen2", "phi-4", "phi-4-mini")


def wrap(tokenizer: Any, *, adds_bos: bool) -> Any:
    """A transformers tokenizer around a tokenizer of the tokenizers library."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<|im_end|>"
    )


def _split(pattern: str, *, is_inverted: bool = False) -> Any:
    from tokenizers import Regex, pre_tokenizers

    behavior = "removed" if is_inverted else "isolated"
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior=behavior, invert=is_inverted),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _phi3_tokens() -> list[Any]:
    from tokenizers import AddedToken

    plain = [AddedToken(text, special=True) for text in ("<unk>", "<s>", "<|endoftext|>")]
    stripping = ("</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|end|>", "<|assistant|>")
    return [*plain, *(AddedToken(text, rstrip=True, special=True) for text in stripping)]


@cache
def _pieces() -> tuple[str, ...]:
    """Special tokens, bytes, then pieces in descending order of score, single characters last."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁")
    words = ["in ing ng ring string going ping ong"] * 5
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False)
    tokenizer.train_from_iterator([_CORPUS[0], *words], trainer)
    learned = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    # Some pieces result from two different merges; where ng and gi overlap, ng is merged first.
    merged = [text for text, _ in learned if len(text) > 1] + ["ng", "gi"]
    single = [text for text, _ in learned if len(text) == 1]
    return (*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *single)
