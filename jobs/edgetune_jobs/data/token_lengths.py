"""Token counts of examples: percentiles, a histogram, truncation."""

import math
from array import array
from dataclasses import dataclass, field

from edgetune_jobs.data.tokenization import TokenizedExample

_BUCKETS_FOR_TWICE_THE_LENGTH = 32


@dataclass
class TokenLengths:
    """Lengths of examples before truncation, in tokens, and the number of truncated examples."""

    lengths: "array[int]" = field(default_factory=lambda: array("L"))
    truncated: int = 0

    def add(self, length: int, *, is_truncated: bool) -> None:
        """Count one example."""
        self.lengths.append(length)
        self.truncated += is_truncated

    @property
    def truncated_share(self) -> float:
        """Share of truncated examples, 0 to 1."""
        return self.truncated / len(self.lengths) if self.lengths else 0.0

    @property
    def longest(self) -> int:
        """Tokens of the longest example; 0 if there are no examples."""
        return max(self.lengths, default=0)

    def percentiles(self, *percents: int) -> dict[str, int]:
        """Nearest-rank percentiles, keyed by name such as p50."""
        ordered = sorted(self.lengths)
        ranks = {percent: max(0, math.ceil(len(ordered) * percent / 100) - 1) for percent in percents}
        return {f"p{percent}": ordered[rank] if ordered else 0 for percent, rank in ranks.items()}

    def histogram(self) -> list[dict[str, int]]:
        """Number of examples per bucket of more than `above` and at most `upTo` tokens; empty buckets are omitted.

        Buckets are 1 token wide up to 64 tokens, 2 up to 128, 4 up to 256, and so on: wide ones consist of narrow ones.
        """
        counts: dict[tuple[int, int], int] = {}
        for length in self.lengths:
            power = (1 << max(length - 1, 0).bit_length()) >> 1  # the largest power of two below the length
            width = max(1, power // _BUCKETS_FOR_TWICE_THE_LENGTH)
            bound = max(width, -(-length // width) * width)
            counts[bound - width, bound] = counts.get((bound - width, bound), 0) + 1
        return [{"above": above, "upTo": bound, "examples": counts[above, bound]} for above, bound in sorted(counts)]


@dataclass
class TokenCount:
    """Token counts of the training or the evaluation rows."""

    lengths: TokenLengths = field(default_factory=TokenLengths)
    kept: int = 0
    """Tokens after truncation."""

    longest_kept: int = 0
    """Tokens of the longest example after truncation."""

    largest_id: int = 0
    repeated_starts: int = 0
    """Examples that began with tokens such as BOS twice, which are there once now."""

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.lengths.lengths)

    def add(self, example: TokenizedExample) -> None:
        """Count one example."""
        ids = example.input_ids
        self.lengths.add(example.full_length, is_truncated=example.is_truncated)
        self.kept += len(ids)
        self.longest_kept = max(self.longest_kept, len(ids))
        self.largest_id = max(self.largest_id, *ids)
        self.repeated_starts += example.had_repeated_start
