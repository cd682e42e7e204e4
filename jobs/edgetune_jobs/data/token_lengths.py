"""Token counts of examples: percentiles, a histogram, truncation."""

import math
from array import array
from dataclasses import dataclass, field

from edgetune_jobs.data.tokenization import TokenizedExample

_SMALLEST_BUCKET = 32


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
        """Number of examples per bucket; upper bounds are 32, 64, 128 … tokens, and empty buckets are omitted."""
        counts: dict[int, int] = {}
        for length in self.lengths:
            bound = max(_SMALLEST_BUCKET, 1 << (length - 1).bit_length())
            counts[bound] = counts.get(bound, 0) + 1
        return [{"upTo": bound, "examples": counts[bound]} for bound in sorted(counts)]


@dataclass
class TokenCount:
    """Token counts of the training or the evaluation rows."""

    lengths: TokenLengths = field(default_factory=TokenLengths)
    kept: int = 0
    """Tokens after truncation."""

    longest_kept: int = 0
    """Tokens of the longest example after truncation."""

    largest_id: int = 0

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
