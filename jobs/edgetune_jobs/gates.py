"""The gates: limits that a model must hold before it is published, judged on the figures of its run."""

from dataclasses import dataclass

from edgetune_contract.request import Scores
from edgetune_contract.spec import Gates, parse_bytes

# Scores are quotients of small integers: differences below this are rounding.
_TOLERANCE = 1e-9
_NO_SCORE = "no evaluation row has an expected keyword or a reference answer; add some, or take the gate away"


@dataclass(frozen=True)
class Figures:
    """What the gates judge."""

    scores: Scores
    edge_bytes: int
    """Size of the edge model's files, in bytes."""


def judge(gates: Gates, figures: Figures) -> tuple[str, ...]:
    """One sentence for each gate that does not hold, with the figure and the limit; empty when all hold.

    A gate on a score that does not exist does not hold.
    """
    scores = figures.scores
    refusals = (
        _judge_score(gates.min_score, scores),
        _judge_improvement(gates.min_improvement, scores),
        _judge_drop(gates.max_drop, scores),
        _judge_bytes(gates.max_edge_bytes, figures.edge_bytes),
    )
    return tuple(refusal for refusal in refusals if refusal is not None)


def _judge_score(limit: float | None, scores: Scores) -> str | None:
    if limit is None:
        return None
    if scores.edge is None:
        return f"minScore: the edge model has no score: {_NO_SCORE}"
    if scores.edge >= limit - _TOLERANCE:
        return None
    digits = _digits(3, scores.edge, limit)
    return f"minScore: the edge model scores {scores.edge:.{digits}f}; the limit is {limit:.{digits}f}"


def _judge_improvement(limit: float | None, scores: Scores) -> str | None:
    if limit is None:
        return None
    if scores.tuned is None or scores.base is None:
        return f"minImprovement: the base and the tuned model have no scores: {_NO_SCORE}"
    points = 100 * (scores.tuned - scores.base)
    if points >= limit - _TOLERANCE:
        return None
    digits = _digits(1, points, limit)
    side = "above" if points >= 0 else "below"
    return (
        f"minImprovement: the tuned model scores {scores.tuned:.3f}, {abs(points):.{digits}f} points {side} "
        f"the base model's {scores.base:.3f}; the limit is {limit:.{digits}f} points"
    )


def _judge_drop(limit: float | None, scores: Scores) -> str | None:
    if limit is None:
        return None
    if scores.tuned is None or scores.edge is None:
        return f"maxDrop: the tuned and the edge model have no scores: {_NO_SCORE}"
    drop = scores.tuned - scores.edge
    if drop <= limit + _TOLERANCE:
        return None
    digits = _digits(3, drop, limit)
    return (
        f"maxDrop: the edge model scores {scores.edge:.3f}, {drop:.{digits}f} below the tuned model's "
        f"{scores.tuned:.3f}; the limit is {limit:.{digits}f}"
    )


def _judge_bytes(limit: str | None, edge_bytes: int) -> str | None:
    if limit is None or edge_bytes <= parse_bytes(limit):
        return None
    return f"maxEdgeBytes: the edge model has {edge_bytes:,} bytes; the limit is {limit}, {parse_bytes(limit):,} bytes"


def _digits(least: int, figure: float, limit: float) -> int:
    """Decimals that tell a figure from its limit: "0.020 is above 0.020" would explain nothing."""
    return next((digits for digits in range(least, 9) if f"{figure:.{digits}f}" != f"{limit:.{digits}f}"), 9)
