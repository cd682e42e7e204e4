"""What prepare and `edgetune data check` say about rows: warnings, and tokens that the base does not support."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgetune_jobs.data import quality
from edgetune_jobs.data.chat.shared import differing_context, with_shared_context
from edgetune_jobs.data.division import DividedRows
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.token_lengths import TokenCount
from edgetune_jobs.data.tokenization import SpecialTokens
from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.wording import count


@dataclass(frozen=True)
class TokenLimits:
    """What a base model supports; None for what its configuration does not say."""

    vocabulary: int | None
    """Rows of the embedding; token ids are smaller than this."""

    max_positions: int | None
    """Maximum sequence length in tokens."""


def row_warnings(
    rows: DividedRows,
    prompt_format: PromptFormat,
    train: TokenCount,
    evaluation: TokenCount,
    *,
    max_length: int,
    unused_fields: Mapping[str, int],
) -> list[str]:
    """All warnings about rows whose tokens are known.

    Args:
        rows: the rows.
        prompt_format: the spec's template.
        train: tokens of the training rows.
        evaluation: tokens of the evaluation rows.
        max_length: spec.training.maxLength.
        unused_fields: fields of messages that the chat template does not use, with the number of messages.
    """
    return [
        *rows.warnings,
        *quality.unused_message_fields(unused_fields),
        *quality.repeated_conversations(len(rows.train), train.examples),
        *context_warnings(rows, prompt_format),
        *truncation_warning(train, max_length),
        *repeated_start_warning(train.repeated_starts + evaluation.repeated_starts),
    ]


def context_warnings(rows: DividedRows, prompt_format: PromptFormat) -> list[str]:
    """A warning about system messages or tools that are in some training rows only."""
    return differing_context(with_shared_context(prompt_format, rows.train), rows.train)


def truncation_warning(train: TokenCount, max_length: int) -> list[str]:
    """A warning about training examples that are longer than `max_length`."""
    lengths = train.lengths
    if not lengths.truncated:
        return []
    return [
        f"{lengths.truncated:,} of {train.examples:,} training examples ({lengths.truncated_share:.1%}) exceed "
        f"spec.training.maxLength {max_length:,} and are truncated, so their ends are not learned; "
        f"the longest has {lengths.longest:,} tokens"
    ]


def repeated_start_warning(examples: int) -> list[str]:
    """A warning about examples that began with BOS twice, of which one was left out."""
    if not examples:
        return []
    return [
        f"{count(examples, 'example begins', 'examples begin')} with the same token (BOS) from two places, the "
        "template or the row and the tokenizer: it is used once, in training, evaluation and inference"
    ]


def check_tokens(limits: TokenLimits, special: SpecialTokens, *counts: TokenCount) -> None:
    """Check that the base supports the tokens of rows.

    Raises:
        InvalidInput: a token ID, also that of the pad token, is beyond its embedding, or a sequence is too long for it.
    """
    vocabulary = limits.vocabulary
    largest = max(each.largest_id for each in counts)
    if vocabulary is not None and largest >= vocabulary:
        raise InvalidInput(
            f"{BASE_FIELD}: its tokenizer produces token {largest}, but its embedding has {vocabulary:,} rows: "
            "tokenizer and weights belong to different models; copy both from the same one"
        )
    if vocabulary is not None and special.pad_id >= vocabulary:
        raise InvalidInput(
            f"{BASE_FIELD}: its tokenizer pads with token {special.pad_id} ({special.pad}), but its embedding has "
            f"{vocabulary:,} rows: set pad_token in tokenizer_config.json to a token in the embedding, such as "
            f"{special.eos}, or remove it"
        )
    check_positions(limits, max(each.longest_kept for each in counts))


def check_positions(limits: TokenLimits, longest_example: int) -> None:
    """Check that the base supports examples as long as those of training, in tokens.

    Raises:
        InvalidInput: it does not.
    """
    if limits.max_positions is not None and longest_example > limits.max_positions:
        raise InvalidInput(
            f"spec.training.maxLength: the longest example has {longest_example:,} tokens, but the base model supports "
            f"at most {limits.max_positions:,}: set maxLength to {limits.max_positions} or less"
        )
