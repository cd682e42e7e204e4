"""Validation while training: the loss on the evaluation rows, the best step's adapter, and early stopping."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_contract.schema import Model
from edgetune_contract.training import TrainingEvaluation
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.adapters.adapter_files import restore_adapter, save_weights
from edgetune_jobs.stage import Ranks

if TYPE_CHECKING:
    from peft import PeftModel

_STATE = "validation.json"
_BEST = "best"

LossMeasurement = Callable[["PeftModel"], tuple[float, int] | None]
"""Measures a model's loss on this rank's evaluation rows: their sum in nats, and the number of tokens; None if training
was stopped meanwhile."""


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

    def __init__(self, spec: TrainingEvaluation, measure: LossMeasurement, folder: Path, ranks: Ranks) -> None:
        """
        Args:
            spec: spec.training.evaluation.
            measure: measures the loss of the model in evaluation mode.
            folder: a folder for the best adapter; it is created.
            ranks: of the training: each measures its rows, and all get the same loss.
        """
        self._spec = spec
        self._measure = measure
        self._folder = folder
        self._ranks = ranks
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
        """Evaluate after a step if it is due and not done yet; the loss, or None.

        Raises:
            InvalidInput: the evaluation rows have no token to predict.
        """
        if not self.is_due(step, total):
            return None
        model.eval()
        try:
            loss = self._joined(self._measure(model))
        finally:
            model.train()
        if loss is not None:
            self._record(model, step, loss)
        return loss

    def _joined(self, measured: tuple[float, int] | None) -> float | None:
        """The loss on the rows of all ranks; None if one of them was stopped."""
        found = self._ranks.gather(*(measured or (0.0, 0)), measured is None)
        totals, tokens, stops = zip(*found, strict=True)
        if any(stops):
            return None
        if not any(tokens):
            raise InvalidInput(
                "spec.training.evaluation: the evaluation rows have no token to predict; add rows to "
                "spec.dataset.eval, or remove spec.training.evaluation"
            )
        return float(sum(totals) / sum(tokens))

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
