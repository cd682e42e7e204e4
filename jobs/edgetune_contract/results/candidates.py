"""The candidates of `quantization: {formats: Auto}`, of which evaluate chooses one.

prepare     finds the formats that the base can be written in, largest first, and how many bytes each has at least
quantize    writes those that gates.maxEdgeBytes does not exclude by these bytes
evaluate    measures them from the largest to the smallest, until the answer is known, and chooses one
publish     publishes the chosen one
"""

from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from edgetune_contract.schema import Count, Model, Name, Share
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.values.text import escaped

AUTO_FORMATS = tuple(each for each in EdgeFormat if each.value != "GGUF-LoRA")
"""The formats among which Auto chooses: whole models. An adapter is an update for a device that has its base."""

MAX_CANDIDATES = 16
MAX_NOTE = 160


class PossibleFormat(Model):
    """A format that the base can be written in."""

    format: EdgeFormat
    """The format."""

    least_bytes: Count
    """Size of its weights, in bytes; the files of the edge model have more."""


class Candidate(Model):
    """A format that evaluate has looked at, and what it found. A figure that was not measured is absent."""

    format: EdgeFormat
    """The format."""

    bytes: Count
    """Size of its files, in bytes; of a format that was not written, the size of its weights."""

    score: Share | None = None
    """Its score, 0 to 1."""

    loss: float | None = None
    """Mean cross-entropy per completion token, in nats."""

    tokens_per_second: float | None = None
    """Tokens generated per second, on the machine that evaluated."""

    peak_memory_bytes: Count | None = None
    """Peak resident set of its process, in bytes."""

    limits: tuple[Name, ...] = ()
    """Limits that it does not hold, by their names in spec.evaluation without gates."""

    note: Annotated[str, Field(max_length=MAX_NOTE), AfterValidator(escaped)] = ""
    """Why it was not measured, or not completely; empty if it was."""

    chosen: bool = False
    """Whether it is the edge model."""


def formats_to_write(
    possible: Sequence[PossibleFormat], most_bytes: int | None, is_written: Callable[[tuple[EdgeFormat, ...]], bool]
) -> tuple[EdgeFormat, ...]:
    """The formats that quantize writes: those whose weights alone do not have more than `most_bytes`.

    If an earlier run with a larger limit has written these and larger ones, it is those: then nothing is written again.
    Empty if the limit excludes all.

    Args:
        possible: the formats that the base can be written in, largest first.
        most_bytes: limit on the size of the edge model.
        is_written: whether the store has the output of a quantize that has written these formats.
    """
    formats = tuple(each.format for each in possible)
    first = next((at for at, each in enumerate(possible) if most_bytes is None or each.least_bytes <= most_bytes), None)
    if first is None:
        return ()
    sets = [formats[begin:] for begin in range(first, -1, -1)]
    return next((each for each in sets if is_written(each)), sets[0])
