"""A model as GGUF lays it out: hyperparameters under llama.cpp's names, tensors in its names, types and row order.

Architectures: Llama (SmolLM too) and Mistral as `llama`, Qwen2 as `qwen2`, Qwen3 as `qwen3`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetune_jobs.tensors.formats import q8_0
from edgetune_jobs.tensors.formats.errors import Unsupported

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

_ARCHITECTURES: Mapping[str, str] = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_F32_BYTES = 4
_ROPE_TYPES = ("default", "linear", "llama3")
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    quantized: bool
    """In Q8_0; else in float32."""

    head_rows: int
    """llama.cpp keeps the two halves of each head's rows interleaved: rows of a head; 0 for rows in their order."""

    @property
    def bytes(self) -> int:
        """Size, without padding."""
        if self.quantized:
            return math.prod(self.shape[:-1]) * q8_0.row_bytes(self.shape[-1])
        return math.prod(self.shape) * _F32_BYTES

    def encode(self, rows: "torch.Tensor") -> "torch.Tensor | None":
        """Rows, of whole heads where heads count, as the file has them; None if Q8_0 cannot hold a number of them."""
        if self.head_rows:
            halves = rows.reshape(-1, 2, self.head_rows // 2, *rows.shape[1:])
            rows = halves.transpose(1, 2).reshape(rows.shape)
        return q8_0.quantize(rows) if self.quantized else rows.float().contiguous()


@dataclass(frozen=True)
class GgufLayout:
    """What a model's configuration and tensors become."""

    architecture: str
    """llama.cpp's name of the architecture."""

    config: "PreTrainedConfig"
    tensors: Mapping[str, GgufTensor]
    """By the tensor's name in the model, in the order of the file."""

    rope_factors: tuple[float, ...]
    """Divisors of the rotary frequencies (Llama 3.1); none for most models."""

    @property
    def context_length(self) -> int:
        """Longest text; with a sliding window no longer than the window, as llama.cpp attends to all of the text."""
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
        shapes: of its tensors, by name, in the order in which they will come.

    Raises:
        Unsupported: llama.cpp would not compute what the model does.
    """
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise Unsupported(f"models of the type {config.model_type} cannot be; possible are {', '.join(_ARCHITECTURES)}")
    _check_arithmetic(config)
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    by_name = {name: member for member, name in MODEL_ARCH_NAMES.items()}
    member: MODEL_ARCH = by_name[architecture]
    names = get_tensor_name_map(member, config.num_hidden_layers)
    tensors = {}
    for source, shape in shapes.items():
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise Unsupported(f"llama.cpp has no name for its tensor {source}")
        tensors[source] = _tensor(name, source, shape, _head_size(config) if architecture == "llama" else 0)
    return GgufLayout(architecture, config, tensors, _rope_factors(config))


def extra_tensors(layout: GgufLayout) -> Sequence[tuple[GgufTensor, "torch.Tensor"]]:
    """Tensors that the model does not have: they come first in the file."""
    import torch

    if not layout.rope_factors:
        return ()
    values = torch.tensor(layout.rope_factors, dtype=torch.float32)
    return ((GgufTensor(_ROPE_FACTORS, tuple(values.shape), quantized=False, head_rows=0), values),)


def _tensor(name: str, source: str, shape: tuple[int, ...], head_rows: int) -> GgufTensor:
    if len(shape) not in (1, 2):
        raise Unsupported(f"its tensor {source} has {len(shape)} dimensions; one or two are expected")
    quantized = len(shape) == 2
    if quantized and shape[1] % q8_0.BLOCK:
        raise Unsupported(f"its tensor {source} has rows of {shape[1]} numbers; Q8_0 needs a multiple of {q8_0.BLOCK}")
    rotated = ".q_proj." in source or ".k_proj." in source
    return GgufTensor(name, shape, quantized, head_rows if rotated else 0)


def _check_arithmetic(config: "PreTrainedConfig") -> None:
    if config.hidden_act != "silu":
        raise Unsupported(f"its activation function is {config.hidden_act}; llama.cpp computes silu for such models")
    rope = config.rope_parameters
    if rope["rope_type"] not in _ROPE_TYPES:
        known = ", ".join(_ROPE_TYPES)
        raise Unsupported(f"its rotary embedding is of the type {rope['rope_type']}; possible are {known}")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise Unsupported("its rotary embedding turns a part of each head only; llama.cpp turns all of it")


def _window(config: "PreTrainedConfig") -> int | None:
    """Tokens that a sliding window holds, if some layer has one."""
    layers: Sequence[str] = getattr(config, "layer_types", None) or ()
    if config.model_type != "mistral" and "sliding_attention" not in layers:
        return None
    return getattr(config, "sliding_window", None)


def _head_size(config: "PreTrainedConfig") -> int:
    given: int | None = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


def _rope_factors(config: "PreTrainedConfig") -> tuple[float, ...]:
    """Divisors of the rotary frequencies by the rule of Llama 3.1: long waves are stretched, short ones kept."""
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
