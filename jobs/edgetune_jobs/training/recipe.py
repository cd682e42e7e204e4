"""What a spec's training and lora sections mean for transformers, peft and trl; no training is done here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.spec import LoraSpec, Precision, TrainingSpec
from edgetune_jobs.data.prepared_data import TRAIN
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.messages import some
from edgetune_jobs.models.target_modules import matching, requested_modules, short_name

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel
    from trl import SFTConfig

IGNORED_LABEL = -100
_MOST_NAMES_IN_A_MESSAGE = 12


@dataclass(frozen=True)
class Targets:
    """The linear layers that get an adapter."""

    requested: tuple[str, ...]
    """Names for peft, such as q_proj: a layer is meant when its name ends in one of them."""

    layers: tuple[str, ...]
    """Names of the layers in the base, such as model.layers.0.self_attn.q_proj."""

    features: int
    """Sum over these layers of inputs plus outputs: the adapter has rank * features parameters."""


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of base and adapter together; a 4-bit weight counts as the numbers that it stands for."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable parameters over all, 0 to 1."""
        return self.trainable / self.total


def find_targets(model: "PreTrainedModel", lora: LoraSpec) -> Targets:
    """Linear layers that spec.lora.targetModules asks for, found before the adapter is put in.

    Raises:
        InvalidInput: a name matches no module, the output head, or something that is no linear layer; or there is no
            linear layer at all.
    """
    from torch import nn

    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    linears = {name: module for name, module in modules.items() if isinstance(module, nn.Linear) and module is not head}
    if not linears:
        raise InvalidInput(
            f"spec.baseModel: {type(model).__name__} has no linear layer besides its output head, so nothing of it can "
            "carry an adapter: name another base"
        )
    requested = requested_modules(lora, linears, modules)
    matches = {target: matching(target, modules) for target in requested}
    _check_matches(matches, linears, head_name=next((name for name, module in modules.items() if module is head), ""))
    layers = tuple(name for name in linears if any(name in names for names in matches.values()))
    return Targets(requested, layers, sum(linears[name].in_features + linears[name].out_features for name in layers))


def count_parameters(model: "torch.nn.Module") -> ParameterCount:
    """Trainable and total parameters of a model with its adapter; tied weights count once."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        numbers = math.prod(state.shape) if state is not None else parameter.numel()
        total += numbers
        trainable += numbers if parameter.requires_grad else 0
    return ParameterCount(trainable, total)


def check_trainable(model: "torch.nn.Module", targets: Targets, lora: LoraSpec) -> ParameterCount:
    """Count of a model with its adapter, which must be what the request asks for.

    Raises:
        InvalidInput: not rank * sum(inputs + outputs) parameters are trainable.
    """
    count = count_parameters(model)
    expected = lora.rank * targets.features
    if count.trainable != expected:
        raise InvalidInput(
            f"spec.lora: {count.trainable:,} parameters would be trained, but rank {lora.rank} on "
            f"{len(targets.layers)} layers of targetModules makes {expected:,}: name the layers one by one in "
            "spec.lora.targetModules"
        )
    return count


def hold_adapter_in_float32(model: "torch.nn.Module") -> None:
    """Turn the trainable parameters into float32, in place; arithmetic stays in the training's precision (autocast).

    trl holds the adapter of a 4-bit base in bfloat16, where an update of less than 1/512 of a weight is rounded away.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def lora_config(lora: LoraSpec, targets: Targets) -> "LoraConfig":
    """peft's configuration of the adapter."""
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


def sft_config(
    training: TrainingSpec, precision: Precision, micro_batch_size: int, on_gpu: bool, folder: Path
) -> "SFTConfig":
    """trl's configuration of the training.

    Args:
        training: the spec's section.
        precision: resolved, not Auto.
        micro_batch_size: examples in one forward pass; divides training.batch_size.
        on_gpu: whether a GPU trains.
        folder: where the trainer writes checkpoints.
    """
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=training.batch_size // micro_batch_size,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup_ratio,
        lr_scheduler_type=training.scheduler,
        optim=training.optimizer,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        bf16=precision is Precision.BF16,
        fp16=precision is Precision.FP16,
        use_cpu=not on_gpu,
        seed=training.seed,
        max_length=training.max_length,
        packing=training.packing,
        # Rows come as tokens with labels, cut and packed by us: trl would map over them three times in Python.
        dataset_kwargs={"skip_prepare_dataset": True},
        # The loss of each step, as it is: a loss that is not finite must be seen in the step in which it appears.
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        save_strategy="steps",
        save_steps=training.checkpoint.every_steps,
        save_total_limit=1,
        dataloader_pin_memory=on_gpu,
    )


def training_rows(prepared: Path, training: TrainingSpec) -> "Dataset":
    """Rows of train.parquet as trl's trainer reads them: input_ids and labels (int32), packed if the spec says so.

    Only the tokens of the completion carry a label. A row is one example, or with packing up to max_length tokens of
    several examples, with their lengths in seq_lengths.

    Raises:
        InvalidInput: there is no row.
    """
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet
    from datasets import Dataset
    from trl import pack_dataset

    table = pyarrow.parquet.read_table(prepared / TRAIN, columns=["input_ids", "completion_mask"]).combine_chunks()
    if table.num_rows == 0:
        raise InvalidInput("spec.dataset.train: there is no row to train on")
    ids, mask = (table[name].chunk(0) for name in ("input_ids", "completion_mask"))
    learned = pyarrow.compute.equal(mask.flatten(), 1)
    labels = pyarrow.compute.if_else(learned, ids.flatten(), pyarrow.scalar(IGNORED_LABEL, ids.type.value_type))
    offsets = pyarrow.compute.subtract(ids.offsets, ids.offsets[0])
    rows = Dataset(
        pyarrow.table(
            {
                "input_ids": pyarrow.ListArray.from_arrays(offsets, ids.flatten()),
                "labels": pyarrow.ListArray.from_arrays(offsets, labels),
            }
        )
    )
    return pack_dataset(rows, training.max_length, "bfd") if training.packing else rows


def next_micro_batch_size(batch_size: int, size: int) -> int | None:
    """The largest divisor of `batch_size` of at most half of `size`; None when `size` is 1."""
    return next((smaller for smaller in range(size // 2, 0, -1) if batch_size % smaller == 0), None)


def usable_micro_batch_size(training: TrainingSpec, left_by_earlier_attempt: int | None) -> int:
    """The spec's micro-batch size, or the smaller one that an attempt which ran out of memory left."""
    if left_by_earlier_attempt is None or training.batch_size % left_by_earlier_attempt:
        return training.micro_batch_size
    return min(training.micro_batch_size, left_by_earlier_attempt)


def _check_matches(matches: Mapping[str, set[str]], linears: Mapping[str, Any], head_name: str) -> None:
    there = some(sorted({short_name(name) for name in linears}), _MOST_NAMES_IN_A_MESSAGE)
    for target, names in matches.items():
        if not names:
            raise InvalidInput(
                f"spec.lora.targetModules: the base has no module named {target}; its linear layers are named {there}"
            )
        if head_name in names:
            raise InvalidInput(
                f"spec.lora.targetModules: {target} is the output head, which cannot carry an adapter: leave it out"
            )
        unsuitable = sorted(names - set(linears))
        if unsuitable:
            raise InvalidInput(
                f"spec.lora.targetModules: {target} matches {unsuitable[0]}, which is no linear layer; those are "
                f"named {there}"
            )
