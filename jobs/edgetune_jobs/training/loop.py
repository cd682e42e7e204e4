"""The training loop: trl's trainer with checkpoints in the store; progress, stop and divergence.

This module imports torch and the Hugging Face libraries at its top, because its classes derive from theirs. Import it
only inside functions.
"""

import math
import shutil
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from edgetune_contract.spec import BaseModelSpec
from edgetune_jobs.errors import TrainingDiverged
from edgetune_jobs.models.adapters import restore_adapter, save_adapter
from edgetune_jobs.stage import Checkpoints, Progress

LOSS_WINDOW = 10
"""Number of last steps over which the reported loss is averaged."""


class AdapterTrainer(SFTTrainer):
    """trl's trainer with checkpoints of the adapter only, saved to a store, without pickled arguments or model card.

    A checkpoint folder has adapter_model.safetensors, adapter_config.json, optimizer.pt, scheduler.pt, rng_state.pth,
    scaler.pt (FP16) and trainer_state.json; the .pt and .pth files are loaded with weights_only.
    """

    def __init__(self, *args: Any, base: BaseModelSpec, checkpoints: Checkpoints | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._base = base
        self._checkpoints = checkpoints
        # It prints to stdout, where the stage reports progress as JSON.
        self.remove_callback(PrinterCallback)

    def create_model_card(self, *_args: Any, **_options: Any) -> None:
        """Write no README.md."""

    # The library calls this method and the callbacks below with these parameter names.
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        save_adapter(self.model, Path(output_dir or self.args.output_dir), self._base)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore_adapter(model or self.model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self._checkpoints is not None:
            self._checkpoints.save(self.state.global_step, folder)
        shutil.rmtree(folder)


class StepWatch(TrainerCallback):
    """Reports each step, stops after a step if `stop` is set, and raises if loss or gradient are not finite."""

    def __init__(self, progress: Progress, stop: threading.Event, scaled_gradients: bool) -> None:
        """
        Args:
            progress: receives step, loss, learning rate and speed.
            stop: ends training after the current step, with a checkpoint.
            scaled_gradients: FP16 loss scaling is used, where infinite gradients are normal and not checked.
        """
        self._progress = progress
        self._stop = stop
        self._scaled_gradients = scaled_gradients
        self._recent: deque[tuple[float, float]] = deque(maxlen=LOSS_WINDOW + 1)
        self._started = 0.0
        self._resumed_from = 0
        self.tokens = 0.0
        """Tokens that this attempt has trained on, without padding."""
        self.seconds = 0.0
        """Training time of this attempt, including checkpoints."""

    @property
    def has_stepped(self) -> bool:
        """Whether this attempt has finished a step."""
        return len(self._recent) > 1

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        self._started = time.monotonic()
        self._resumed_from = state.global_step
        self._recent.append((self._started, 0.0))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        self._check_finite(args, state, logs)
        # The state is saved in every checkpoint; with the log of all steps, it would grow without bound.
        del state.log_history[1:-LOSS_WINDOW]
        now = time.monotonic()
        self.tokens = logs["num_tokens"]
        self._recent.append((now, self.tokens))
        (first_time, first_tokens), (last_time, last_tokens) = self._recent[0], self._recent[-1]
        self._progress.update(
            state.global_step,
            state.max_steps,
            "steps",
            loss=logs["loss"],
            learningRate=logs["learning_rate"],
            resumedFromStep=self._resumed_from,
            tokensPerSecond=(last_tokens - first_tokens) / max(last_time - first_time, 1e-9),
        )
        if self._stop.is_set():
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        self.seconds = time.monotonic() - self._started

    def _check_finite(self, args: TrainingArguments, state: TrainerState, logs: dict[str, float]) -> None:
        watched = ("loss",) if self._scaled_gradients else ("loss", "grad_norm")
        for figure in watched:
            value = logs.get(figure, 0.0)
            if math.isfinite(value):
                continue
            name = "loss" if figure == "loss" else "gradient norm"
            advice = (
                "check the base model's weights and the first rows, or lower spec.training.learningRate"
                if state.global_step == 1
                else "lower spec.training.learningRate, raise warmupRatio, or lower maxGradNorm"
            )
            raise TrainingDiverged(
                f"the {name} is {value} at step {state.global_step} of {state.max_steps} "
                f"(learningRate {args.learning_rate:g}); {advice}"
            )


def losses(history: Sequence[dict[str, float]]) -> list[float]:
    """Losses of the steps in a trainer's log history: the first step and the last ones."""
    return [entry["loss"] for entry in history if "loss" in entry]
