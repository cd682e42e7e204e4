"""The training loop: trl's trainer, whose checkpoints go to the store, and the watch over its steps.

This module imports torch and the Hugging Face libraries at its top, because its classes derive from theirs: import it
inside functions.
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
"""Steps over which the reported loss is averaged."""


class AdapterTrainer(SFTTrainer):
    """trl's trainer with checkpoints of the adapter only, handed to a store: no pickled arguments, no model card.

    A checkpoint folder holds adapter_model.safetensors, adapter_config.json, optimizer.pt, scheduler.pt, rng_state.pth,
    scaler.pt (FP16) and trainer_state.json; the .pt and .pth files are read with torch's weights-only reader.
    """

    def __init__(self, *args: Any, base: BaseModelSpec, checkpoints: Checkpoints | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._base = base
        self._checkpoints = checkpoints
        # It prints to stdout, which carries the stage's progress as JSON.
        self.remove_callback(PrinterCallback)

    def create_model_card(self, *_args: Any, **_options: Any) -> None:
        """Write no README.md."""

    # The parameters of this and the callbacks below are those by which the library calls them.
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
    """Reports each step, stops at a step's end when asked to, and refuses a loss or gradient that is not finite."""

    def __init__(self, progress: Progress, stop: threading.Event, scaled_gradients: bool) -> None:
        """`scaled_gradients`: with FP16's loss scaling, an infinite gradient is part of finding the scale."""
        self._progress = progress
        self._stop = stop
        self._scaled_gradients = scaled_gradients
        self._recent: deque[tuple[float, float]] = deque(maxlen=LOSS_WINDOW + 1)
        self._started = 0.0
        self._resumed_from = 0
        self.tokens = 0.0
        """Tokens that this attempt has trained on, padding left out."""
        self.seconds = 0.0
        """Time that this attempt has trained, checkpoints included."""

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
        # The state goes into every checkpoint: with all steps in it, it would grow without end.
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
            name = "loss" if figure == "loss" else "gradient's norm"
            cause = (
                "the base model's weights or the first rows are not sound, or learningRate is far too high"
                if state.global_step == 1
                else "lower spec.training.learningRate, raise warmupRatio, or lower maxGradNorm"
            )
            raise TrainingDiverged(
                f"the {name} is {value} at step {state.global_step} of {state.max_steps} "
                f"(learningRate {args.learning_rate:g}): {cause}"
            )


def losses(history: Sequence[dict[str, float]]) -> list[float]:
    """Losses of the logged steps that a trainer's state still holds: the first step's and those of the last steps."""
    return [entry["loss"] for entry in history if "loss" in entry]
