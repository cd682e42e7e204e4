"""The training loop: trl's trainer with checkpoints in the store; progress, stop and divergence.

This module imports torch and the Hugging Face libraries at its top, because its classes derive from theirs. Import it
only inside functions.
"""

import hashlib
import math
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import (
    PreTrainedConfig,
    SchedulerType,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from edgetune_contract.spec import BaseModelSpec
from edgetune_contract.training import Layout
from edgetune_jobs.errors import PeerLost, TrainingDiverged, is_out_of_gpu_memory
from edgetune_jobs.models.adapters.adapter_files import restore_adapter, save_adapter
from edgetune_jobs.models.loading import free_memory
from edgetune_jobs.stage import Checkpoints, Progress, Ranks
from edgetune_jobs.training.checkpoint_check import CheckpointCheck
from edgetune_jobs.training.memory.step_fit import StepFit
from edgetune_jobs.training.recipe import with_warmup
from edgetune_jobs.training.step_batch import StepBatch
from edgetune_jobs.training.step_log import StepLog, StepMetrics
from edgetune_jobs.training.validation import Validation

LOSS_WINDOW = 10
"""Number of last steps over which the reported loss is averaged."""


class CheckpointPart(Protocol):
    """Something beside the trainer that a resumed training needs."""

    def save_to(self, checkpoint: Path) -> None:
        """Write files into a checkpoint folder."""
        ...

    def restore_from(self, checkpoint: Path) -> None:
        """Continue with the files of a checkpoint folder."""
        ...


class EndedBeforeFirstStep(Exception):
    """This attempt trains no step: early stopping has ended the training of its checkpoint, or it is stopped again."""


class AdapterTrainer(SFTTrainer):
    """trl's trainer with forward passes that fit into memory, and checkpoints of the adapter only, saved to a store.

    A step that runs out of GPU memory is computed again in smaller forward passes, as long as `fit` has any.

    With several ranks, each computes its share of every step, and the gradients are added once, before the optimizer's
    step. To the libraries, each rank is a training of its own, with the same batches, losses and gradients as the
    others: DistributedDataParallel cannot repeat a step after its backward pass has failed, and with it an epoch's last
    batch has repeated rows.

    A checkpoint has no pickled arguments or model card. Its folder has adapter_model.safetensors, adapter_config.json,
    optimizer.pt, scheduler.pt, rng_state.pth, scaler.pt (FP16) and trainer_state.json; the .pt and .pth files are
    loaded with weights_only. `parts` add their own.
    """

    data_collator: Any
    _total_train_tokens: float

    def __init__(
        self,
        *args: Any,
        base: BaseModelSpec,
        checkpoints: Checkpoints | None,
        parts: Sequence[CheckpointPart],
        layout: Layout,
        max_length: int,
        fit: StepFit,
        ranks: Ranks,
        on_shrink: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        _name_number_of_experts(options["model"].config)
        super().__init__(*args, **options)
        self._collate = self.data_collator
        self.data_collator = StepBatch
        self._layout = layout
        self._max_length = max_length
        self._fit = fit
        self._ranks = ranks
        self._on_shrink = on_shrink
        self._base = base
        self._checkpoints = checkpoints
        self._parts = parts
        # It prints to stdout, where the stage reports progress as JSON.
        self.remove_callback(PrinterCallback)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The library's schedule, with a warm-up that has no step of rate 0."""
        is_first_call = getattr(self, "lr_scheduler", None) is None
        scheduler: LRScheduler = super().create_scheduler(num_training_steps, optimizer)
        if is_first_call and isinstance(scheduler, LambdaLR) and self.args.lr_scheduler_type != SchedulerType.CONSTANT:
            steps = self.args.get_warmup_steps(num_training_steps)
            scheduler = LambdaLR(scheduler.optimizer, [with_warmup(share, steps) for share in scheduler.lr_lambdas])
            self.lr_scheduler = scheduler
        return scheduler

    def checkpoint_check(self) -> CheckpointCheck:
        """The check of a checkpoint that this training can resume from."""
        args = self.args
        steps_per_epoch = math.ceil(len(self.train_dataset) / args.per_device_train_batch_size)
        total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
        return CheckpointCheck(self.model, total)

    def train(self, *args: Any, **options: Any) -> Any:
        """Train, with gradient checkpointing as `fit` says; the arguments are the library's."""
        self._apply_checkpointing()
        self._ranks.copy_from_first(self._trainable)
        return super().train(*args, **options)

    @property
    def _trainable(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def training_step(self, model: Any, inputs: StepBatch, num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ARG002
        """Forward and backward passes of all examples of a step, by all ranks; its loss.

        Raises:
            RuntimeError: out of GPU memory, and `fit` has nothing smaller.
            PeerLost: another rank ran out of GPU memory like this, has ended, or does not answer.
        """
        before = self._total_train_tokens
        if self._ranks.size > 1:
            torch.manual_seed(_seed_of_step(self.args.seed, self.state.global_step, self._ranks.rank))
        while True:
            failure: RuntimeError | None = None
            loss = torch.zeros((), device=self.args.device)
            try:
                loss = self._accumulate(model, inputs)
            except RuntimeError as error:
                if not is_out_of_gpu_memory(error):
                    raise
                failure = error
            loss, tokens, failed = self._joined(loss, self._total_train_tokens - before, failure is not None)
            if not failed:
                self._total_train_tokens = before + tokens
                self._ranks.add_gradients(self._trainable)
                return loss
            if not self._fit.shrink():
                raise failure or PeerLost(f"rank {failed[0]} ran out of GPU memory")
            failure = None  # its traceback holds the tensors of the failed pass
            model.zero_grad()
            self._metrics["train"].clear()
            self._total_train_tokens = before
            free_memory()
            self._apply_checkpointing()
            self._on_shrink()

    def _accumulate(self, model: Any, batch: StepBatch) -> torch.Tensor:
        size, fit = self._ranks.size, self._fit.choice
        passes = [
            list(batch.share(rank, size).split(self._layout, fit.micro_batch_size, self._max_length))
            for rank in range(size)
        ]
        # The library averages the auxiliary loss of experts over this number.
        self.current_gradient_accumulation_steps = sum(map(len, passes))
        learned = batch.learned_tokens
        loss = torch.zeros((), device=self.args.device)
        for examples in passes[self._ranks.rank]:
            loss += super().training_step(model, self._collate(examples), learned)
        if not passes[self._ranks.rank] and self.accelerator.scaler is not None:
            # The scaler has no scale before its first loss, and refuses the optimizer's step without one.
            self.accelerator.scaler.scale(loss)
        return loss

    def _joined(self, loss: torch.Tensor, tokens: float, failed: bool) -> tuple[torch.Tensor, float, Sequence[int]]:
        """Loss and tokens of all ranks together, and the ranks that ran out of GPU memory."""
        if self._ranks.size == 1:
            return loss, tokens, [0] if failed else []
        figures = self._ranks.gather(loss.item(), tokens, failed)
        losses, counts, failures = zip(*figures, strict=True)
        # What is logged as num_tokens.
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens + sum(counts) - tokens]
        total = torch.tensor(sum(losses), dtype=loss.dtype, device=loss.device)
        return total, sum(counts), [rank for rank, each in enumerate(failures) if each]

    def _apply_checkpointing(self) -> None:
        if self._fit.choice.recompute:
            self.model.activation_checkpointing_enable({"use_reentrant": False}, self._fit.choice.recompute)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:  # noqa: ARG002
        """The batch of a step. The library would count its learned tokens in tensors, which it does not have yet."""
        return list(islice(epoch_iterator, num_batches)), None

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Not counted: nothing reads it."""
        return 0

    def create_model_card(self, *_args: Any, **_options: Any) -> None:
        """Write no README.md."""

    # The library calls this method and the callbacks below with these parameter names.
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        save_adapter(self.model, Path(output_dir or self.args.output_dir), self._base)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore_adapter(model or self.model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._ranks.rank:
            return
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        for part in self._parts:
            part.save_to(folder)
        if self._checkpoints is not None:
            self._checkpoints.save(self.state.global_step, folder)
        shutil.rmtree(folder)


def _seed_of_step(seed: int, step: int, rank: int) -> int:
    """The seed of a rank's dropout in a step, also after a resume: all ranks resume with the generator of rank 0."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7])


def _name_number_of_experts(config: PreTrainedConfig) -> None:
    """trl's load-balancing loss reads config.num_experts, which some types, such as granitemoe, name otherwise."""
    if hasattr(config, "num_experts"):
        return
    names = ("num_local_experts", "n_routed_experts")
    number = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    if number is not None:
        config.num_experts = number


class StepWatch(TrainerCallback):
    """Reports and logs each step; evaluates where it is due; stops after a step if `stop` is set or early stopping says
    so; and raises if loss or gradient are not finite."""

    def __init__(
        self,
        progress: Progress,
        stop: threading.Event,
        log: StepLog,
        validation: Validation | None,
        scaled_gradients: bool,
        on_step: Callable[[float], None],
        ranks: Ranks,
    ) -> None:
        """
        Args:
            progress: receives step, loss, learning rate and speed.
            stop: ends training after the current step, with a checkpoint, on all ranks if it is set on one.
            log: receives the figures of each step.
            validation: measures the validation loss; None if the spec does not ask for it.
            scaled_gradients: FP16 loss scaling is used, where infinite gradients are normal and not checked.
            on_step: called after each step with the share of the steps that is done.
            ranks: of the training.
        """
        self._progress = progress
        self._stop = stop
        self._log = log
        self._validation = validation
        self._scaled_gradients = scaled_gradients
        self._on_step = on_step
        self._ranks = ranks
        self._recent: deque[tuple[float, float]] = deque(maxlen=LOSS_WINDOW + 1)
        self._validation_figures: dict[str, float] = {}
        self._started = 0.0
        self._start_time = 0.0
        self._resumed_from = 0
        self.has_stepped = False
        """Whether this attempt has finished a step."""
        self.tokens = 0.0
        """Tokens that this attempt has trained on, on all ranks, without padding."""
        self.seconds = 0.0
        """Training time of this attempt, including checkpoints and evaluations."""

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        model: Any = None,
        **_: Any,
    ) -> None:
        self._resumed_from = state.global_step
        if state.global_step:
            self._log.complete(self._validate(model, state))
            if self._validation is not None and (
                self._validation.wants_stop or self._validation.is_due(state.global_step, state.max_steps)
            ):
                raise EndedBeforeFirstStep
        self._started, self._start_time = time.monotonic(), time.time()
        self._recent.append((self._started, 0.0))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        model: Any = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        self._check_finite(args, state, logs)
        # The state is saved in every checkpoint; with the log of all steps, it would grow without bound.
        del state.log_history[1:-LOSS_WINDOW]
        self.has_stepped = True
        speed = self._report(state, logs)
        self._log.add(
            StepMetrics(
                step=state.global_step,
                epoch=state.epoch or 0.0,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                gradient_norm=logs.get("grad_norm"),
                tokens_per_second=speed,
                validation_loss=self._validate(model, state),
            )
        )
        self._on_step(state.global_step / state.max_steps)
        if any(stopped for (stopped,) in self._ranks.gather(self._stop.is_set())):
            control.should_save = True
            control.should_training_stop = True
        if self._validation is not None and self._validation.wants_stop:
            control.should_training_stop = True

    def _report(self, state: TrainerState, logs: dict[str, float]) -> float:
        now = time.monotonic()
        self.tokens = logs["num_tokens"]
        self._recent.append((now, self.tokens))
        (first_time, first_tokens), (last_time, last_tokens) = self._recent[0], self._recent[-1]
        speed = (last_tokens - first_tokens) / max(last_time - first_time, 1e-9)
        gradient_norm = {"gradientNorm": logs["grad_norm"]} if "grad_norm" in logs else {}
        self._progress.update(
            state.global_step,
            state.max_steps,
            "steps",
            loss=logs["loss"],
            learningRate=logs["learning_rate"],
            **gradient_norm,
            resumedFromStep=self._resumed_from,
            startTimeSeconds=self._start_time,
            tokensPerSecond=speed,
            **self._validation_figures,
        )
        return speed

    def _validate(self, model: Any, state: TrainerState) -> float | None:
        if self._validation is None:
            return None
        loss = self._validation.after_step(model, state.global_step, state.max_steps)
        if loss is not None:
            self._progress.say(f"validation loss {loss:.4f} after step {state.global_step}")
            self._validation_figures = {"validationLoss": loss, "validationStep": state.global_step}
            # The time of an evaluation is none of the training's speed.
            self._recent.clear()
            self._recent.append((time.monotonic(), self.tokens))
        return loss

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
