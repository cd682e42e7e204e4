"""The layout of a model in GGUF: hyperparameters, tensor names, dtypes and row order of llama.cpp.

Architectures: Llama (including SmolLM) and Mistral as `llama`, Qwen2 as `qwen2`, Qwen3 as `qwen3`, Gemma 2 as `gemma2`,
the text part of Gemma 3 as `gemma3`, Phi-3 and Phi-4 as `phi3`. As llama.cpp's converter writes them (conversion/ of
llama.cpp).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.gguf import rope
from edgetune_jobs.tensors.formats.int8_arithmetic import Q8_0_BLOCK, q8_0_row_bytes, quantize_q8_0

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

# Biases that llama.cpp reads (llama-model.cpp). It refuses files with other tensors.
_BIAS = ".bias"
_QKV = ("q_proj.bias", "k_proj.bias", "v_proj.bias")
_ALL = (*_QKV, "o_proj.bias", "gate_proj.bias", "up_proj.bias", "down_proj.bias")


@dataclass(frozen=True)
class _Architecture:
    """What llama.cpp computes in an architecture."""

    name: str
    """llama.cpp's name."""

    biases: tuple[str, ...] = ()
    activation: str = "silu"
    interleaves_heads: bool = False
    """Whether it rotates neighbours in a head, so that the two halves of the head's rows are interleaved."""

    added_to_norms: float = 0.0
    """What it expects to be added to the weights of norms."""

    full_every: int = 0
    """Every n-th layer attends to the whole context, the others to a sliding window; 0 if it knows no windows."""

    layers_of_27b: int = 0
    """Number of layers by which it knows the model that scales queries by the mean size of a head, not its own."""

    ropes: tuple[str, ...] = ("default", "linear")
    """Types of rotary embeddings that it reads."""

    rotates_parts: bool = False
    """Whether it can rotate a part of each head."""


