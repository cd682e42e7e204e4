"""metrics.jsonl of the adapter artifact: one line for each optimizer step, kept in every checkpoint."""

import json
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class StepMetrics:
    """Figures of one optimizer step."""

    step: int
    epoch: float
    loss: float
    """Mean over the step's learned tokens, in nats."""

    learning_rate: float
    gradient_norm: float | None
    """Before clipping; infinite where FP16 loss scaling skipped the step."""

    tokens_per_second: float
    """Over the last steps."""

    validation_loss: float | None = None
    """Mean over the evaluation rows' completion tokens after this step, in nats; None if it was not measured."""

    time: float = field(default_factory=time.time)
    """When the step was done, in seconds since 1970."""


class StepLog:
    """The figures of all steps of one training, in order: a resumed attempt continues after the checkpoint's last step.

    A line is {"step", "epoch", "loss", "learningRate", "gradientNorm", "attempt", "time", "tokensPerSecond"} and,
    where it was measured, "validationLoss". Figures that are not finite are null. Attempts are counted from 1; one that
    ended before its first checkpoint is not counted, because none of its steps is kept.
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: the file, which does not exist yet.
        """
        self.path = path
        self._attempt = 1
        path.touch()

    def add(self, metrics: StepMetrics) -> None:
        """Append the line of one step."""
        values = {
            "step": metrics.step,
            "epoch": _finite(metrics.epoch),
            "loss": _finite(metrics.loss),
            "learningRate": _finite(metrics.learning_rate),
            "gradientNorm": _finite(metrics.gradient_norm),
            "attempt": self._attempt,
            "time": round(metrics.time, 3),
            "tokensPerSecond": _finite(round(metrics.tokens_per_second, 2)),
        }
        if metrics.validation_loss is not None:
            values["validationLoss"] = _finite(metrics.validation_loss)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def complete(self, validation_loss: float | None) -> None:
        """Add the validation loss of the last line's step, which an attempt that was stopped meanwhile left out."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        if validation_loss is None or not lines:
            return
        lines[-1] = json.dumps({**json.loads(lines[-1]), "validationLoss": _finite(validation_loss)})
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def save_to(self, checkpoint: Path) -> None:
        """Copy the lines into a checkpoint folder."""
        shutil.copyfile(self.path, checkpoint / METRICS)

    def restore_from(self, checkpoint: Path) -> None:
        """Continue after the lines of a checkpoint folder, as a further attempt. Older checkpoints have none."""
        self._attempt = 2
        if not (checkpoint / METRICS).is_file():
            return
        shutil.copyfile(checkpoint / METRICS, self.path)
        lines = self.path.read_text(encoding="utf-8").splitlines()
        if lines:
            self._attempt = json.loads(lines[-1])["attempt"] + 1


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
