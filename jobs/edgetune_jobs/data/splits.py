"""Splits the training rows: holds out part of them for evaluation."""

import hashlib
from collections.abc import Sequence

from edgetune_jobs.data.examples import Example
from edgetune_jobs.errors import InvalidInput


def hold_out(examples: Sequence[Example], percent: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Training rows in their order, and the held-out rows: all rows of `percent` of the distinct questions.

    Questions are ranked by a hash of seed and question. So the split depends neither on the order of the rows nor on
    their files, added rows move few others, and rows with the same question are on the same side. The held-out rows
    are in the order of their ranks: the first n of them are a random sample.

    Raises:
        InvalidInput: there are fewer than two distinct questions.
    """
    ranks = {question: _rank(question, seed) for question in {example.question() for example in examples}}
    if len(ranks) < 2:
        raise InvalidInput(
            f"spec.dataset.evalSplitPercent: all {len(examples):,} training rows have the same question, so none can "
            "be held out; add rows with other questions, or set spec.dataset.eval"
        )
    count = min(max(1, round(len(ranks) * percent / 100)), len(ranks) - 1)
    held_out = set(sorted(ranks, key=ranks.__getitem__)[:count])
    train = [example for example in examples if example.question() not in held_out]
    evaluation = sorted(
        (example for example in examples if example.question() in held_out),
        key=lambda example: (ranks[example.question()], example.identity()),
    )
    return train, evaluation


def _rank(question: bytes, seed: int) -> bytes:
    return hashlib.sha256(seed.to_bytes(8, "big") + question).digest()
