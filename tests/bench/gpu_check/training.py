"""Steps that train: tokens per second of the stage and of a bare trl script, and memory against its estimate."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from bench.bare_trl import train_bare
from bench.gpu_check.runner import Step
from edgetune_contract.spec import Method
from support.stage_context import FolderCheckpoints
from support.tiny_runs import TrainingRun, new_run

if TYPE_CHECKING:
    from bench.gpu_check.inputs import Inputs
    from bench.gpu_check.runner import Figures

GIB = 2**30
_SECONDS = 60.0
AS_TRL: Mapping[str, Any] = {
    "layout": "Padded",
    "microBatchSize": 4,
    "gradientCheckpointing": "Always",
    "optimizer": "adamw_torch_fused",
}
"""spec.training with which the stage computes what trl computes by default."""

_LEVERS: Mapping[str, Mapping[str, Any]] = {
    "layout Padded": {"layout": "Padded"},
    "attention Sdpa": {"attention": "Sdpa"},
    "micro-batch 1": {"microBatchSize": 1},
    "checkpointing Always": {"gradientCheckpointing": "Always"},
    "optimizer paged_adamw_8bit": {"optimizer": "paged_adamw_8bit"},
    "kernels Liger": {"kernels": "Liger"},
    "micro-batch 4": {"microBatchSize": 4},
}
"""One field of spec.training that is not at its default: what the default gains."""

_FACTS = ("layout", "attention", "kernels", "microBatchSize", "gradientCheckpointing", "optimizer")


@dataclass
class Clock:
    """Times at which steps end."""

    times: list[float] = field(default_factory=list)

    def tick(self, *_: Any) -> None:
        self.times.append(time.monotonic())

    @property
    def seconds(self) -> float:
        """Mean time of a step, without the first, which compiles kernels.

        The rows of a training are those of one step, so that all steps have equally many tokens.
        """
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def throughput_steps(method: Method) -> list[Step]:
    """A bare trl script, the stage as it is, and the stage with what trl does by default."""
    return [
        Step(f"{method}, bare trl", _SECONDS, partial(bare, method=method)),
        Step(f"{method}, ours", _SECONDS, partial(long_rows, method=method, training={})),
        Step(f"{method}, as trl", _SECONDS, partial(long_rows, method=method, training=AS_TRL)),
    ]


def lever_steps(method: Method) -> list[Step]:
    """The stage with one lever at a time set back."""
    return [
        *(
            Step(f"{method}, {name}", _SECONDS, partial(long_rows, method=method, training=training))
            for name, training in _LEVERS.items()
        ),
        Step(f"{method}, adapters by peft", _SECONDS, partial(unfused, method=method)),
    ]


def layout_steps() -> list[Step]:
    """Rows as long as Alpaca's, without and with padding."""
    return [
        Step(f"short rows, {layout}", _SECONDS, partial(short_rows, layout=layout))
        for layout in ("PaddingFree", "Padded")
    ]


def bare(inputs: "Inputs", method: Method) -> "Figures":
    """Tokens per second and peak memory of a bare trl script, with the library's defaults."""
    from edgetune_jobs.models import loading

    clock = Clock()

    def on_step() -> None:
        inputs.synchronize()
        clock.tick()

    parameters = inputs.parameters(method, {})
    steps = parameters.training.max_steps or 1
    tokens, _ = train_bare(parameters, inputs.base, inputs.long_rows, inputs.new_folder("bare"), on_step)
    return {
        "tokensPerSecond": round(tokens / steps / clock.seconds, 1),
        "stepSeconds": round(clock.seconds, 3),
        "peakGiB": round(loading.peak_memory_bytes(inputs.device) / GIB, 2),
    }


def long_rows(inputs: "Inputs", method: Method, training: Mapping[str, Any]) -> "Figures":
    """The stage train on four rows of equal length."""
    return measured(inputs, method, training, inputs.long_rows)


def unfused(inputs: "Inputs", method: Method) -> "Figures":
    """The same, with the adapter computed by peft."""
    from edgetune_jobs.training.kernels import low_rank

    with patch.object(low_rank, "fuse", lambda _: None):
        return long_rows(inputs, method, {})


def short_rows(inputs: "Inputs", layout: str) -> "Figures":
    """The stage train on 64 short rows; tokens are counted without padding."""
    training = {"layout": layout, "batchSize": 64, "maxLength": 1024}
    return measured(inputs, Method.QLORA, training, inputs.short_rows)


def measured(inputs: "Inputs", method: Method, training: Mapping[str, Any], rows: Path) -> "Figures":
    """Speed, memory and choices of the stage train."""
    run, clock = start(inputs, method, training, rows)
    finish(run)
    shutil.rmtree(run.context.output.parent)  # an adapter and its checkpoint: 0.7 GB
    metrics, facts = run.output.metrics, run.output.facts
    tokens = metrics["tokensPerSecond"] * metrics["trainSeconds"] / metrics["steps"]
    peak, estimate = metrics["peakMemoryBytes"], metrics["estimatedPeakMemoryBytes"]
    return {
        "tokensPerSecond": round(tokens / clock.seconds, 1),
        "stepSeconds": round(clock.seconds, 3),
        "peakGiB": round(peak / GIB, 2),
        "estimatedGiB": round(estimate / GIB, 2),
        "estimateError": round(estimate / peak - 1, 3),
        "loss": metrics["loss"],
        **{name: facts[name] for name in _FACTS},
    }


def start(
    inputs: "Inputs",
    method: Method,
    training: Mapping[str, Any],
    rows: Path,
    checkpoints: FolderCheckpoints | None = None,
    **sections: Any,
) -> tuple[TrainingRun, Clock]:
    """An attempt of the stage train that has not started, and the clock of its steps."""
    parameters, folder = inputs.parameters(method, training, **sections), inputs.new_folder("train")
    run = new_run(folder, parameters, inputs.base, rows, checkpoints=checkpoints)
    clock = Clock()
    run.progress.on_update = clock.tick
    return run, clock


def finish(run: TrainingRun) -> None:
    """Train to the end."""
    from edgetune_jobs.stages import train

    run.output = train.run(run.context)


def prepare_estimate(inputs: "Inputs") -> "Figures":
    """What prepare estimates of the training "as trl", whose choices are all in its spec, against its real peak."""
    from edgetune_jobs.models.inspection import inspect_base, targeted_layers
    from edgetune_jobs.models.quantization.coverage import nf4_coverage
    from edgetune_jobs.models.skeleton import build_skeleton
    from edgetune_jobs.store.sources.source import FolderSource, SourceKind
    from edgetune_jobs.training.memory.activations import measure_activations
    from edgetune_jobs.training.memory.estimate import Workload, number_bytes_of

    base = inspect_base(FolderSource(f"file://{inputs.base}", "spec.baseModel", SourceKind.MODEL))
    coverage = nf4_coverage(build_skeleton(base.folder))
    figures: Figures = {}
    for method in (Method.QLORA, Method.LORA):
        parameters = inputs.parameters(method, AS_TRL)
        activations = measure_activations(inputs.base, parameters.lora, number_bytes_of(parameters.training))
        targets = targeted_layers(base, parameters.lora)
        estimate = Workload(base, coverage, targets, parameters, inputs.length, activations).least().total / GIB
        figures[f"{method}GiB"] = round(estimate, 2)
        figures[f"{method}Error"] = round(estimate / inputs.figure(f"{method}, as trl", "peakGiB") - 1, 3)
    return figures
