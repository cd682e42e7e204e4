"""Estimates the memory of a training before it starts.

    base        with QLoRA, 4.127 bits per quantized weight: NF4, and 0.127 bits for double-quantized scales (Dettmers
                et al. 2023, QLoRA, section 3: blocks of 64, their scales in 8 bits in blocks of 256);
                other weights, and with LoRA all of them, in the dtype of computation
    dequantized the largest linear layer in that dtype: QLoRA dequantizes one layer at a time; and the experts, which
                the backward pass needs: if all layers are recomputed those of one block, otherwise all
    adapter     rank · (inputs + outputs) parameters per layer, weights and gradients in 32 bits
    optimizer   Adam: two values per parameter in 32 or 8 bits; Adafactor: a row and a column of each matrix
    activations what autograd saves, measured by `activations.py`; of a layer that is recomputed (gradient
                checkpointing) only its input, and all activations of one such layer at a time
    logits      one float32 tile [positions, vocabulary]: trl's fused output head never stores all logits

The number of tokens is that of one micro-batch in which all examples are as long as the longest. Where the spec says
Auto, it is the least that a training takes: one example at a time, and all layers recomputed. Library buffers are not
included; they take another 0.5 to 1 GiB on a GPU (see `gpu_fit`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edgetune_contract.spec import Method, Parameters
from edgetune_contract.training import AUTO, GradientCheckpointing, Layout, Optimizer, Precision, TrainingSpec
from edgetune_jobs.models.inspection import BaseModel, LinearLayer
from edgetune_jobs.models.quantization.coverage import Coverage
from edgetune_jobs.training.memory.activations import Activations

_NF4_BYTES = (4 + 0.127) / 8
_FLOAT32_BYTES = 4
_OPTIMIZER_BYTES: dict[Optimizer, float] = {
    "Auto": 8,
    "paged_adamw_8bit": 2,
    "adamw_8bit": 2,
    "paged_adamw_32bit": 8,
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
}
# The tiles of trl's fused output head (trl.kernels.chunked_logprob, trl.trainer.utils).
_TILE_POSITIONS = 4096
_TILE_VOCABULARY = 32768


@dataclass(frozen=True)
class TrainingMemory:
    """Estimated memory of a training in bytes, by part."""

    base: int
    dequantized: int
    adapter: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """The sum of all parts in bytes."""
        return self.base + self.dequantized + self.adapter + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class Workload:
    """A training, with all that its memory depends on."""

    base: BaseModel
    coverage: Coverage
    """What QLoRA quantizes in the base."""

    targets: Sequence[LinearLayer]
    """The layers that get an adapter."""

    parameters: Parameters
    longest: int
    """Tokens of the longest training example, after truncation."""

    activations: Activations
    """Measured for `number_bytes_of` the training."""

    @property
    def tokens_of_example(self) -> int:
        """Tokens of the longest row of a forward pass."""
        training = self.parameters.training
        return training.max_length if training.layout is Layout.PACKED else self.longest

    def least(self) -> TrainingMemory:
        """Memory as the spec says; where it says Auto, the least that a training takes."""
        training = self.parameters.training
        size = 1 if training.micro_batch_size == AUTO else training.micro_batch_size
        recompute = 0 if training.gradient_checkpointing is GradientCheckpointing.NEVER else 1
        return self.memory(size * self.tokens_of_example, recompute)

    def memory(self, tokens: int, recompute: int) -> TrainingMemory:
        """Estimated memory.

        Args:
            tokens: of one forward pass.
            recompute: every how many layers one is recomputed; 0 for none.
        """
        training, rank = self.parameters.training, self.parameters.lora.rank
        number_bytes = number_bytes_of(training)
        is_quantized = self.parameters.method is Method.QLORA
        packed = self.coverage.quantized if is_quantized else 0
        return TrainingMemory(
            base=round(packed * _NF4_BYTES + (self.base.parameters - packed) * number_bytes),
            dequantized=dequantized_bytes(self.coverage, number_bytes, recompute) if is_quantized else 0,
            adapter=2 * self.adapter_weights_bytes,
            optimizer=_optimizer_bytes(training.optimizer, self.targets, rank),
            activations=self.activations.bytes_for(tokens, recompute, self.tokens_of_example),
            logits=logits_bytes(self.base.vocabulary or 0, tokens),
        )

    @property
    def trainable_parameters(self) -> int:
        """Parameters of the adapter."""
        return trainable_parameters(self.targets, self.parameters.lora.rank)

    @property
    def adapter_weights_bytes(self) -> int:
        """Bytes of the adapter's weights, without their gradients."""
        return self.trainable_parameters * _FLOAT32_BYTES


def number_bytes_of(training: TrainingSpec) -> int:
    """Bytes of a number in the dtype of computation; Auto is 16 bits, as on a GPU."""
    return _FLOAT32_BYTES if training.precision is Precision.FP32 else 2


def trainable_parameters(targets: Sequence[LinearLayer], rank: int) -> int:
    """Parameters of the adapter: rank · (inputs + outputs) per layer."""
    return rank * sum(layer.features for layer in targets)


def _optimizer_bytes(optimizer: Optimizer, targets: Sequence[LinearLayer], rank: int) -> int:
    if optimizer == "adafactor":
        rows_and_columns = sum(layer.features + 2 * rank for layer in targets)
        return rows_and_columns * _FLOAT32_BYTES
    return round(trainable_parameters(targets, rank) * _OPTIMIZER_BYTES[optimizer])


def dequantized_bytes(coverage: Coverage, number_bytes: int, recompute: int) -> int:
    """Bytes of NF4 weights that are dequantized at the same time; `recompute` as for the activations."""
    experts = coverage.largest_experts if recompute == 1 else coverage.experts
    return max(coverage.largest, experts) * number_bytes


def logits_bytes(vocabulary: int, tokens: int) -> int:
    """Bytes of one tile of logits."""
    return min(tokens, _TILE_POSITIONS) * min(vocabulary, _TILE_VOCABULARY) * _FLOAT32_BYTES


def adapter_bytes(trainable: int, optimizer: Optimizer) -> int:
    """Bytes of the adapter's gradients and of the optimizer's state, without the rows and columns of Adafactor."""
    return round(trainable * (_FLOAT32_BYTES + _OPTIMIZER_BYTES.get(optimizer, 0)))
