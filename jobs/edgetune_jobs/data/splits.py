"""Holding out part of the training rows for evaluation."""

import hashlib
from collections.abc import Sequence

from edgetune_jobs.data.examples import Example
from edgetune_jobs.errors import InvalidInput


def hold_out(examples: Sequence[Example], percent: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Training rows in their order, and `percent` of the distinct questions, drawn by seed, with all of their rows.

    A question's lot is a hash of the seed and the question itself. So the split depends on neither the order of the
    rows nor the files they lie in, adding rows moves few of the others, and rows that ask the same stay on one side.
    Held-out rows come in the order of their lots: the first n of them are a random sample.

    Raises:
        InvalidInput: there are fewer than two different questions.
    """
    lots = {question: _lot(question, seed) for question in {example.question() for example in examples}}
    if len(lots) < 2:
        raise InvalidInput(
            f"spec.dataset.evalSplitPercent: all {len(examples):,} training rows ask the same question, so none can be "
            "held out: add rows with other questions, or name evaluation rows in spec.dataset.eval"
        )
    count = min(max(1, round(len(lots) * percent / 100)), len(lots) - 1)
    held_out = set(sorted(lots, key=lots.__getitem__)[:count])
    train = [example for example in examples if example.question() not in held_out]
    evaluation = sorted(
        (example for example in examples if example.question() in held_out),
        key=lambda example: (lots[example.question()], example.identity()),
    )
    return train, evaluation


def _lot(question: bytes, seed: int) -> bytes:
    return hashlib.sha256(seed.to_bytes(8, "big") + question).digest()
