"""Chooses the edge model of `formats: Auto`: measures one candidate after the other until the answer is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgetune_contract.pipeline import MERGED, TUNED
from edgetune_contract.request import ModelScores
from edgetune_contract.results.candidates import AUTO_FORMATS, MAX_NOTE, Candidate
from edgetune_contract.results.measurement import ModelSpeed
from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.errors import TrainingDiverged
from edgetune_jobs.evaluation.choice import better_of, is_known
from edgetune_jobs.evaluation.edge.budget import Measured, Measuring
from edgetune_jobs.evaluation.edge.child_process import CannotRun, CannotStart, OutOfMemory
from edgetune_jobs.evaluation.edge.loading_check import try_loading
from edgetune_jobs.evaluation.edge.runtimes import RUNTIMES, Runtime, missing_runtime
from edgetune_jobs.evaluation.gates import judge_quality, judge_resources, judge_training
from edgetune_jobs.evaluation.scoring import compare
from edgetune_jobs.stage import StageContext

KNOWN = "the answer was known before"
_CANNOT_PASS = "no candidate can hold minImprovement"  # noqa: S105 - no password


@dataclass(frozen=True)
class Choice:
    """What was measured, and the answer."""

    candidates: tuple[Candidate, ...]
    """All candidates, largest first."""

    chosen: EdgeFormat | None
    """None if no candidate holds all limits."""

    measured: Measured
    """Speed and memory of the chosen one, if the spec has an edge budget."""

    warnings: tuple[str, ...]


class Choosing:
    """One choice. Used once."""

    def __init__(
        self,
        context: StageContext,
        known: dict[str, ModelScores],
        prompt: Sequence[int],
        score: Callable[[EdgeFormat], ModelScores],
    ) -> None:
        """
        Args:
            context: the context of evaluate, with the candidates among its inputs.
            known: scores of base, tuned and merged, as far as they were scored.
            prompt: token ids, to measure speed and memory.
            score: scores a candidate on all rows; one that cannot be scored here is not chosen.

        """
        budget = context.request.parameters.evaluation.edge
        self._context, self._prompt, self._score = context, prompt, score
        self._evaluation = context.request.parameters.evaluation
        self._measuring = None if budget is None else Measuring(context, budget, tuple(prompt))
        self._tuned = known[TUNED].score if TUNED in known else None
        self._source = known.get(MERGED, known.get(TUNED))
        self._is_lost = bool(judge_training(self._evaluation.gates, compare(known, 0)))
        self._best: Candidate | None = None
        self._speeds: dict[EdgeFormat, ModelSpeed] = {}
        self._warnings: list[str] = []

    def run(self) -> Choice:
        """Measure candidates until the answer is known.

        Raises:
            InvalidInput: scoring takes too long.
            TransientError: a process was killed from outside.
            Interrupted: `context.stop` was set.
        """
        looked_at = []
        for candidate in self._candidates():
            looked_at.append(self._look_at(candidate))
            self._context.discard(candidate.format.artifact)
        chosen = None if self._best is None else self._best.format
        candidates = tuple(
            each.model_copy(update={"chosen": True}) if each.format is chosen else each for each in looked_at
        )
        measured = Measured() if self._measuring is None else self._measuring.report(self._speed_of(chosen))
        return Choice(candidates, chosen, measured, (*self._warnings, *self._missing_runtimes()))

    def _candidates(self) -> list[Candidate]:
        """All candidates, largest first; those that were not written have the size of their weights."""
        request = self._context.request
        written = request.formats
        candidates = [Candidate(format=each, bytes=self._context.sizes[each.artifact]) for each in written]
        resolved = request.resolved
        possible = (resolved.possible or ()) if resolved is not None else ()
        candidates += [
            Candidate(format=each.format, bytes=each.least_bytes) for each in possible if each.format not in written
        ]
        return sorted(candidates, key=lambda each: each.bytes, reverse=True)

    def _look_at(self, candidate: Candidate) -> Candidate:
        """The candidate with what was found about it: first what costs nothing, last the score."""
        if judge_resources(self._evaluation, candidate):
            return self._with_limits(candidate)
        if self._is_lost:
            return candidate.model_copy(update={"note": f"not measured: {_CANNOT_PASS}"})
        if is_known(self._best, self._source):
            return candidate.model_copy(update={"note": f"not measured: {KNOWN}"})
        problem = missing_runtime(candidate.format) or self._run(candidate.format)
        if problem is not None:
            return self._unmeasured(candidate, problem)
        speed = self._speeds.get(candidate.format)
        if speed is not None:
            figures = {
                "tokens_per_second": speed.generation_tokens_per_second,
                "peak_memory_bytes": speed.peak_memory_bytes,
            }
            candidate = candidate.model_copy(update=figures)
            if judge_resources(self._evaluation, candidate):
                return self._with_limits(candidate)
        try:
            scores = self._score(candidate.format)
        except (OutOfMemory, CannotRun) as error:
            return self._unmeasured(candidate, _explained(candidate.format, error))
        except TrainingDiverged as error:
            return self._unmeasured(candidate, str(error))
        candidate = candidate.model_copy(update={"score": scores.score, "loss": scores.loss})
        refusals = judge_quality(self._evaluation.gates, candidate, self._tuned)
        if refusals:
            return candidate.model_copy(update={"limits": _names(refusals)})
        self._best = better_of(self._best, candidate)
        return candidate

    def _run(self, edge_format: EdgeFormat) -> str | None:
        """Run a candidate in its runtime, and measure it if the spec has an edge budget; why that is not possible."""
        runtime = RUNTIMES[edge_format]
        try:
            if self._measuring is not None:
                self._speeds[edge_format] = self._measuring.candidate(edge_format)
            elif runtime is not Runtime.TRANSFORMERS:  # which loads it when it is scored
                return try_loading(self._context, edge_format, self._prompt)
        except (OutOfMemory, CannotRun) as error:
            return _explained(edge_format, error)
        return None

    def _with_limits(self, candidate: Candidate) -> Candidate:
        return candidate.model_copy(update={"limits": _names(judge_resources(self._evaluation, candidate))})

    def _unmeasured(self, candidate: Candidate, problem: str) -> Candidate:
        self._warnings.append(f"{candidate.format} is not chosen, because it was not measured: {problem}")
        return candidate.model_copy(update={"note": _shortened(f"not measured: {problem}")})

    def _speed_of(self, chosen: EdgeFormat | None) -> ModelSpeed | None:
        return None if chosen is None else self._speeds.get(chosen)

    def _missing_runtimes(self) -> tuple[str, ...]:
        """One warning for each runtime that this image lacks, with the formats that are no candidates without it."""
        formats: dict[str, list[str]] = {}
        known = {each.format for each in self._candidates()}
        for each in AUTO_FORMATS:
            problem = missing_runtime(each)
            if problem is not None and each not in known:
                formats.setdefault(problem, []).append(each.value)
        return tuple(f"not among the candidates: {', '.join(names)}: {why}" for why, names in formats.items())


def _explained(edge_format: EdgeFormat, error: OutOfMemory | CannotRun) -> str:
    """Why a model does not run here."""
    runtime = RUNTIMES[edge_format]
    if isinstance(error, OutOfMemory):
        return f"the machine has too little memory: {error}"
    if isinstance(error, CannotStart):
        return f"{runtime} does not start here: {error}"
    return f"{runtime} does not run it: {' '.join(str(error).split())}"


def _names(refusals: Sequence[str]) -> tuple[str, ...]:
    """Names of the limits, with which the sentences about them begin."""
    return tuple(refusal.partition(":")[0] for refusal in refusals)


def _shortened(note: str) -> str:
    return note if len(note) <= MAX_NOTE else f"{note[: MAX_NOTE - 1]}…"
