"""Translates spec.training and spec.lora into configurations of transformers, peft and trl."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.spec import LoraSpec
from edgetune_contract.training import AUTO, Layout, Optimizer, Precision, TrainingSpec
from edgetune_jobs.data.prepared_data import TRAIN
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.adapters.target_modules import matching, read_as_experts, requested_modules, short_name
from edgetune_jobs.models.quantization.coverage import is_linear_layer, parameter_numbers
from edgetune_jobs.training.step_batch import IGNORED_LABEL
from edgetune_jobs.wording import some

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel
    from trl import SFTConfig

_MOST_NAMES_IN_A_MESSAGE = 12

# The end of the polynomial in transformers, which refuses a peak that is not above it.
_POLYNOMIAL_END = 1e-7
_POLYNOMIAL_END_SHARE = 0.01


@dataclass(frozen=True)
class Targets:
    """The linear layers that get an adapter."""

    requested: tuple[str, ...]
    """Target modules for peft, such as q_proj; they match layers by the last parts of their names."""

    layers: tuple[str, ...]
    """Full names of the layers, such as model.layers.0.self_attn.q_proj."""

    features: int
    """Sum of inputs plus outputs of these layers; the adapter has rank * features parameters."""


@dataclass(frozen=True)
class ParameterCount:
    """Number of parameters of base model and adapter; 4-bit weights are counted unpacked."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Share of trainable parameters, 0 to 1."""
        return self.trainable / self.total


def find_targets(model: "PreTrainedModel", lora: LoraSpec) -> Targets:
    """The linear layers of spec.lora.targetModules, in a model without adapter.

    Raises:
        InvalidInput: a target matches no module, the output head, or a module that is not a linear layer; or the model
            has no linear layers.
    """
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    linears = {name: module for name, module in modules.items() if is_linear_layer(module) and module is not head}
    if not linears:
        raise InvalidInput(
            f"spec.baseModel: {type(model).__name__} has no linear layers except its output head, so it cannot have an "
            "adapter; use another base model"
        )
    requested = requested_modules(lora, linears, modules, mixture_type(model))
    matches = {target: matching(target, modules) for target in requested}
    _check_matches(matches, linears, head_name=next((name for name, module in modules.items() if module is head), ""))
    layers = tuple(name for name in linears if any(name in names for names in matches.values()))
    return Targets(requested, layers, sum(linears[name].in_features + linears[name].out_features for name in layers))


def mixture_type(model: "PreTrainedModel") -> str | None:
    """The model_type of a model with experts; None for others."""
    is_mixture = any("experts" in name.split(".") for name, _ in model.named_modules())
    return str(model.config.model_type) if is_mixture else None


def layers_left_out(model: "PreTrainedModel", targets: Targets) -> tuple[str, ...]:
    """Short names of the linear layers that AllLinear leaves out, because peft takes them for experts."""
    names = [name for name, module in model.named_modules() if is_linear_layer(module) and name not in targets.layers]
    return tuple(sorted(read_as_experts(names, mixture_type(model))))


def count_parameters(model: "torch.nn.Module") -> ParameterCount:
    """Trainable and total parameters of a model with its adapter; tied weights are counted once."""
    numbers = parameter_numbers(model)
    trainable = sum(count for parameter, count in numbers.items() if parameter.requires_grad)
    return ParameterCount(trainable, sum(numbers.values()))


def check_trainable(model: "torch.nn.Module", targets: Targets, lora: LoraSpec) -> ParameterCount:
    """Count the parameters of a model with its adapter, and check the trainable ones.

    Raises:
        InvalidInput: the number of trainable parameters is not rank * sum(inputs + outputs).
    """
    count = count_parameters(model)
    expected = lora.rank * targets.features
    if count.trainable != expected:
        raise InvalidInput(
            f"spec.lora: {count.trainable:,} parameters are trainable, but rank {lora.rank} on "
            f"{len(targets.layers)} layers requires {expected:,}; list the full names of the layers in "
            "spec.lora.targetModules"
        )
    return count


def cast_adapter_to_float32(model: "torch.nn.Module") -> None:
    """Convert the trainable parameters to float32 in place; computation stays in the training's precision (autocast).

    trl keeps the adapter of a 4-bit base in bfloat16, which rounds away updates smaller than 1/512 of a weight.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def lora_config(lora: LoraSpec, targets: Targets) -> "LoraConfig":
    """The configuration of the adapter for peft."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rs_lora,
        bias="none",
        target_modules=list(targets.requested),
    )


