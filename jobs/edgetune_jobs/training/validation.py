"""Validation while training: the loss on the evaluation rows, the best step's adapter, and early stopping."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_contract.schema import Model
from edgetune_contract.training import TrainingEvaluation
from edgetune_jobs.models.adapters.adapter_files import restore_adapter, save_weights

if TYPE_CHECKING:
    from peft import PeftModel

_STATE = "validation.json"
_BEST = "best"

LossMeasurement = Callable[["PeftModel"], float | None]
"""Measures a model's loss on the evaluation rows, in nats; None if training was stopped meanwhile."""


class BestStep(Model):
    """The step with the lowest validation loss so far."""

    step: int
    loss: float


class ValidationState(Model):
    """What a resumed training must know of the evaluations before it."""

    last_step: int = 0
    """Step of the last evaluation."""

    best: BestStep | None = None
    without_improvement: int = 0
    """Number of evaluations since the best one."""


class Validation:
    """Measures the validation loss at the steps that the spec sets, and keeps the adapter of the best one.

    A checkpoint has its state in validation.json and the best adapter in best/. If training is stopped during an
    evaluation, the checkpoint lacks it, and the next attempt begins with it.
    """

    def __init__(self, spec: TrainingEvaluation, measure: LossMeasurement, folder: Path) -> None:
        """
        Args:
            spec: spec.training.evaluation.
            measure: measures the loss of the model in evaluation mode.
            folder: a folder for the best adapter; it is created.
        """
        self._spec = spec
        self._measure = measure
        self._folder = folder
        self._state = ValidationState()
        folder.mkdir(parents=True)

    @property
    def best(self) -> BestStep | None:
        """The best step; None if no loss was measured, or none was finite."""
        return self._state.best

    @property
    def wants_stop(self) -> bool:
        """Whether the validation loss has not improved for `patience` evaluations."""
        return self._spec.patience is not None and self._state.without_improvement >= self._spec.patience

    def is_due(self, step: int, total: int) -> bool:
        """Whether the model of this step has to be evaluated and has not been."""
        return step != self._state.last_step and (step % self._spec.every_steps == 0 or step == total)

    def after_step(self, model: "PeftModel", step: int, total: int) -> float | None:
        """Evaluate after a step if it is due and not done yet; the loss, or None."""
        if not self.is_due(step, total):
            return None
        model.eval()
        try:
            loss = self._measure(model)
        finally:
            model.train()
        if loss is not None:
            self._record(model, step, loss)
        return loss

    def put_back_best(self, model: "PeftModel") -> None:
        """Give the model the best step's adapter."""
        if self.best is not None and self.best.step != self._state.last_step:
            restore_adapter(model, self._folder)

    def save_to(self, checkpoint: Path) -> None:
        """Write the state and the best adapter into a checkpoint folder."""
        (checkpoint / _STATE).write_text(self._state.model_dump_json() + "\n", encoding="utf-8")
        if self.best is not None:
            _copy_files(self._folder, checkpoint / _BEST)

    def restore_from(self, checkpoint: Path) -> None:
        """Continue with the state of a checkpoint folder."""
        self._state = ValidationState.model_validate_json((checkpoint / _STATE).read_bytes())
        if self.best is not None:
            _copy_files(checkpoint / _BEST, self._folder)

    def _record(self, model: "PeftModel", step: int, loss: float) -> None:
        best, without_improvement = self.best, self._state.without_improvement + 1
        if math.isfinite(loss) and (best is None or loss < best.loss):
            save_weights(model, self._folder)
            best, without_improvement = BestStep(step=step, loss=loss), 0
        self._state = ValidationState(last_step=step, best=best, without_improvement=without_improvement)


def _copy_files(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
