"""Estimates the memory of a training before it starts.

    base        with QLoRA, 4.127 bits per quantized weight: NF4, and 0.127 bits for double-quantized scales (Dettmers
                et al. 2023, QLoRA, section 3: blocks of 64, their scales in 8 bits in blocks of 256);
                other weights, and with LoRA all of them, in the dtype of computation
    dequantized the largest linear layer in that dtype: QLoRA dequantizes one layer at a time; and the experts, which
                the backward pass needs: with gradient checkpointing those of one block, otherwise all
    adapter     rank · (inputs + outputs) parameters per layer, weights and gradients in 32 bits
    optimizer   Adam: two values per parameter in 32 or 8 bits; Adafactor: a row and a column of each matrix
    activations 34 bytes per layer, token and hidden unit in 16 bits, without attention scores, which fused attention
                does not store (Korthikanti et al. 2022, Reducing Activation Recomputation, section 4.1);
                with gradient checkpointing, the input of each layer, and all activations of one layer
    logits      one float32 tile [positions, vocabulary]: trl's fused output head never stores all logits

The number of tokens is that of one micro-batch in which all examples are as long as the longest. Library buffers are
not included; they take another 0.5 to 1 GiB on a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edgetune_contract.spec import Method, Parameters
from edgetune_contract.training import Optimizer, Precision
from edgetune_jobs.models.inspection import BaseModel, LinearLayer
from edgetune_jobs.models.quantization.coverage import Coverage

_NF4_BYTES = (4 + 0.127) / 8
_FLOAT32_BYTES = 4
_ACTIVATION_BYTES_IN_16_BITS = 34
_OPTIMIZER_BYTES: dict[Optimizer, float] = {
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


def estimate_training(
    base: BaseModel, coverage: Coverage, targets: Sequence[LinearLayer], parameters: Parameters, longest: int
) -> TrainingMemory:
    """Estimated memory of a training.

    Args:
        base: the base model.
        coverage: what QLoRA quantizes in it.
        targets: the layers that get an adapter.
        parameters: of the run.
        longest: tokens of the longest training example, after truncation.
    """
    training = parameters.training
    number_bytes = _FLOAT32_BYTES if training.precision is Precision.FP32 else 2
    is_quantized = parameters.method is Method.QLORA
    packed = coverage.quantized if is_quantized else 0
    experts = coverage.largest_experts if training.gradient_checkpointing else coverage.experts
    trainable = trainable_parameters(targets, parameters.lora.rank)
    tokens = training.micro_batch_size * (training.max_length if training.packing else longest)
    return TrainingMemory(
        base=round(packed * _NF4_BYTES + (base.parameters - packed) * number_bytes),
        dequantized=max(coverage.largest, experts) * number_bytes if is_quantized else 0,
        adapter=2 * trainable * _FLOAT32_BYTES,
        optimizer=_optimizer_bytes(training.optimizer, targets, parameters.lora.rank),
        activations=_activation_bytes(base, tokens, number_bytes, checkpointing=training.gradient_checkpointing),
        logits=min(tokens, _TILE_POSITIONS) * min(base.vocabulary or 0, _TILE_VOCABULARY) * _FLOAT32_BYTES,
    )


def trainable_parameters(targets: Sequence[LinearLayer], rank: int) -> int:
    """Parameters of the adapter: rank · (inputs + outputs) per layer."""
    return rank * sum(layer.features for layer in targets)


def _optimizer_bytes(optimizer: Optimizer, targets: Sequence[LinearLayer], rank: int) -> int:
    if optimizer == "adafactor":
        rows_and_columns = sum(layer.features + 2 * rank for layer in targets)
        return rows_and_columns * _FLOAT32_BYTES
    return round(trainable_parameters(targets, rank) * _OPTIMIZER_BYTES[optimizer])


def _activation_bytes(base: BaseModel, tokens: int, number_bytes: int, *, checkpointing: bool) -> int:
    hidden, layers = base.hidden_size, base.layers
    one_layer = tokens * hidden * _ACTIVATION_BYTES_IN_16_BITS * number_bytes // 2
    return layers * tokens * hidden * number_bytes + one_layer if checkpointing else layers * one_layer
