"""The gates: limits on scores, size, speed and memory that a model must meet to be published."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgetune_contract.evaluation import EdgeBudget, EvaluationSpec, Gates
from edgetune_contract.request import Scores
from edgetune_contract.results.candidates import Candidate
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.values.quantities import parse_bytes
from edgetune_jobs.wording import count

# Scores are quotients of small integers: smaller differences are rounding errors.
_TOLERANCE = 1e-9
_NO_SCORE = "no evaluation row has an expected keyword or a reference answer; add some, or remove the gate"
_NOT_MEASURED = "not measured"


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


@dataclass(frozen=True)
class GateCheck:
    """One gate of the spec, checked for one model."""

    gate: str
    """Its name below spec.evaluation, such as minScore or edge.minTokensPerSecond."""

    model: str
    """The model that it is about, as in a sentence: "the edge model"."""

    measured: str
    """The measured value with its unit; "not measured" if there is none."""

    limit: str
    """The limit with its unit, and whether it is the least or the most."""

    refusal: str | None = None
    """One sentence with the figure and the limit if the gate fails; None if it passes."""


def judge(evaluation: EvaluationSpec, figures: Figures) -> tuple[str, ...]:
    """One sentence for each gate that fails, with the figure and the limit; empty if all pass.

    A gate on a missing figure fails. Speed and memory are checked for the first format only.
    """
    return tuple(check.refusal for check in check_gates(evaluation, figures) if check.refusal is not None)


def check_gates(evaluation: EvaluationSpec, figures: Figures) -> tuple[GateCheck, ...]:
    """Each gate that the spec sets, with the figure, the limit and the verdict."""
    return tuple(_checks(evaluation, figures))


def _checks(evaluation: EvaluationSpec, figures: Figures) -> Iterator[GateCheck]:
    gates, scores = evaluation.gates, figures.scores
    if gates.min_improvement is not None:
        yield _check_improvement(gates.min_improvement, scores)
    yield from _check_edge(gates, "the edge model", scores.tuned, scores.edge, figures.edge_bytes)
    if evaluation.edge is not None:
        yield from _check_budget(evaluation.edge, figures.edge)
    for edge in figures.further:
        name = f"the edge model in {edge.edge_format}"
        yield from _check_edge(gates, name, scores.tuned, edge.score, edge.bytes)


def judge_candidates(evaluation: EvaluationSpec, candidates: Sequence[Candidate], scores: Scores) -> tuple[str, ...]:
    """The same for the candidates of formats Auto: empty if one was chosen, else what each of them lacks."""
    if any(each.chosen for each in candidates):
        return ()
    if untrained := judge_training(evaluation.gates, scores):
        return untrained
    refusals: list[str] = []
    for each in candidates:
        if each.note:
            refusals.append(f"{each.format}: {each.note}")
        else:
            refusals += judge_resources(evaluation, each) or judge_quality(evaluation.gates, each, scores.tuned)
    return tuple(refusals)


def judge_training(gates: Gates, scores: Scores) -> tuple[str, ...]:
    """The same for the gates that no format can change: what training gained."""
    if gates.min_improvement is None:
        return ()
    refusal = _check_improvement(gates.min_improvement, scores).refusal
    return () if refusal is None else (refusal,)


def judge_resources(evaluation: EvaluationSpec, candidate: Candidate) -> tuple[str, ...]:
    """The same for what a candidate takes: bytes, memory and speed. Limits on what was not measured are left out."""
    budget, limit = evaluation.edge or EdgeBudget(), evaluation.gates.max_edge_bytes
    refusals = (
        _check_bytes(limit, candidate.format.value, candidate.bytes).refusal if limit is not None else None,
        _refuse_peak("edge.memory", budget.memory, candidate),
        _refuse_peak("edge.maxPeakMemory", budget.max_peak_memory, candidate),
        _refuse_speed(budget.min_tokens_per_second, candidate),
    )
    return tuple(refusal for refusal in refusals if refusal is not None)


def judge_quality(gates: Gates, candidate: Candidate, tuned: float | None) -> tuple[str, ...]:
    """The same for the score of a candidate.

    Args:
        gates: the gates.
        candidate: a candidate that was scored.
        tuned: score of the tuned model; None if it has none.
    """
    of_score = gates.model_copy(update={"max_edge_bytes": None})
    checks = _check_edge(of_score, candidate.format.value, tuned, candidate.score, candidate.bytes)
    return tuple(check.refusal for check in checks if check.refusal is not None)


def _refuse_peak(gate: str, limit: str | None, candidate: Candidate) -> str | None:
    peak = candidate.peak_memory_bytes
    if limit is None or peak is None or peak <= parse_bytes(limit):
        return None
    was_stopped = candidate.tokens_per_second is None
    used = "was stopped at" if was_stopped else "used"
    return f"{gate}: {candidate.format} {used} {peak:,} bytes of memory; {_bytes_limit(limit)}"


def _refuse_speed(limit: float | None, candidate: Candidate) -> str | None:
    speed = candidate.tokens_per_second
    if limit is None or speed is None or speed >= limit:
        return None
    digits = _digits(1, speed, limit)
    return (
        f"edge.minTokensPerSecond: {candidate.format} generates {speed:.{digits}f} tokens/s; the limit is "
        f"{limit:.{digits}f} tokens/s"
    )


def _check_edge(gates: Gates, name: str, tuned: float | None, score: float | None, size: int) -> Iterator[GateCheck]:
    """Gates that apply to the edge model in each format."""
    if gates.min_score is not None:
        yield _check_score(gates.min_score, name, score)
    if gates.max_drop is not None:
        yield _check_drop(gates.max_drop, name, tuned, score)
    if gates.max_edge_bytes is not None:
        yield _check_bytes(gates.max_edge_bytes, name, size)


def _check_score(limit: float, name: str, score: float | None) -> GateCheck:
    bound = f"at least {limit:g}"
    if score is None:
        return GateCheck("minScore", name, _NOT_MEASURED, bound, f"minScore: {name} has no score: {_NO_SCORE}")
    digits = _digits(3, score, limit)
    refusal = f"minScore: {name} scores {score:.{digits}f}; the limit is {limit:.{digits}f}"
    passes = score >= limit - _TOLERANCE
    return GateCheck("minScore", name, f"{score:.{digits}f}", bound, None if passes else refusal)


def _check_improvement(limit: float, scores: Scores) -> GateCheck:
    gate, name, bound = "minImprovement", "the tuned model", f"at least {limit:g} above the base model"
    if scores.tuned is None or scores.base is None:
        refusal = f"{gate}: the base and the tuned model have no scores: {_NO_SCORE}"
        return GateCheck(gate, name, _NOT_MEASURED, bound, refusal)
    improvement = scores.tuned - scores.base
    digits = _digits(3, improvement, limit)
    side = "above" if improvement >= 0 else "below"
    measured = f"{abs(improvement):.{digits}f} {side}"
    refusal = (
        f"{gate}: the tuned model scores {scores.tuned:.3f}, {measured} "
        f"the base model's {scores.base:.3f}; the limit is {limit:.{digits}f}"
    )
    return GateCheck(gate, name, measured, bound, None if improvement >= limit - _TOLERANCE else refusal)


def _check_drop(limit: float, name: str, tuned: float | None, score: float | None) -> GateCheck:
    bound = f"at most {limit:g} below the tuned model"
    if tuned is None or score is None:
        refusal = f"maxDrop: the tuned model and {name} have no scores: {_NO_SCORE}"
        return GateCheck("maxDrop", name, _NOT_MEASURED, bound, refusal)
    drop = tuned - score
    digits = _digits(3, drop, limit)
    refusal = (
        f"maxDrop: {name} scores {score:.3f}, {drop:.{digits}f} below the tuned model's {tuned:.3f}; "
        f"the limit is {limit:.{digits}f}"
    )
    measured = f"{abs(drop):.{digits}f} {'below' if drop >= 0 else 'above'}"
    return GateCheck("maxDrop", name, measured, bound, None if drop <= limit + _TOLERANCE else refusal)


def _check_bytes(limit: str, name: str, size: int) -> GateCheck:
    refusal = f"maxEdgeBytes: {name} has {size:,} bytes; {_bytes_limit(limit)}"
    passes = size <= parse_bytes(limit)
    return GateCheck("maxEdgeBytes", name, f"{size:,} bytes", _most(limit), None if passes else refusal)


def _check_budget(budget: EdgeBudget, edge: EdgeMeasurement | None) -> Iterator[GateCheck]:
    name = "the edge model"
    if edge is None:
        missing = "edge: the edge model was not measured; run the stage evaluate again"
        yield GateCheck("edge", name, _NOT_MEASURED, "a measurement", missing)
        return
    peak = f"{edge.peak_memory_bytes:,} bytes"
    if (limit := budget.memory) is not None:
        refusal = f"edge.memory: {_memory_use(limit, edge)}" if edge.over_memory else None
        yield GateCheck("edge.memory", name, peak, _most(limit), refusal)
    if budget.min_tokens_per_second is not None:
        yield _check_speed(budget.min_tokens_per_second, name, edge)
    if (limit := budget.max_peak_memory) is not None:
        passes = edge.peak_memory_bytes <= parse_bytes(limit)
        refusal = None if passes else f"edge.maxPeakMemory: {_memory_use(limit, edge)}"
        yield GateCheck("edge.maxPeakMemory", name, peak, _most(limit), refusal)


def _check_speed(limit: float, name: str, edge: EdgeMeasurement) -> GateCheck:
    gate, bound, speed = "edge.minTokensPerSecond", f"at least {limit:g} tokens/s", edge.generation_tokens_per_second
    if speed is None:  # the model was stopped for its memory: the gate on memory refuses it
        return GateCheck(gate, name, _NOT_MEASURED, bound)
    digits = _digits(1, speed, limit)
    refusal = (
        f"{gate}: {name} generates {speed:.{digits}f} tokens/s on "
        f"{count(edge.threads, 'thread')} of {edge.cpu}; the limit is {limit:.{digits}f} tokens/s"
    )
    return GateCheck(gate, name, f"{speed:.{digits}f} tokens/s", bound, None if speed >= limit else refusal)


def _memory_use(limit: str, edge: EdgeMeasurement) -> str:
    baseline = edge.baseline_memory_bytes
    before = f", {baseline:,} of them before the model was loaded" if baseline is not None else ""
    return (
        f"the edge model used {edge.peak_memory_bytes:,} bytes of memory in {edge.runtime}{before}; "
        f"{_bytes_limit(limit)}"
    )


def _bytes_limit(limit: str) -> str:
    return f"the limit is {limit} ({parse_bytes(limit):,} bytes)"


def _most(limit: str) -> str:
    return f"at most {limit} ({parse_bytes(limit):,} bytes)"


def _digits(least: int, figure: float, limit: float) -> int:
    """Decimals at which a figure and its limit differ: "0.020 is above 0.020" would explain nothing."""
    return next((digits for digits in range(least, 9) if f"{figure:.{digits}f}" != f"{limit:.{digits}f}"), 9)
