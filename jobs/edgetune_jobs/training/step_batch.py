"""The examples of one optimizer step, and how they are split into forward passes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from edgetune_contract.training import Layout

IGNORED_LABEL = -100
"""Label of tokens that are not learned."""

Example = Mapping[str, Sequence[int]]
"""input_ids and labels of one example."""


@dataclass(frozen=True)
class StepBatch:
    """The examples of one step.

    A class of its own instead of a list: accelerate would look at each token of a list.
    """

    examples: Sequence[Example]

    @property
    def learned_tokens(self) -> int:
        """Number of tokens whose prediction is learned; the first token of an example has no prediction."""
        predicted = (example["labels"][1:] for example in self.examples)
        return sum(len(labels) - labels.count(IGNORED_LABEL) for labels in predicted)

    def share(self, rank: int, size: int) -> "StepBatch":
        """The examples of one of `size` ranks: about the same number of examples, and of tokens, as of any other.

        The longest examples are dealt first, to the ranks in order and then back again.
        """
        by_length = sorted(range(len(self.examples)), key=lambda index: -_length(self.examples[index]))
        mine = [
            index
            for position, index in enumerate(by_length)
            if rank == (position % size if position // size % 2 == 0 else size - 1 - position % size)
        ]
        return StepBatch([self.examples[index] for index in sorted(mine)])

    def split(self, layout: Layout, micro_batch_size: int, max_length: int) -> Iterator[list[Example]]:
        """The examples of each forward pass.

        Args:
            layout: Packed fills up to `micro_batch_size` sequences of `max_length` tokens, longest examples first;
                otherwise a forward pass has at most `micro_batch_size` examples, all about the same number.
            micro_batch_size: see layout.
            max_length: tokens of a sequence.
        """
        if layout is Layout.PACKED:
            yield from self._fill(micro_batch_size * max_length)
            return
        count = len(self.examples)
        passes = ceil(count / micro_batch_size)
        bounds = [round(count * index / passes) for index in range(passes + 1)] if passes else []
        for begin, end in pairwise(bounds):
            yield list(self.examples[begin:end])

    def _fill(self, capacity: int) -> Iterator[list[Example]]:
        """First-fit decreasing: each example goes to the first forward pass that has room for it."""
        passes: list[tuple[list[Example], int]] = []
        for example in sorted(self.examples, key=_length, reverse=True):
            for index, (members, tokens) in enumerate(passes):
                if tokens + _length(example) <= capacity:
                    passes[index] = ([*members, example], tokens + _length(example))
                    break
            else:
                passes.append(([example], _length(example)))
        yield from (members for members, _ in passes)


def _length(example: Example) -> int:
    return len(example["input_ids"])
