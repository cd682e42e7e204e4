"""Model families whose tensors are understood without loading the model: names, shapes, and which are linear layers.

Each is proven against the library: see tests/stages/test_streaming.py. What a family does not describe exactly takes
the library's path.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetune_jobs.model_weights import StoredTensor
from edgetune_jobs.tensors.reader import TORCH_DTYPES

Shape = tuple[int, ...]
_EMBEDDING = "model.embed_tokens.weight"
OUTPUT_HEAD = "lm_head"


class NotUnderstood(Exception):
    """Why a model cannot be taken tensor by tensor: the words after "because"."""


@dataclass(frozen=True)
class Layout:
    """A model's tensors as its configuration wants them."""

    config: Any
    """transformers' PretrainedConfig."""

    tensors: Mapping[str, Shape]
    linears: frozenset[str]
    """Weights of the linear layers within the blocks: those that can have an adapter and are quantized."""


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    inner: int
    heads: int
    key_heads: int
    head: int

    @classmethod
    def of(cls, config: Any) -> "_Sizes":
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=heads,
            key_heads=getattr(config, "num_key_value_heads", None) or heads,
            head=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )


@dataclass(frozen=True)
class _Family:
    architecture: str
    linears: Callable[[_Sizes], Mapping[str, Shape]]
    norms: Callable[[_Sizes], Mapping[str, Shape]]
    biases: Callable[[Any], Sequence[str]] = field(default=lambda _: ())
    """Linear layers with a bias."""


def _separate(sizes: _Sizes) -> Mapping[str, Shape]:
    queries, keys = sizes.heads * sizes.head, sizes.key_heads * sizes.head
    return {
        "self_attn.q_proj": (queries, sizes.hidden),
        "self_attn.k_proj": (keys, sizes.hidden),
        "self_attn.v_proj": (keys, sizes.hidden),
        "self_attn.o_proj": (sizes.hidden, queries),
        "mlp.gate_proj": (sizes.inner, sizes.hidden),
        "mlp.up_proj": (sizes.inner, sizes.hidden),
        "mlp.down_proj": (sizes.hidden, sizes.inner),
    }


def _fused(sizes: _Sizes) -> Mapping[str, Shape]:
    queries, keys = sizes.heads * sizes.head, sizes.key_heads * sizes.head
    return {
        "self_attn.qkv_proj": (queries + 2 * keys, sizes.hidden),
        "self_attn.o_proj": (sizes.hidden, queries),
        "mlp.gate_up_proj": (2 * sizes.inner, sizes.hidden),
        "mlp.down_proj": (sizes.hidden, sizes.inner),
    }


def _two_norms(sizes: _Sizes) -> Mapping[str, Shape]:
    return {"input_layernorm": (sizes.hidden,), "post_attention_layernorm": (sizes.hidden,)}


def _four_norms(sizes: _Sizes) -> Mapping[str, Shape]:
    around_mlp = {"pre_feedforward_layernorm": (sizes.hidden,), "post_feedforward_layernorm": (sizes.hidden,)}
    return {**_two_norms(sizes), **around_mlp}


def _head_norms(sizes: _Sizes) -> Mapping[str, Shape]:
    return {**_two_norms(sizes), "self_attn.q_norm": (sizes.head,), "self_attn.k_norm": (sizes.head,)}


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def _optional_biases(config: Any) -> Sequence[str]:
    attention = _ATTENTION if getattr(config, "attention_bias", False) else ()
    return (*attention, *(_MLP if getattr(config, "mlp_bias", False) else ()))


_FAMILIES: Mapping[str, _Family] = {
    "gemma": _Family("GemmaForCausalLM", _separate, _two_norms, _optional_biases),
    "gemma2": _Family("Gemma2ForCausalLM", _separate, _four_norms, _optional_biases),
    "llama": _Family("LlamaForCausalLM", _separate, _two_norms, _optional_biases),
    "mistral": _Family("MistralForCausalLM", _separate, _two_norms),
    "phi3": _Family("Phi3ForCausalLM", _fused, _two_norms),
    "qwen2": _Family("Qwen2ForCausalLM", _separate, _two_norms, lambda _: _ATTENTION[:3]),
    "qwen3": _Family("Qwen3ForCausalLM", _separate, _head_norms, _optional_biases),
    "smollm3": _Family("SmolLM3ForCausalLM", _separate, _two_norms, _optional_biases),
}

KNOWN_TYPES = frozenset(_FAMILIES)
"""model_type of the families."""


def understand(folder: Path, tensors: Sequence[StoredTensor]) -> Layout:
    """The layout of a model, if it is exactly that of a known family.

    Args:
        folder: holds config.json.
        tensors: the model's tensors.

    Raises:
        NotUnderstood: says what differs.
    """
    config = _read_config(folder)
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise NotUnderstood(f"models of type {config.model_type} are not known tensor by tensor")
    if list(config.architectures or ()) != [family.architecture]:
        raise NotUnderstood(f"its architecture is not {family.architecture}")
    layout = _layout(family, config)
    _compare(layout, tensors)
    return layout


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise NotUnderstood("its config.json does not load") from error


def _layout(family: _Family, config: Any) -> Layout:
    sizes = _Sizes.of(config)
    embedding = (config.vocab_size, sizes.hidden)
    tensors: dict[str, Shape] = {_EMBEDDING: embedding, "model.norm.weight": (sizes.hidden,)}
    if not config.tie_word_embeddings:
        tensors[f"{OUTPUT_HEAD}.weight"] = embedding
    layer_linears, norms = family.linears(sizes), family.norms(sizes)
    linears = set()
    for number in range(config.num_hidden_layers):
        prefix = f"model.layers.{number}."
        tensors |= {f"{prefix}{name}.weight": shape for name, shape in {**layer_linears, **norms}.items()}
        tensors |= {f"{prefix}{name}.bias": layer_linears[name][:1] for name in family.biases(config)}
        linears |= {f"{prefix}{name}.weight" for name in layer_linears}
    return Layout(config, tensors, frozenset(linears))


def _compare(layout: Layout, tensors: Sequence[StoredTensor]) -> None:
    there = {tensor.name: tensor for tensor in tensors}
    for name in sorted(there.keys() - layout.tensors.keys()):
        raise NotUnderstood(f"it has a tensor {name} beside those of its type")
    for name in sorted(layout.tensors.keys() - there.keys()):
        raise NotUnderstood(f"it has no tensor {name}")
    for name, shape in layout.tensors.items():
        if there[name].shape != shape:
            raise NotUnderstood(f"its tensor {name} has another shape than config.json asks for")
        if there[name].dtype not in TORCH_DTYPES:
            raise NotUnderstood(f"its tensor {name} is {there[name].dtype}")
