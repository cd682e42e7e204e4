"""Parameter models of the training: spec.training."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from edgetune_contract.schema import Model, Rule


class CheckpointSpec(Model):
    """Interval and number of training checkpoints in the store."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Optimizer steps between two checkpoints. A training that is stopped by SIGTERM also writes one."""

    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """Number of complete checkpoints to keep in the store during training; the newest are kept."""


class TrainingEvaluation(Model):
    """Validation loss during training, over the rows that also give the scores: the first evaluation.maxExamples. The
    adapter is that of the step with the lowest validation loss."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Optimizer steps between two evaluations. The last step is also evaluated."""

    patience: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Training stops early after this number of consecutive evaluations without a lower validation loss. Default: it
    never stops early."""


AUTO: Literal["Auto"] = "Auto"

Optimizer = Literal[
    "Auto", "paged_adamw_8bit", "paged_adamw_32bit", "adamw_8bit", "adamw_torch", "adamw_torch_fused", "adafactor"
]
Scheduler = Literal["cosine", "cosine_with_restarts", "linear", "polynomial", "constant", "constant_with_warmup"]


class Precision(StrEnum):
    """Dtype of the arithmetic during training."""

    AUTO = "Auto"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


class Layout(StrEnum):
    """Arrangement of the examples of one forward pass. Examples never attend to each other."""

    PADDING_FREE = "PaddingFree"
    PADDED = "Padded"
    PACKED = "Packed"


class Attention(StrEnum):
    """Implementation of attention during training."""

    AUTO = "Auto"
    SDPA = "Sdpa"
    VARLEN = "Varlen"


class Kernels(StrEnum):
    """Kernels for norms, rotary positions and gated units during training."""

    TORCH = "Torch"
    LIGER = "Liger"


class GradientCheckpointing(StrEnum):
    """Recomputation of activations in the backward pass."""

    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


MOST_EXAMPLES = 4096
MOST_GPUS = 64


def _check_micro_batch_size(value: Any) -> Any:
    if value == AUTO or (type(value) in (int, float) and value == int(value) and 1 <= value <= MOST_EXAMPLES):
        return value if value == AUTO else int(value)
    raise ValueError(f"must be Auto or a whole number from 1 to {MOST_EXAMPLES:,}, is {value!r}")


MicroBatchSize = Annotated[
    int | Literal["Auto"],
    BeforeValidator(_check_micro_batch_size),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "default": AUTO,
            "minimum": 1,
            "maximum": MOST_EXAMPLES,
            "pattern": f"^{AUTO}$",
        }
    ),
]


def _check_gpus(value: Any) -> Any:
    if value == AUTO or (type(value) in (int, float) and value == int(value) and 1 <= value <= MOST_GPUS):
        return value if value == AUTO else int(value)
    raise ValueError(f"must be Auto or a whole number from 1 to {MOST_GPUS}, is {value!r}")


Gpus = Annotated[
    int | Literal["Auto"],
    BeforeValidator(_check_gpus),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "default": AUTO,
            "minimum": 1,
            "maximum": MOST_GPUS,
            "pattern": f"^{AUTO}$",
        }
    ),
]


def gpus_that_divide(batch_size: int, most: int) -> int:
    """The largest number of GPUs up to `most` that share a batch evenly."""
    return max(gpus for gpus in range(1, most + 1) if batch_size % gpus == 0)


def nearest_batch_sizes(batch_size: int, gpus: int) -> str:
    """The multiples of `gpus` next to a batch size that is none, such as "12 or 16"."""
    below = batch_size // gpus * gpus
    found = [size for size in (below, below + gpus) if 0 < size <= MOST_EXAMPLES]
    return " or ".join(map(str, found))


class TrainingSpec(Model):
    """Hyperparameters of the training."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 3
    """Number of passes over the training rows. Ignored if maxSteps is set."""

    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Number of optimizer steps. Overrides epochs."""

    batch_size: Annotated[int, Field(ge=1, le=MOST_EXAMPLES)] = 16
    """Examples per optimizer step, in every layout."""

    micro_batch_size: MicroBatchSize = AUTO
    """Largest number of examples per forward pass; with layout: Packed, of sequences of maxLength tokens. Auto: enough
    for about 8,000 tokens, and no more than fit into the memory that is free. It is halved when the GPU runs out of
    memory. It changes speed and memory, not the losses, except for the auxiliary loss of mixtures of experts, which
    balances each forward pass."""

    gpus: Gpus = AUTO
    """GPUs that share the examples of each step, on all nodes together, up to the profile's maxGpus on each of its
    maxNodes. They change the time of a step, not its losses, and batchSize must be a multiple of them. They are on as
    few nodes as possible, with equally many on each. Auto: as many of those that the profile gives to train by default
    as divide batchSize."""

    layout: Layout = Layout.PADDING_FREE
    """Arrangement of the examples of one forward pass: PaddingFree (joined, without padding), Padded (each on a row of
    its own, padded to the longest) or Packed (joined up to maxLength tokens, however many examples that are). Examples
    never attend to each other, and the losses are equal, except for the auxiliary loss of mixtures of experts. A model
    that mixes joined examples, or does not support attention: Varlen, is trained Padded, with a warning."""

    attention: Attention = Attention.AUTO
    """Attention during training: Sdpa, or Varlen, which computes joined examples one by one, on a GPU of compute
    capability 8.0 or newer in one FlashAttention kernel. Auto: Varlen if the model supports it, otherwise Sdpa of
    padded rows."""

    kernels: Kernels = Kernels.TORCH
    """Kernels for norms, rotary positions and gated units during training: Torch, or Liger, which passes through memory
    less often. Where Liger has no kernels for the model, or they do not compute the same logits within rounding, and
    without a GPU, it is Torch, with a warning."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.0002
    """Peak learning rate."""

    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the optimizer steps, rounded up, in which the learning rate rises in equal steps to learningRate, 0 to
    below 1. The first step's rate is above 0: a warm-up of one step is a step with learningRate."""

    scheduler: Scheduler = "cosine"
    """Learning rate schedule after the warm-up, by its name in transformers. constant has no warm-up."""

    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = 2048
    """Maximum length of an example, in tokens. Longer examples are truncated; their share is reported, and examples
    with no tokens left to learn are listed."""

    optimizer: Optimizer = AUTO
    """Optimizer, by its name in transformers. Auto: adamw_torch_fused."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of the adapter."""

    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Maximum norm of the gradients, which are clipped to it. 0 disables clipping."""

    gradient_checkpointing: GradientCheckpointing = GradientCheckpointing.AUTO
    """Recompute activations in the backward pass: less memory and about a third more time, with equal losses. Auto: in
    as few layers as the memory that is free requires."""

    precision: Precision = Precision.AUTO
    """Dtype of the arithmetic. Auto is BF16 if the hardware supports it, otherwise FP16 on a GPU and FP32 on a CPU."""

    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 42
    """Seed of the evaluation split, the adapter's initial values, the data order and the dropout."""

    checkpoint: CheckpointSpec = CheckpointSpec()
    """Training checkpoints in the store."""

    evaluation: TrainingEvaluation | None = None
    """Measure the validation loss during training, and keep the best step's adapter instead of the last step's."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="type(self.microBatchSize) != int || self.microBatchSize <= self.batchSize",
            holds=lambda self: self.micro_batch_size == AUTO or self.micro_batch_size <= self.batch_size,
            message="microBatchSize must be at most batchSize",
        ),
        Rule(
            cel="type(self.gpus) != int || self.batchSize % self.gpus == 0",
            holds=lambda self: self.gpus == AUTO or self.batch_size % self.gpus == 0,
            message="batchSize must be a multiple of gpus, which share the examples of a step",
            advice=lambda self: f"use {nearest_batch_sizes(self.batch_size, self.gpus)}",
        ),
        Rule(
            cel="self.attention != 'Varlen' || self.layout != 'Padded'",
            holds=lambda self: self.attention is not Attention.VARLEN or self.layout is not Layout.PADDED,
            message="attention: Varlen requires layout: PaddingFree or Packed",
        ),
        Rule(
            cel="!has(self.evaluation) || !has(self.maxSteps) || self.evaluation.everySteps <= self.maxSteps",
            holds=lambda self: (
                self.evaluation is None or self.max_steps is None or self.evaluation.every_steps <= self.max_steps
            ),
            message="evaluation.everySteps must be at most maxSteps: otherwise only the last step is evaluated",
        ),
    )
