"""The layout of a model in GGUF: hyperparameters, tensor names, dtypes and row order of llama.cpp.

Architectures: Llama (including SmolLM) and Mistral as `llama`, Qwen2 as `qwen2`, Qwen3 as `qwen3`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.int8_arithmetic import Q8_0_BLOCK, q8_0_row_bytes, quantize_q8_0

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

_ARCHITECTURES: Mapping[str, str] = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# Biases that llama.cpp reads (llama-model.cpp). It refuses files with other tensors.
_BIAS = ".bias"
_QKV = ("q_proj.bias", "k_proj.bias", "v_proj.bias")
_ALL = (*_QKV, "o_proj.bias", "gate_proj.bias", "up_proj.bias", "down_proj.bias")
_BIASES: Mapping[str, tuple[str, ...]] = {"llama": _ALL, "qwen2": _QKV, "qwen3": ()}
_F32_BYTES = 4
_ROPE_TYPES = ("default", "linear", "llama3")
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    quantized: bool
    """Q8_0 if True, otherwise float32."""

    head_rows: int
    """Rows per head if llama.cpp interleaves the two halves of each head's rows; 0 if the order is unchanged."""

    @property
    def bytes(self) -> int:
        """Size in bytes, without padding."""
        if self.quantized:
            return math.prod(self.shape[:-1]) * q8_0_row_bytes(self.shape[-1])
        return math.prod(self.shape) * _F32_BYTES

    def encode(self, rows: "torch.Tensor") -> "torch.Tensor | None":
        """The rows in the order and dtype of the file; None if a value is not finite or too large for Q8_0.

        Args:
            rows: [rows, …]; a multiple of `head_rows`.

        Returns:
            Q8_0: uint8 [rows, row bytes]; otherwise float32 of the same shape.
        """
        if self.head_rows:
            halves = rows.reshape(-1, 2, self.head_rows // 2, *rows.shape[1:])
            rows = halves.transpose(1, 2).reshape(rows.shape)
        return quantize_q8_0(rows) if self.quantized else rows.float().contiguous()


@dataclass(frozen=True)
class GgufLayout:
    """Hyperparameters and tensors of a model in GGUF."""

    architecture: str
    """llama.cpp's name of the architecture."""

    config: "PreTrainedConfig"
    tensors: Mapping[str, GgufTensor]
    """Tensors by their name in the model, in the order of the file."""

    rope_factors: tuple[float, ...]
    """Divisors of the RoPE frequencies (Llama 3.1); empty for most models."""

    @property
    def context_length(self) -> int:
        """Maximum context in tokens; at most the sliding window, because llama.cpp attends to the whole context."""
        return min(self.config.max_position_embeddings, _window(self.config) or self.config.max_position_embeddings)

    def add_to(self, writer: "GGUFWriter") -> None:
        """Write the hyperparameters as metadata."""
        from gguf import GGML_QUANT_VERSION, LlamaFileType, RopeScalingType

        config, rope = self.config, self.config.rope_parameters
        head = _head_size(config)
        writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
        writer.add_quantization_version(GGML_QUANT_VERSION)
        writer.add_vocab_size(config.vocab_size)
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(head)
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])


def lay_out(config: "PreTrainedConfig", shapes: Mapping[str, tuple[int, ...]]) -> GgufLayout:
    """The layout of a model.

    Args:
        config: its configuration.
        shapes: shapes of its tensors by name, in the order in which they will be written.

    Raises:
        Unsupported: llama.cpp does not support the model.
    """
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        known = ", ".join(_ARCHITECTURES)
        raise Unsupported(f"the model type {config.model_type!r} is not one of {known}")
    _check_arithmetic(config)
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    by_name = {name: member for member, name in MODEL_ARCH_NAMES.items()}
    member: MODEL_ARCH = by_name[architecture]
    names = get_tensor_name_map(member, config.num_hidden_layers)
    tensors = {}
    for source, shape in shapes.items():
        if source.endswith(_BIAS) and not source.endswith(_BIASES[architecture]):
            raise Unsupported(f"llama.cpp reads no tensor {source} of the architecture {architecture}")
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise Unsupported(f"llama.cpp has no name for the tensor {source}")
        tensors[source] = _tensor(name, source, shape, _head_size(config) if architecture == "llama" else 0)
    return GgufLayout(architecture, config, tensors, _rope_factors(config))


def extra_tensors(layout: GgufLayout) -> Sequence[tuple[GgufTensor, "torch.Tensor"]]:
    """Additional tensors that are not in the model; they are first in the file."""
    import torch

    if not layout.rope_factors:
        return ()
    values = torch.tensor(layout.rope_factors, dtype=torch.float32)
    return ((GgufTensor(_ROPE_FACTORS, tuple(values.shape), quantized=False, head_rows=0), values),)


def _tensor(name: str, source: str, shape: tuple[int, ...], head_rows: int) -> GgufTensor:
    if len(shape) not in (1, 2):
        raise Unsupported(f"the tensor {source} has {len(shape)} dimensions, not 1 or 2")
    quantized = len(shape) == 2
    if quantized and shape[1] % Q8_0_BLOCK:
        raise Unsupported(
            f"the row length of the tensor {source} is {shape[1]}, not a multiple of the block size {Q8_0_BLOCK}"
        )
    has_rope = ".q_proj." in source or ".k_proj." in source
    return GgufTensor(name, shape, quantized, head_rows if has_rope else 0)


def _check_arithmetic(config: "PreTrainedConfig") -> None:
    if config.hidden_act != "silu":
        raise Unsupported(f"the activation function {config.hidden_act!r} is not silu, which llama.cpp uses")
    rope = config.rope_parameters
    if rope["rope_type"] not in _ROPE_TYPES:
        raise Unsupported(f"the RoPE type {rope['rope_type']!r} is not one of {', '.join(_ROPE_TYPES)}")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise Unsupported("it has a partial_rotary_factor, but llama.cpp applies RoPE to whole heads")


def _window(config: "PreTrainedConfig") -> int | None:
    """Size of the sliding window in tokens, if a layer has one."""
    layers: Sequence[str] = getattr(config, "layer_types", None) or ()
    if config.model_type != "mistral" and "sliding_attention" not in layers:
        return None
    return getattr(config, "sliding_window", None)


def _head_size(config: "PreTrainedConfig") -> int:
    given: int | None = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


def _rope_factors(config: "PreTrainedConfig") -> tuple[float, ...]:
    """Divisors of the RoPE frequencies as in Llama 3.1 and llama.cpp's converter; empty for other RoPE types.

    1 for short wavelengths, `factor` for long ones, and 1 / ((1 - s) / factor + s) between them, with
    s = (original context / wavelength - low) / (high - low).
    """
    rope: Mapping[str, Any] = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return ()
    size, factor = _head_size(config), rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    factors = []
    for position in range(0, size, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (position / size)
        share = (original / wavelength - low) / (high - low)
        share = min(1.0, max(0.0, share))
        factors.append(1 / ((1 - share) / factor + share))
    return tuple(factors)
