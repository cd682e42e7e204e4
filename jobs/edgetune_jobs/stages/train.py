"""train: an adapter by QLoRA or LoRA on the prepared rows, resumed from the newest checkpoint."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetune_contract.pipeline import ADAPTER, BASE, PREPARED
from edgetune_contract.spec import Method, Parameters
from edgetune_contract.training import Kernels, Precision
from edgetune_jobs.data.prepared_data import read_eval_tokens
from edgetune_jobs.errors import (
    Interrupted,
    InvalidInput,
    TrainingDiverged,
    is_from_library,
    is_out_of_gpu_memory,
)
from edgetune_jobs.evaluation.inference import teacher_forced
from edgetune_jobs.evaluation.pace import training_watch
from edgetune_jobs.models import loading
from edgetune_jobs.models.adapters import adapter_layers
from edgetune_jobs.models.adapters.adapter_files import TrainingRecord
from edgetune_jobs.models.quantization.coverage import Coverage, check_method, held_in_nf4
from edgetune_jobs.stage import StageContext, StageOutput, StepSize
from edgetune_jobs.training import recipe
from edgetune_jobs.training.adapter_folder import adapted_base, write_adapter_folder
from edgetune_jobs.training.event_file import write_event_file
from edgetune_jobs.training.memory.activations import Activations, measure_activations
from edgetune_jobs.training.memory.out_of_memory import out_of_memory
from edgetune_jobs.training.memory.step_fit import StepFit, fit_step
from edgetune_jobs.training.step_log import METRICS, StepLog
from edgetune_jobs.training.validation import BestStep, Validation

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from edgetune_jobs.training.kernels.attention import Arrangement
    from edgetune_jobs.training.loop import AdapterTrainer, CheckpointPart, StepWatch


# What peft, trl and models raise if they do not support a model: each in its own way, before the first step has ended.
_LIBRARY_ERRORS = (AttributeError, KeyError, NotImplementedError, TypeError, ValueError)


@dataclass(frozen=True)
class _Setup:
    """Settings of this attempt, from the request, the hardware and earlier attempts."""

    parameters: Parameters
    device: "torch.device"
    precision: Precision
    reduced: StepSize | None
    """The step size that an earlier attempt left when it ran out of memory."""


@dataclass(frozen=True)
class _Training:
    """The trainer with all that watches it."""

    trainer: "AdapterTrainer"
    watch: "StepWatch"
    parts: "Sequence[CheckpointPart]"
    log: StepLog
    validation: Validation | None
    fit: StepFit
    activations: Activations
    loaded_bytes: int
    """Memory in use when the base was loaded."""

    arrangement: "Arrangement"
    kernels: Kernels
    warnings: Sequence[str]
    """What the spec asks for and the model does not support."""

    parameters: recipe.ParameterCount
    held: Coverage | None
    """What is in NF4; None for LoRA."""

    @property
    def stopped_early(self) -> bool:
        state = self.trainer.state
        return state.global_step < state.max_steps and self.validation is not None and self.validation.wants_stop

    @property
    def has_ended(self) -> bool:
        """Whether no step and no evaluation is left."""
        step, total = self.trainer.state.global_step, self.trainer.state.max_steps
        is_evaluated = self.validation is None or not self.validation.is_due(step, total)
        return is_evaluated and (step == total or self.stopped_early)


def run(context: StageContext) -> StageOutput:
    """Train an adapter on inputs base and prepared; artifact `adapter`, from rank 0 only.

    Raises:
        InvalidInput: the base, the target modules or the precision do not fit each other, or the smallest forward pass
            does not fit into GPU memory.
        TrainingDiverged: loss or gradient is not finite.
        OutOfGpuMemory: memory ran out outside of the forward passes, or for an example that fitted before; the next
            attempt begins with smaller passes, or resumes.
        Interrupted: `context.stop` was set on any rank; the checkpoint of the last finished step is in the store.
        PeerLost: another rank has ended or does not answer.
    """
    setup, training = _set_up(context), None
    try:
        training = _build(context, setup)
        resumed_from = _train(context, training)
    except RuntimeError as error:
        if not is_out_of_gpu_memory(error):
            raise
        fit, fitted = (training.fit, training.watch.has_stepped) if training else (None, False)
        raise out_of_memory(setup.parameters, fit, context.checkpoints, fitted=fitted) from error
    except _LIBRARY_ERRORS as error:
        if (training is not None and training.watch.has_stepped) or not is_from_library(error):
            raise
        raise InvalidInput(
            f"spec.baseModel: the libraries cannot train this model with these layers: {' '.join(str(error).split())}; "
            "list other layers in spec.lora.targetModules, or use another base model"
        ) from error
    return _save(context, setup, training, resumed_from)


def _set_up(context: StageContext) -> _Setup:
    parameters = context.request.parameters
    device = loading.choose_device()
    return _Setup(
        parameters=parameters,
        device=device,
        precision=loading.resolve_precision(parameters.training.precision, device),
        reduced=context.checkpoints.read_step_size() if context.checkpoints else None,
    )


def _build(context: StageContext, setup: _Setup) -> _Training:
    from edgetune_jobs.training.kernels import attention, liger, low_rank
    from edgetune_jobs.training.loop import AdapterTrainer, StepWatch

    parameters, dtype = setup.parameters, loading.dtype_of(setup.precision)
    tokenizer = loading.load_tokenizer(context.inputs[BASE])
    rows = recipe.training_rows(context.inputs[PREPARED])
    context.progress.say(f"loading the base model for {parameters.method}")
    load = loading.load_quantized_base if parameters.method is Method.QLORA else loading.load_base
    model = load(context.inputs[BASE], dtype, setup.device)
    held = _check_held(parameters, model)
    targets = recipe.find_targets(model, parameters.lora)
    arrangement = attention.arrange(parameters.training, model)
    lengths, loaded_bytes = recipe.lengths_of(rows), loading.used_memory_bytes(setup.device)
    activations = measure_activations(
        context.inputs[BASE], parameters.lora, dtype.itemsize, arrangement.layout, arrangement.attention
    )
    # After the measurement, which builds a model on fake tensors, on which no Triton kernel runs.
    kernels, warning = liger.use_liger(parameters.training.kernels, model)
    fit = fit_step(
        parameters,
        arrangement.layout,
        model,
        held,
        targets,
        lengths,
        dtype.itemsize,
        activations,
        setup.reduced,
        context.ranks,
    )
    log = StepLog(context.scratch / METRICS)
    validation = _validation(context, setup, tokenizer.pad_token_id, arrangement, fit)
    parts: list[CheckpointPart] = [fit, log] if validation is None else [fit, log, validation]
    on_step = training_watch(context.deadline, context.progress.say)
    is_scaled = setup.precision is Precision.FP16
    watch = StepWatch(context.progress, context.stop, log, validation, is_scaled, on_step, context.ranks)
    trainer = AdapterTrainer(
        model=model,
        args=recipe.sft_config(
            parameters.training,
            arrangement.layout,
            setup.precision,
            on_gpu=setup.device.type == "cuda",
            folder=context.scratch / "checkpoints",
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=recipe.lora_config(parameters.lora, targets),
        callbacks=[watch],
        base=adapted_base(context),
        checkpoints=context.checkpoints,
        parts=parts,
        layout=arrangement.layout,
        max_length=parameters.training.max_length,
        fit=fit,
        ranks=context.ranks,
        on_shrink=lambda: _note_shrinking(context, fit),
    )
    recipe.cast_adapter_to_float32(trainer.model)
    low_rank.fuse(trainer.model)
    attention.set_input_casts(trainer.model, enabled=setup.precision is Precision.FP32)
    count = recipe.check_trainable(trainer.model, targets, parameters.lora)
    warnings = [each for each in (arrangement.warning, warning) if each]
    return _Training(
        trainer,
        watch,
        parts,
        log,
        validation,
        fit,
        activations,
        loaded_bytes,
        arrangement,
        kernels,
        warnings,
        count,
        held,
    )


def _note_shrinking(context: StageContext, fit: StepFit) -> None:
    """Say that the step is computed again in smaller forward passes, and let later attempts begin with them."""
    size = fit.choice.size
    context.progress.say(f"out of GPU memory: the step is computed again with {size}")
    if context.checkpoints:
        context.checkpoints.write_step_size(size)


def _check_held(parameters: Parameters, model: "PreTrainedModel") -> Coverage | None:
    """What the loaded base holds in NF4; None for LoRA.

    Raises:
        InvalidInput: nothing, although the method is QLoRA.
    """
    if parameters.method is not Method.QLORA:
        return None
    held = held_in_nf4(model)
    check_method(held, parameters.method, type(model).__name__)
    return held


class _StopRequested(Exception):
    """SIGTERM arrived during an evaluation."""


def _validation(
    context: StageContext, setup: _Setup, pad_token_id: int, arrangement: "Arrangement", fit: StepFit
) -> Validation | None:
    """The validation that spec.training.evaluation asks for, on the first evaluation.maxExamples rows."""
    spec = setup.parameters.training.evaluation
    if spec is None:
        return None
    rows = read_eval_tokens(context.inputs[PREPARED], setup.parameters.evaluation.max_examples)
    # Each rank measures its share of the rows.
    prompts, completions = (column[context.ranks.rank :: context.ranks.size] for column in rows)

    def check_stop(*_: object) -> None:
        if context.stop.is_set():
            raise _StopRequested

    def measure(model: "PeftModel") -> tuple[float, int] | None:
        from edgetune_jobs.training.kernels.attention import as_in_inference

        try:
            with as_in_inference(model, arrangement.in_inference):
                found = teacher_forced(
                    model,
                    prompts,
                    completions,
                    pad_token_id=pad_token_id,
                    batch_size=fit.choice.micro_batch_size,
                    on_batch=check_stop,
                )
        except _StopRequested:
            return None
        return found.total, found.tokens

    return Validation(spec, measure, context.scratch / "best", context.ranks)


def _train(context: StageContext, training: _Training) -> int | None:
    """Train to the end; the step of the checkpoint that this attempt resumed from, None if there was none."""
    from edgetune_jobs.training.loop import EndedBeforeFirstStep

    folder = context.scratch / "resume"
    folder.mkdir()
    trainer = training.trainer
    step = context.checkpoints.restore_latest(folder, trainer.checkpoint_check()) if context.checkpoints else None
    if any(stopped for (stopped,) in context.ranks.gather(context.stop.is_set())):
        raise Interrupted("stopped by SIGTERM before the first step of this attempt", step)
    context.progress.say("training" if step is None else f"resuming training from the checkpoint of step {step}")
    if step is not None:
        for part in training.parts:
            part.restore_from(folder)
    with suppress(EndedBeforeFirstStep):
        trainer.train(resume_from_checkpoint=None if step is None else str(folder))
    reached, total = trainer.state.global_step, trainer.state.max_steps
    if not training.has_ended:
        raise Interrupted(
            f"stopped by SIGTERM after step {reached} of {total}; its checkpoint is in the store, and the next attempt "
            "resumes from it",
            reached if context.checkpoints else None,
        )
    return step


def _save(context: StageContext, setup: _Setup, training: _Training, resumed_from: int | None) -> StageOutput:
    from edgetune_jobs.training.loop import LOSS_WINDOW, losses

    peaks = [peak for (peak,) in context.ranks.gather(loading.peak_memory_bytes(setup.device))]
    if context.ranks.rank:
        return StageOutput()  # rank 0 reports for all
    spec, trainer, watch, parameters = setup.parameters, training.trainer, training.watch, training.parameters
    state = trainer.state
    step_losses = losses(state.log_history)
    last = step_losses[-LOSS_WINDOW:]
    record = TrainingRecord(
        method=spec.method,
        precision=setup.precision,
        base_dtype=loading.dtype_name(loading.dtype_of(setup.precision)),
        base=spec.base_model,
        steps=state.global_step,
        epochs=state.epoch or 0.0,
        loss=sum(last) / len(last),
        trainable_parameters=parameters.trainable,
        total_parameters=parameters.total,
        seed=spec.training.seed,
    )
    best = _put_back_best(training)
    write_adapter_folder(context, trainer.model, record)
    training.log.save_to(context.output / ADAPTER)
    write_event_file(training.log.path, context.output / ADAPTER)
    weights = adapter_layers.read_adapter_weights(context.output / ADAPTER)
    warnings = (*adapter_layers.check_learned(weights, state.global_step), *training.warnings)
    metrics = {
        "steps": record.steps,
        "epochs": record.epochs,
        "loss": record.loss,
        "firstLoss": step_losses[0],
        "tokensPerSecond": watch.tokens / watch.seconds if watch.seconds else 0.0,
        "trainSeconds": watch.seconds,
        "trainableParameters": parameters.trainable,
        "totalParameters": parameters.total,
        "trainableShare": parameters.share,
        "peakMemoryBytes": max(peaks),
        "estimatedPeakMemoryBytes": training.loaded_bytes + training.fit.choice.bytes,
    }
    if resumed_from is not None:
        metrics["resumedFromStep"] = resumed_from
    facts = _facts(setup, training)
    if context.ranks.size > 1:
        metrics["worldSize"] = context.ranks.size
        facts["ranks"] = f"{context.ranks.described}; the most memory is that of rank {peaks.index(max(peaks))}"
    if best is not None:
        metrics |= {"bestStep": best.step, "validationLoss": best.loss, "plannedSteps": state.max_steps}
        facts["adapter"] = _described_choice(training, best)
    if training.held is not None:
        metrics["quantizedShare"] = round(training.held.share, 4)
        warnings += check_method(training.held, spec.method, type(trainer.model.get_base_model()).__name__)
    return StageOutput((ADAPTER,), metrics, facts, warnings)


def _put_back_best(training: _Training) -> BestStep | None:
    """Give the model the adapter of the best step; the step, None without evaluations.

    Raises:
        TrainingDiverged: no validation loss was finite.
    """
    if training.validation is None:
        return None
    best = training.validation.best
    if best is None:
        raise TrainingDiverged(
            "the validation loss was not finite after any step; check the evaluation rows, or lower "
            "spec.training.learningRate"
        )
    training.validation.put_back_best(training.trainer.model)
    return best


def _described_choice(training: _Training, best: BestStep) -> str:
    state = training.trainer.state
    chosen = f"of step {best.step}, which has the lowest validation loss ({best.loss:.4f})"
    if not training.stopped_early:
        return chosen
    return f"{chosen}; training stopped early after step {state.global_step} of {state.max_steps}"


def _facts(setup: _Setup, training: _Training) -> dict[str, str]:
    """What was chosen, and why."""
    spec = setup.parameters.training
    optimizer = recipe.resolve_optimizer(spec.optimizer)
    if optimizer.startswith("paged_") and setup.device.type == "cpu":
        optimizer += " (on a CPU there is nothing to page)"
    return {
        "device": loading.describe_device(setup.device),
        "precision": loading.describe_precision(spec.precision, setup.precision),
        "optimizer": optimizer,
        **training.arrangement.facts(),
        "kernels": training.kernels.value,
        **training.fit.facts(),
        "activations": training.activations.described,
    }
