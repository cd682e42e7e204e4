"""The gates: limits on scores, size, speed and memory that a model must meet to be published."""

from dataclasses import dataclass

from edgetune_contract.evaluation import EdgeBudget, EvaluationSpec, Gates
from edgetune_contract.measurement import EdgeMeasurement
from edgetune_contract.request import Scores
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.values.quantities import parse_bytes
from edgetune_jobs.wording import count

# Scores are quotients of small integers: smaller differences are rounding errors.
_TOLERANCE = 1e-9
_NO_SCORE = "no evaluation row has an expected keyword or a reference answer; add some, or remove the gate"


@dataclass(frozen=True)
class FurtherEdge:
    """Figures of an edge model in a format after the first."""

    edge_format: EdgeFormat
    score: float | None
    bytes: int
    """Size of its files, in bytes."""


@dataclass(frozen=True)
class Figures:
    """Figures that the gates are checked against."""

    scores: Scores
    edge_bytes: int
    """Size of the edge model's files, in bytes."""

    edge: EdgeMeasurement | None = None
    """Speed and memory of the edge model; None if it was not measured."""

    further: tuple[FurtherEdge, ...] = ()
    """Edge models in further formats, which are published too."""


def judge(evaluation: EvaluationSpec, figures: Figures) -> tuple[str, ...]:
    """One sentence for each gate that fails, with the figure and the limit; empty if all pass.

    A gate on a missing figure fails. Speed and memory are checked for the first format only.
    """
    gates, scores = evaluation.gates, figures.scores
    refusals = [
        _judge_improvement(gates.min_improvement, scores),
        *_judge_edge(gates, "the edge model", scores.tuned, scores.edge, figures.edge_bytes),
        *_judge_budget(evaluation.edge, figures.edge),
    ]
    for edge in figures.further:
        refusals += _judge_edge(gates, f"the edge model in {edge.edge_format}", scores.tuned, edge.score, edge.bytes)
    return tuple(refusal for refusal in refusals if refusal is not None)


def _judge_edge(gates: Gates, name: str, tuned: float | None, score: float | None, size: int) -> tuple[str | None, ...]:
    """Gates that apply to the edge model in each format."""
    return (
        _judge_score(gates.min_score, name, score),
        _judge_drop(gates.max_drop, name, tuned, score),
        _judge_bytes(gates.max_edge_bytes, name, size),
    )


def _judge_score(limit: float | None, name: str, score: float | None) -> str | None:
    if limit is None:
        return None
    if score is None:
        return f"minScore: {name} has no score: {_NO_SCORE}"
    if score >= limit - _TOLERANCE:
        return None
    digits = _digits(3, score, limit)
    return f"minScore: {name} scores {score:.{digits}f}; the limit is {limit:.{digits}f}"


def _judge_improvement(limit: float | None, scores: Scores) -> str | None:
    if limit is None:
        return None
    if scores.tuned is None or scores.base is None:
        return f"minImprovement: the base and the tuned model have no scores: {_NO_SCORE}"
    improvement = scores.tuned - scores.base
    if improvement >= limit - _TOLERANCE:
        return None
    digits = _digits(3, improvement, limit)
    side = "above" if improvement >= 0 else "below"
    return (
        f"minImprovement: the tuned model scores {scores.tuned:.3f}, {abs(improvement):.{digits}f} {side} "
        f"the base model's {scores.base:.3f}; the limit is {limit:.{digits}f}"
    )


def _judge_drop(limit: float | None, name: str, tuned: float | None, score: float | None) -> str | None:
    if limit is None:
        return None
    if tuned is None or score is None:
        return f"maxDrop: the tuned model and {name} have no scores: {_NO_SCORE}"
    drop = tuned - score
    if drop <= limit + _TOLERANCE:
        return None
    digits = _digits(3, drop, limit)
    return (
        f"maxDrop: {name} scores {score:.3f}, {drop:.{digits}f} below the tuned model's {tuned:.3f}; "
        f"the limit is {limit:.{digits}f}"
    )


def _judge_bytes(limit: str | None, name: str, size: int) -> str | None:
    if limit is None or size <= parse_bytes(limit):
        return None
    return f"maxEdgeBytes: {name} has {size:,} bytes; {_bytes_limit(limit)}"


def _judge_budget(budget: EdgeBudget | None, edge: EdgeMeasurement | None) -> tuple[str | None, ...]:
    if budget is None:
        return ()
    if edge is None:
        return ("edge: the edge model was not measured; run the stage evaluate again",)
    return (
        _judge_memory(budget.memory, edge),
        _judge_speed(budget.min_tokens_per_second, edge),
        _judge_peak(budget.max_peak_memory, edge),
    )


def _judge_memory(limit: str | None, edge: EdgeMeasurement) -> str | None:
    if limit is None or not edge.over_memory:
        return None
    return f"edge.memory: {_memory_use(limit, edge)}"


def _judge_speed(limit: float | None, edge: EdgeMeasurement) -> str | None:
    speed = edge.generation_tokens_per_second
    # A model that was stopped for its memory has no speed; _judge_memory refuses it.
    if limit is None or speed is None or speed >= limit:
        return None
    digits = _digits(1, speed, limit)
    return (
        f"edge.minTokensPerSecond: the edge model generates {speed:.{digits}f} tokens/s on "
        f"{count(edge.threads, 'thread')} of {edge.cpu}; the limit is {limit:.{digits}f} tokens/s"
    )


def _judge_peak(limit: str | None, edge: EdgeMeasurement) -> str | None:
    if limit is None or edge.peak_memory_bytes <= parse_bytes(limit):
        return None
    return f"edge.maxPeakMemory: {_memory_use(limit, edge)}"


def _memory_use(limit: str, edge: EdgeMeasurement) -> str:
    baseline = edge.baseline_memory_bytes
    before = f", {baseline:,} of them before the model was loaded" if baseline is not None else ""
    return (
        f"the edge model used {edge.peak_memory_bytes:,} bytes of memory in {edge.runtime}{before}; "
        f"{_bytes_limit(limit)}"
    )


def _bytes_limit(limit: str) -> str:
    return f"the limit is {limit} ({parse_bytes(limit):,} bytes)"


def _digits(least: int, figure: float, limit: float) -> int:
    """Decimals at which a figure and its limit differ: "0.020 is above 0.020" would explain nothing."""
    return next((digits for digits in range(least, 9) if f"{figure:.{digits}f}" != f"{limit:.{digits}f}"), 9)