class Dtype(StrEnum):
    """llama.cpp's name of a tensor's dtype."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"


K_BLOCK = 256
"""Values of a row that K-quants quantize together."""

_OF_TORCH = {"float32": Dtype.F32, "float16": Dtype.F16, "bfloat16": Dtype.BF16}
_LLAMA = _Architecture("llama", _ALL, interleaves_heads=True, ropes=("default", "linear", "llama3", "yarn", "longrope"))
_WITH_YARN = ("default", "linear", "yarn")
_GELU = "gelu_pytorch_tanh"
_GEMMA2 = _Architecture("gemma2", activation=_GELU, added_to_norms=1.0, full_every=2, layers_of_27b=46)
_GEMMA3 = _Architecture("gemma3", activation=_GELU, added_to_norms=1.0, full_every=6, layers_of_27b=62)
_ARCHITECTURES: Mapping[str, _Architecture] = {
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi3": _Architecture("phi3", ropes=("default", "longrope"), rotates_parts=True),
    "qwen2": _Architecture("qwen2", _QKV, ropes=_WITH_YARN),
    "qwen3": _Architecture("qwen3", ropes=_WITH_YARN),
}
# Bytes of a value.
_WIDTHS = {Dtype.F32: 4, Dtype.F16: 2, Dtype.BF16: 2}
_TORCH_NAMES = {dtype: name for name, dtype in _OF_TORCH.items()}
# Types whose layers all have a window, which config.json does not say for each.
_WINDOWED = ("mistral", "phi3")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    head_rows: int = 0
    """Rows per head if llama.cpp interleaves the two halves of each head's rows; 0 if the order is unchanged."""

    added: float = 0.0
    """What is added to every value."""

    @property
    def bytes(self) -> int:
        """Size in bytes, without padding."""
        if self.dtype is Dtype.Q8_0:
            return math.prod(self.shape[:-1]) * q8_0_row_bytes(self.shape[-1])
        return math.prod(self.shape) * _WIDTHS[self.dtype]

    def encode(self, rows: "torch.Tensor") -> "torch.Tensor | None":
        """The rows in the order and dtype of the file; None if a value is not finite or too large for a matrix's dtype.

        Args:
            rows: [rows, …]; a multiple of `head_rows`.

        Returns:
            Q8_0: uint8 [rows, row bytes]; F16 and BF16: their bits as int16, of the same shape; F32: float32.
        """
        import torch

        rows = self.in_order(rows)
        if self.dtype is Dtype.Q8_0:
            return quantize_q8_0(rows)
        if len(self.shape) == 1:
            return (rows.float() + self.added).contiguous()
        values = rows.to(self.torch_dtype).contiguous()
        if not torch.isfinite(values).all():
            return None
        return values if self.dtype is Dtype.F32 else values.view(torch.int16)

    def in_order(self, rows: "torch.Tensor") -> "torch.Tensor":
        """Rows [rows, …], a multiple of `head_rows`, in the order of the file."""
        if not self.head_rows:
            return rows
        halves = rows.reshape(-1, 2, self.head_rows // 2, *rows.shape[1:])
        return halves.transpose(1, 2).reshape(rows.shape)

    def decode(self, values: "torch.Tensor") -> "torch.Tensor":
        """The model's rows of the values in the file, which are not quantized: the inverse of `encode`."""
        if self.head_rows:
            pairs = values.reshape(-1, self.head_rows // 2, 2, *values.shape[1:])
            values = pairs.transpose(1, 2).reshape(values.shape)
        return values - self.added if self.added else values

    @property
    def torch_dtype(self) -> "torch.dtype":
        """torch's dtype of the values, which are not quantized."""
        import torch

        dtype: torch.dtype = getattr(torch, _TORCH_NAMES[self.dtype])
        return dtype


@dataclass(frozen=True)
class GgufLayout:
    """Hyperparameters and tensors of a model in GGUF."""

    architecture: str
    """llama.cpp's name of the architecture."""

    config: "PreTrainedConfig"
    dtype: Dtype
    """Of the matrices; norms and biases are F32."""

    tensors: Mapping[str, GgufTensor]
    """Tensors by their name in the model, in the order of the file."""

    rope_factors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Additional tensors with divisors of the RoPE frequencies, by name; empty for most models."""

    @property
    def context_length(self) -> int:
        """Maximum context in tokens; at most a sliding window that llama.cpp does not know."""
        longest: int = self.config.max_position_embeddings
        knows_windows = _ARCHITECTURES[self.config.model_type].full_every > 0
        return longest if knows_windows else min(longest, _window(self.config) or longest)

    @property
    def matrices(self) -> frozenset[str]:
        """Names in the model of all matrices, which formats quantize."""
        return frozenset(name for name, tensor in self.tensors.items() if len(tensor.shape) > 1)

    @property
    def narrow_matrices(self) -> frozenset[str]:
        """Those whose rows K-quants cannot divide into blocks."""
        return frozenset(name for name in self.matrices if self.tensors[name].shape[1] % K_BLOCK)

    @property
    def differences(self) -> tuple[str, ...]:
        """Warnings about what llama.cpp computes otherwise than transformers."""
        return rope.differences(self.config)

    def add_to(self, writer: "GGUFWriter") -> None:
        """Write the hyperparameters as metadata."""
        from gguf import GGML_QUANT_VERSION, LlamaFileType

        config = self.config
        head = _head_size(config)
        writer.add_file_type(LlamaFileType[f"{'ALL' if self.dtype is Dtype.F32 else 'MOSTLY'}_{self.dtype}"])
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
        rope.add_to(writer, config, head)
        if config.model_type == "phi3":
            # Without it, llama.cpp assumes the window of a Phi-3 of this size; the context is within the window.
            writer.add_sliding_window(0)
        if _ARCHITECTURES[config.model_type].full_every:
            writer.add_sliding_window(config.sliding_window)
            writer.add_rope_freq_base_swa(rope.parameters(config, rope.SLIDING)["rope_theta"])
            if config.attn_logit_softcapping:
                writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
            if config.final_logit_softcapping:
                writer.add_final_logit_softcapping(config.final_logit_softcapping)


def matrices_of(edge_format: EdgeFormat, dtype: str) -> tuple[Dtype, int]:
    """The dtype of matrices that the encoder writes for a format, and the values of a row that the format quantizes
    together at least: 1 if it quantizes nothing.

    Args:
        edge_format: a format that is GGUF.
        dtype: torch's name of the model's dtype, in which llama.cpp reads what it quantizes.
    """
    if edge_format is EdgeFormat.GGUF_BF16:
        return Dtype.BF16, 1
    return (_OF_TORCH[dtype] if edge_format.is_k_quant else Dtype.Q8_0), Q8_0_BLOCK


def lay_out(
    config: "PreTrainedConfig",
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Dtype = Dtype.Q8_0,
    block: int = Q8_0_BLOCK,
) -> GgufLayout:
    """The layout of a model.

    Args:
        config: its configuration.
        shapes: shapes of its tensors by name, in the order in which they will be written.
        dtype: of the matrices.
        block: values that are quantized together: rows of matrices must be a multiple of it.

    Raises:
        Unsupported: llama.cpp does not support the model.
    """
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        known = ", ".join(_ARCHITECTURES)
        raise Unsupported(f"the model type {config.model_type!r} is not one of {known}")
    _check_arithmetic(config, architecture)
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    by_name = {name: member for member, name in MODEL_ARCH_NAMES.items()}
    member: MODEL_ARCH = by_name[architecture.name]
    names = get_tensor_name_map(member, config.num_hidden_layers)
    tensors = {}
    for source, shape in shapes.items():
        if source.endswith(_BIAS) and not source.endswith(architecture.biases):
            raise Unsupported(f"llama.cpp reads no tensor {source} of the architecture {architecture.name}")
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise Unsupported(f"llama.cpp has no name for the tensor {source}")
        order = _head_size(config) if architecture.interleaves_heads and _has_rope(source) else 0
        added = architecture.added_to_norms if "norm" in source else 0.0
        tensors[source] = GgufTensor(name, shape, _dtype(source, shape, dtype, block), order, added)
    return GgufLayout(architecture.name, config, dtype, tensors, rope.factor_tensors(config, _head_size(config)))


def extra_tensors(layout: GgufLayout) -> Sequence[tuple[GgufTensor, "torch.Tensor"]]:
    """Additional tensors that are not in the model; they are first in the file."""
    import torch

    extra = []
    for name, factors in layout.rope_factors.items():
        values = torch.tensor(factors, dtype=torch.float32)
        extra.append((GgufTensor(name, tuple(values.shape), Dtype.F32), values))
    return extra


def _dtype(source: str, shape: tuple[int, ...], of_matrices: Dtype, block: int) -> Dtype:
    """The dtype of a tensor.

    Raises:
        Unsupported: llama.cpp cannot divide it into blocks.
    """
    if len(shape) not in (1, 2):
        raise Unsupported(f"the tensor {source} has {len(shape)} dimensions, not 1 or 2")
    if len(shape) == 1:
        return Dtype.F32
    if shape[1] % block:
        raise Unsupported(
            f"the row length of the tensor {source} is {shape[1]}, not a multiple of the block size {block}"
        )
    return of_matrices


def _has_rope(source: str) -> bool:
    return ".q_proj." in source or ".k_proj." in source


def _check_arithmetic(config: "PreTrainedConfig", architecture: _Architecture) -> None:
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != architecture.activation:
        raise Unsupported(
            f"the activation function {activation!r} is not {architecture.activation}, which llama.cpp uses"
        )
    head = _head_size(config)
    rope.check(config, architecture.ropes, head, can_be_partial=architecture.rotates_parts)
    if config.model_type == "phi3" and head * config.num_attention_heads != config.hidden_size:
        raise Unsupported("its heads are not as wide together as its layers, which llama.cpp assumes")
    if architecture.full_every:
        _check_gemma(config, architecture)


def _check_gemma(config: "PreTrainedConfig", architecture: _Architecture) -> None:
    """Check what llama.cpp does not read from the file of a Gemma 2 or 3."""
    caps = (config.attn_logit_softcapping, config.final_logit_softcapping)
    if architecture is _GEMMA2 and not all(caps):
        raise Unsupported("it has no attn_logit_softcapping or final_logit_softcapping, but llama.cpp caps both")
    if architecture is _GEMMA3 and config.attn_logit_softcapping:
        raise Unsupported("it has an attn_logit_softcapping, which llama.cpp does not apply")
    if getattr(config, "use_bidirectional_attention", False):
        raise Unsupported("it has use_bidirectional_attention, which llama.cpp does not apply")
    period = architecture.full_every
    if any((kind == rope.FULL) != (at % period == period - 1) for at, kind in enumerate(config.layer_types)):
        raise Unsupported(
            f"its layer_types do not have full attention in every layer no. {period} only, as llama.cpp has"
        )
    if rope.parameters(config, rope.SLIDING)["rope_type"] != "default":
        raise Unsupported("it scales RoPE in layers with a sliding window, which llama.cpp does not")
    is_27b = config.num_hidden_layers == architecture.layers_of_27b
    scalar = config.hidden_size // config.num_attention_heads if is_27b else config.head_dim
    if config.query_pre_attn_scalar != scalar:
        raise Unsupported(f"its query_pre_attn_scalar is {config.query_pre_attn_scalar}, but llama.cpp uses {scalar}")


def _window(config: "PreTrainedConfig") -> int | None:
    """Size of the sliding window in tokens, if a layer has one."""
    layers: Sequence[str] = getattr(config, "layer_types", None) or ()
    if config.model_type not in _WINDOWED and rope.SLIDING not in layers:
        return None
    return getattr(config, "sliding_window", None)


def _head_size(config: "PreTrainedConfig") -> int:
    given: int | None = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads
