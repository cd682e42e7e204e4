"""The rule by which formats Auto chooses, on values."""

import random
from functools import reduce

import pytest

from edgetune_contract.request import ModelScores
from edgetune_contract.results.candidates import Candidate
from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.evaluation.choice import better_of, is_known


def candidate(score: float | None = None, loss: float | None = None, size: int = 1) -> Candidate:
    return Candidate(format=EdgeFormat.GGUF_Q8_0, bytes=size, score=score, loss=loss)


def source(score: float | None = None, loss: float | None = None) -> ModelScores:
    return ModelScores(exact_match=score, loss=loss)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (candidate(0.9, loss=2.0, size=9), candidate(0.8, loss=1.0, size=1)),
        (candidate(0.9, loss=1.0, size=9), candidate(0.9, loss=2.0, size=1)),
        (candidate(0.9, loss=1.0, size=1), candidate(0.9, loss=1.0, size=9)),
        (candidate(0.1 + 0.2, loss=1.0), candidate(0.3, loss=2.0)),
        (candidate(0.3, loss=1.0), candidate(0.1 + 0.2, loss=2.0)),
        (candidate(loss=1.0, size=9), candidate(loss=2.0, size=1)),
    ],
    ids=["score", "loss", "size", "a rounding error", "a rounding error of the other", "text"],
)
def test_a_higher_score_wins_then_a_lower_loss_then_fewer_bytes(better: Candidate, worse: Candidate) -> None:
    assert better_of(better, worse) is better
    assert better_of(worse, better) is better
    assert better_of(None, worse) is worse


@pytest.mark.parametrize(
    ("best", "quantized_from", "known"),
    [
        (None, source(0.9), False),
        (candidate(0.9), source(0.9), True),
        (candidate(0.95), source(0.9), True),
        (candidate(0.3), source(0.1 + 0.2), True),
        (candidate(0.89), source(0.9), False),
        (candidate(0.99), None, False),
        (candidate(1.0), None, True),
        (candidate(0.0, loss=1.0), source(0.0, loss=0.5), True),
        (candidate(loss=1.0), source(loss=1.0), True),
        (candidate(loss=1.1), source(loss=1.0), False),
        (candidate(loss=1.0), None, False),
        (candidate(), source(), False),
    ],
)
def test_the_answer_is_known_once_a_candidate_that_fits_scores_as_its_source(
    best: Candidate | None, quantized_from: ModelScores | None, known: bool
) -> None:
    assert is_known(best, quantized_from) is known


def test_stopping_early_leaves_a_better_candidate_out_only_if_the_best_one_has_lost_nothing() -> None:
    numbers = random.Random(7)
    for _ in range(500):
        quantized_from = source(numbers.randint(0, 10) / 10, loss=1.0)
        rows = [candidate(numbers.randint(0, 10) / 10, loss=numbers.random(), size=9 - at) for at in range(6)]
        best, left = rows[0], rows[1:]
        while left and not is_known(best, quantized_from):
            best, left = better_of(best, left[0]), left[1:]
        has_lost_nothing = (best.score or 0) >= (quantized_from.score or 0)
        assert best is reduce(better_of, rows) or has_lost_nothing
        assert not left or has_lost_nothing
