"""Measurements of base and edge models for the edge budget, spec.evaluation.edge."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune_contract.evaluation import EdgeBudget
from edgetune_contract.pipeline import BASE, EDGE
from edgetune_contract.results.measurement import EdgeMeasurement, ModelSpeed
from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_contract.training import Precision
from edgetune_contract.values.quantities import parse_bytes
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.evaluation.edge.child_process import OutOfMemory
from edgetune_jobs.evaluation.edge.machine import Cores, cpu_model
from edgetune_jobs.evaluation.edge.measuring import measure
from edgetune_jobs.evaluation.edge.process import MeasurementRequest
from edgetune_jobs.evaluation.edge.runtimes import AS_STORED, RUNTIMES, Runtime, missing_runtime, why_not_runnable
from edgetune_jobs.models import loading
from edgetune_jobs.models.libraries import usable_cpus
from edgetune_jobs.stage import StageContext
from edgetune_jobs.wording import count

_FIELD = "spec.evaluation.edge"
_NEW_TOKENS = 32


@dataclass(frozen=True)
class Measured:
    """Measurements, and warnings about models that could not be measured."""

    measurement: EdgeMeasurement | None = None
    warnings: tuple[str, ...] = ()


def check_measurable(parameters: Parameters) -> None:
    """Check, before hours of work, that this image can measure the edge model if the spec has an edge budget.

    Raises:
        InvalidInput: this image cannot run the first format.
    """
    if parameters.evaluation.edge is None or parameters.quantization.is_auto:  # Auto takes formats that can be measured
        return
    problem = why_not_runnable(parameters.quantization.formats[0])
    if problem is not None:
        raise InvalidInput(f"{_FIELD}: {problem}; or remove {_FIELD}")


def median_prompt(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], position_limit: int | None = None
) -> tuple[int, ...]:
    """Token ids of the prompt of median length; for texts without prompts, of the text of median length.

    The end is cut off if the models have too few positions for it and the answer.
    """
    rows = sorted((prompt or completion for prompt, completion in zip(prompts, completions, strict=True)), key=len)
    median = rows[len(rows) // 2]
    return tuple(median if position_limit is None else median[: max(1, position_limit - _NEW_TOKENS)])


def measure_models(context: StageContext, prompt: Sequence[int]) -> Measured:
    """Run base and edge models on the CPU, one after the other, if the spec has an edge budget.

    Args:
        context: the context of evaluate, with all models among its inputs.
        prompt: token ids.

    Raises:
        InvalidInput: the machine has too little memory to measure the edge model.
        TransientError: a process was killed from outside.
        Interrupted: `context.stop` was set.
    """
    edge_budget = context.request.parameters.evaluation.edge
    return Measured() if edge_budget is None else Measuring(context, edge_budget, tuple(prompt)).run()


class Measuring:
    """The measurement of all models of one run."""

    def __init__(self, context: StageContext, budget: EdgeBudget, prompt: tuple[int, ...]) -> None:
        """
        Args:
            context: the context of evaluate.
            budget: CPU and memory for each model.
            prompt: token ids.
        """
        self._context = context
        self._memory = parse_bytes(budget.memory) if budget.memory is not None else None
        self._cores = Cores.choose(budget.cpu, usable_cpus())
        self._prompt = prompt
        self._warnings = list(self._cores.warnings)

    def run(self) -> Measured:
        """Measure the edge model in all formats of the spec, and the base."""
        first, *others = self._context.request.parameters.quantization.formats
        edge = self._edge_model(first)
        base = self._base()
        further = {other.artifact: self._further_model(other) for other in others}
        return self._report(edge, base, {name: speed for name, speed in further.items() if speed is not None})

    def candidate(self, edge_format: EdgeFormat) -> ModelSpeed:
        """Measure a candidate.

        Raises:
            OutOfMemory: the machine has too little memory for it.
            CannotRun: its runtime does not run it.
        """
        return self._measure(edge_format.artifact, self._format_request(edge_format), self._memory)

    def report(self, chosen: ModelSpeed | None) -> Measured:
        """The measurement of the chosen candidate, with that of the base; None if no candidate was chosen."""
        if chosen is None:
            return Measured(None, tuple(self._warnings))
        return self._report(chosen, self._base(), {})

    def _report(self, edge: ModelSpeed, base: ModelSpeed | None, further: dict[str, ModelSpeed]) -> Measured:
        measurement = EdgeMeasurement(
            **edge.model_dump(by_alias=False),
            cpu=cpu_model(),
            threads=self._cores.count,
            prompt_tokens=len(self._prompt),
            new_tokens=_NEW_TOKENS,
            base=base,
            further=further,
        )
        return Measured(measurement, tuple(self._warnings))

    def _base(self) -> ModelSpeed | None:
        return self._comparison(BASE, self._request(self._context.inputs[BASE], Runtime.TRANSFORMERS, _base_dtype()))

    def _edge_model(self, first: EdgeFormat) -> ModelSpeed:
        try:
            return self._measure(EDGE, self._format_request(first), self._memory)
        except OutOfMemory as error:
            raise InvalidInput(
                f"{_FIELD}: the machine has too little memory to measure the edge model: {error}; give the stage "
                f"evaluate more memory in the profile, or lower {_FIELD}.memory to the memory of a device"
            ) from error

    def _further_model(self, edge_format: EdgeFormat) -> ModelSpeed | None:
        """Speed of a format that no gate needs; None without its runtime, which check_loading says."""
        if missing_runtime(edge_format) is not None:
            return None
        return self._comparison(edge_format.artifact, self._format_request(edge_format))

    def _comparison(self, name: str, request: MeasurementRequest) -> ModelSpeed | None:
        """A model that no gate needs: if it cannot be measured, the run continues with a warning."""
        try:
            return self._measure(name, request, None)
        except OutOfMemory as error:
            self._warnings.append(
                f"{name} was not measured: the machine has too little memory to run it on the CPU: {error}"
            )
            return None

    def _measure(self, name: str, request: MeasurementRequest, memory: int | None) -> ModelSpeed:
        self._context.progress.say(f"measuring the {name} model on {count(self._cores.count, 'thread')}")
        return measure(request, self._context.scratch, self._context.stop, memory)

    def _format_request(self, edge_format: EdgeFormat) -> MeasurementRequest:
        return self._request(self._context.inputs[edge_format.artifact], RUNTIMES[edge_format], AS_STORED)

    def _request(self, folder: Path, runtime: Runtime, dtype: str) -> MeasurementRequest:
        return MeasurementRequest(runtime, folder, dtype, self._prompt, _NEW_TOKENS, self._cores.count, os.getpid())


def _base_dtype() -> str:
    """The dtype of the base on a CPU, the same as for its scores."""
    import torch

    device = torch.device("cpu")
    return loading.dtype_name(loading.dtype_of(loading.resolve_precision(Precision.AUTO, device)))