def sft_config(training: TrainingSpec, layout: Layout, precision: Precision, on_gpu: bool, folder: Path) -> "SFTConfig":
    """The configuration of the training for trl.

    A batch of the trainer is all of a step: AdapterTrainer splits it into forward passes, and enables gradient
    checkpointing.

    Args:
        training: spec.training.
        layout: the layout in use.
        precision: resolved, not Auto.
        on_gpu: whether training uses a GPU.
        folder: folder for checkpoints.
    """
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup_ratio,
        lr_scheduler_type=training.scheduler,
        lr_scheduler_kwargs=_scheduler_options(training),
        optim=resolve_optimizer(training.optimizer),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        activation_checkpointing=False,
        bf16=precision is Precision.BF16,
        fp16=precision is Precision.FP16,
        use_cpu=not on_gpu,
        seed=training.seed,
        max_length=None,
        padding_free=layout is not Layout.PADDED,
        # training_rows has already tokenized and truncated; trl would map over the rows three times in Python.
        dataset_kwargs={"skip_prepare_dataset": True},
        # Log the unfiltered loss of each step, so that StepWatch sees a loss that is not finite at once.
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        save_strategy="steps",
        save_steps=training.checkpoint.every_steps,
        save_total_limit=1,
        dataloader_pin_memory=False,
    )


def resolve_optimizer(optimizer: Optimizer) -> str:
    """The optimizer's name in transformers.

    The state of an adapter is small, so that paging or 8 bits save little of the GPU's memory, and the optimizers of
    bitsandbytes wait for the GPU after each tensor.
    """
    return "adamw_torch_fused" if optimizer == AUTO else optimizer


def _scheduler_options(training: TrainingSpec) -> dict[str, float]:
    """Options of the scheduler, by their names in transformers, whose polynomial ends at 1e-7 whatever the peak is."""
    if training.scheduler != "polynomial":
        return {}
    return {"lr_end": min(_POLYNOMIAL_END, training.learning_rate * _POLYNOMIAL_END_SHARE)}


def with_warmup(schedule: Callable[[int], float], warmup_steps: int) -> Callable[[int], float]:
    """A learning rate schedule whose warm-up rises to the peak in `warmup_steps` steps and has no step of rate 0.

    The library's warm-up begins at 0, so that its first step learns nothing: with a warm-up of one step, as in every
    training of up to 33 steps with the default warmupRatio, that is all of the warm-up.

    Args:
        schedule: the library's share of the peak rate by the number of steps done.
        warmup_steps: number of steps of the warm-up.
    """

    def share(done: int) -> float:
        return (done + 1) / warmup_steps if done < warmup_steps else schedule(done)

    return share


def training_rows(prepared: Path) -> "Dataset":
    """Rows of train.parquet for trl's trainer, one for each example: input_ids and labels (int32).

    Labels are -100 for tokens that are not learned.

    Raises:
        InvalidInput: there are no rows.
    """
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet
    from datasets import Dataset

    table = pyarrow.parquet.read_table(prepared / TRAIN, columns=["input_ids", "completion_mask"]).combine_chunks()
    if table.num_rows == 0:
        raise InvalidInput("spec.dataset.train: there are no rows to train on")
    ids, mask = (table[name].chunk(0) for name in ("input_ids", "completion_mask"))
    learned = pyarrow.compute.equal(mask.flatten(), 1)
    labels = pyarrow.compute.if_else(learned, ids.flatten(), pyarrow.scalar(IGNORED_LABEL, ids.type.value_type))
    offsets = pyarrow.compute.subtract(ids.offsets, ids.offsets[0])
    return Dataset(
        pyarrow.table(
            {
                "input_ids": pyarrow.ListArray.from_arrays(offsets, ids.flatten()),
                "labels": pyarrow.ListArray.from_arrays(offsets, labels),
            }
        )
    )


def lengths_of(rows: "Dataset") -> list[int]:
    """Tokens of each example."""
    import pyarrow.compute

    lengths: list[int] = pyarrow.compute.list_value_length(rows.data["input_ids"]).to_pylist()
    return lengths


def _check_matches(matches: Mapping[str, set[str]], linears: Mapping[str, Any], head_name: str) -> None:
    layers = some(sorted({short_name(name) for name in linears}), _MOST_NAMES_IN_A_MESSAGE)
    advice = f"use some of its linear layers: {layers}"
    for target, names in matches.items():
        if not names:
            raise InvalidInput(f"spec.lora.targetModules: the base model has no module {target!r}; {advice}")
        if head_name in names:
            raise InvalidInput(
                f"spec.lora.targetModules: {target!r} is the output head, which cannot have an adapter; remove it"
            )
        others = sorted(names - set(linears))
        if others:
            raise InvalidInput(
                f"spec.lora.targetModules: {target!r} matches {others[0]} of the base model, which is not a linear "
                f"layer; {advice}"
            )
