"""A byte-level BPE tokenizer with 400 tokens, trained in a moment."""

from functools import cache
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LINES = (
    "### Instruction:\n\n### Response:\n",
    "Pump P-17 in hall 2 reports strong vibration (9.3 mm/s). Name the fault and the action.",
    "Fault: bearing wear. Action: replace the bearing.",
)


def make_tokenizer(*, chat_template: str | None = None, adds_bos: bool = False, adds_eos: bool = False) -> Any:
    """A transformers tokenizer with BOS <s> and EOS <|im_end|> that can encode any text.

    Args:
        chat_template: Jinja text, or None for a tokenizer without chat template.
        adds_bos: add BOS before every text.
        adds_eos: add EOS after every text, as some tokenizers do.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = _trained()
    tokens = ["<s>"] * adds_bos + ["$A"] + ["<|im_end|>"] * adds_eos
    if adds_bos or adds_eos:
        special = [(token, backend.token_to_id(token)) for token in ("<s>", "<|im_end|>")]
        backend.post_processor = processors.TemplateProcessing(single=" ".join(tokens), special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def save_tokenizer(folder: Path, **options: Any) -> None:
    """Save such a tokenizer into a folder, as tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    make_tokenizer(**options).save_pretrained(folder)


def _trained() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(_trained_json())


@cache
def _trained_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES * 3, trainer)
    return str(tokenizer.to_str())
