"""Steps in which a training is disturbed: it runs out of GPU memory, or is stopped by SIGTERM and resumed."""

import math
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from bench.gpu_check.training import AS_TRL, GIB, finish, start
from edgetune_contract.spec import Method
from edgetune_jobs.errors import Interrupted
from edgetune_jobs.runtime.signals import StopSignals
from support.stage_context import FolderCheckpoints

if TYPE_CHECKING:
    import torch

    from bench.gpu_check.inputs import Inputs
    from bench.gpu_check.runner import Figures

_STOPPED_AFTER = 2
# Of what a step needs beside the model: less than four examples, more than two.
_SHARE_OF_A_STEP = 0.65
_FITTING = 2


def healing(inputs: "Inputs") -> "Figures":
    """A training of four examples at once where two fit: it must end, with the smaller micro-batch."""
    training = {**AS_TRL, "layout": "PaddingFree"}
    run, clock = start(inputs, Method.QLORA, training, inputs.long_rows)
    with _limited_memory(inputs) as limit:
        finish(run)
    said = [each for each in run.progress.said if "out of GPU memory" in each]
    if not said:
        raise AssertionError(f"it did not run out of memory with {limit}")
    return {
        "limit": limit,
        "said": said,
        "microBatchSize": run.output.facts["microBatchSize"],
        "steps": run.output.metrics["steps"],
        "stepSeconds": round(clock.seconds, 3),
    }


def resuming(inputs: "Inputs") -> "Figures":
    """SIGTERM after the second step, and another attempt: no step is lost, and the adapter differs from that of an
    uninterrupted training as much as that of the same training again.
    """
    import torch

    training = {"checkpoint": {"everySteps": 1000}}
    whole, _ = start(inputs, Method.QLORA, training, inputs.long_rows)
    finish(whole)
    checkpoints = FolderCheckpoints(inputs.folder / "checkpoints")
    first, _ = start(inputs, Method.QLORA, training, inputs.long_rows, checkpoints)
    with _stop_signals() as signals:
        first.context = replace(first.context, stop=signals.event)
        first.progress.on_update = lambda done: _terminate(signals) if done == _STOPPED_AFTER else None
        try:
            finish(first)
        except Interrupted as interruption:
            stopped_after = interruption.step
        else:
            raise AssertionError("SIGTERM did not stop the training")
    second, _ = start(inputs, Method.QLORA, training, inputs.long_rows, checkpoints)
    finish(second)
    again, _ = start(inputs, Method.QLORA, training, inputs.long_rows)
    finish(again)
    ours, theirs, repeated = second.weights(), whole.weights(), again.weights()
    return {
        "stoppedAfter": stopped_after,
        "resumedFrom": second.output.metrics["resumedFromStep"],
        "stepsOfSecondAttempt": len(second.progress.updates),
        "isBitwiseEqual": all(torch.equal(ours[name], theirs[name]) for name in theirs),
        "difference": _difference(ours, theirs),
        "differenceOfRepeating": _difference(repeated, theirs),
        "lossDifference": abs(second.figures("loss")[-1] - whole.figures("loss")[-1]),
    }


def _difference(ours: "Mapping[str, torch.Tensor]", theirs: "Mapping[str, torch.Tensor]") -> float:
    """Root mean square of the difference of all weights, relative to that of the weights."""
    squares = [
        [float(part.double().square().sum()) for part in (ours[name].float() - theirs[name].float(), theirs[name])]
        for name in theirs
    ]
    difference, size = (sum(parts) for parts in zip(*squares, strict=True))
    return math.sqrt(difference / size)


def _terminate(signals: StopSignals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signals.event.wait()


@contextmanager
def _stop_signals() -> Iterator[StopSignals]:
    """The product's handlers of SIGTERM, within the block."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signals = StopSignals()
    signals.install()
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _limited_memory(inputs: "Inputs") -> Iterator[str]:
    """Within the block, memory is short; how it was limited."""
    if not inputs.on_gpu:
        with _limited_examples():
            yield f"{_FITTING} examples"
        return
    import torch

    model = inputs.figure("NF4 loading", "loadedGiB")
    peak = inputs.figure(f"{Method.QLORA}, as trl", "peakGiB")
    limit = model + _SHARE_OF_A_STEP * (peak - model)
    torch.cuda.set_per_process_memory_fraction(limit * GIB / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield f"{limit:.1f} GiB"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextmanager
def _limited_examples() -> Iterator[None]:
    """A CPU in the place of a GPU: a forward pass of too many examples runs out of memory."""
    import torch
    from trl import SFTTrainer

    step = SFTTrainer.training_step

    def limited(self: Any, model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        loss = step(self, model, batch, *args, **kwargs)
        if len(batch["cu_seq_lens_q"]) - 1 > _FITTING:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss

    with patch.object(SFTTrainer, "training_step", limited):
        yield
