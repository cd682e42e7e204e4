"""Model families that can be streamed: names, shapes and linear layers of their tensors by config.json.

tests/stages/test_streaming.py compares each family with transformers. Models that do not match a family exactly are
loaded as a whole by the libraries.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgetune_jobs.models.folder import CONFIG, ModelFolder
from edgetune_jobs.models.libraries import load_config
from edgetune_jobs.models.weights import OUTPUT_HEAD, TORCH_DTYPES, StoredTensor
from edgetune_jobs.store.strict_json import InvalidJson, parse_json
from edgetune_jobs.tensors.row_reader import pieces

Shape = tuple[int, ...]
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = f"{OUTPUT_HEAD}.weight"
# Buffers that transformers computes itself; old checkpoints, such as those of Llama 2, store them.
_COMPUTED = ".rotary_emb.inv_freq"


class CannotStream(Exception):
    """A model cannot be streamed; the message is the reason, a clause to follow "because"."""


@dataclass(frozen=True)
class Layout:
    """A model's tensors according to its configuration."""

    folder: Path
    """Folder with config.json."""

    settings: Mapping[str, Any]
    """Content of config.json."""

    tensors: Mapping[str, Shape]
    linears: frozenset[str]
    """Weights of the linear layers in the blocks, which can have an adapter and are quantized."""

    @cached_property
    def config(self) -> Any:
        """The PreTrainedConfig of transformers. Importing it can take seconds and 100 MB, so it is loaded on demand."""
        return load_config(self.folder)


class _Settings:
    """config.json, with the defaults of the model's family."""

    def __init__(self, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._settings = {**defaults, **settings}

    def size(self, name: str) -> int:
        """A size.

        Raises:
            CannotStream: the size is missing or invalid.
        """
        value = self._settings.get(name)
        if type(value) is not int or value < 1:
            raise CannotStream(f"its {CONFIG} has no valid {name}")
        return value

    def optional_size(self, name: str) -> int | None:
        """A size that may be missing or null."""
        return None if self._settings.get(name) is None else self.size(name)

    def flag(self, name: str) -> bool:
        """A boolean; False if missing."""
        return bool(self._settings.get(name))

    @property
    def ties_head(self) -> bool:
        """Whether the output head shares the weight of the embedding."""
        return self.flag("tie_word_embeddings")


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    inner: int
    heads: int
    key_heads: int
    head: int

    @classmethod
    def of(cls, settings: _Settings) -> "_Sizes":
        hidden, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
        return cls(
            hidden=hidden,
            inner=settings.size("intermediate_size"),
            heads=heads,
            key_heads=settings.optional_size("num_key_value_heads") or heads,
            head=settings.optional_size("head_dim") or hidden // heads,
        )


@dataclass(frozen=True)
class _Family:
    architecture: str
    linears: Callable[[_Sizes], Mapping[str, Shape]]
    norms: Callable[[_Sizes], Mapping[str, Shape]]
    biases: Callable[[_Settings], Sequence[str]] = field(default=lambda _: ())
    """Linear layers with a bias."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of fields that older versions of transformers omit from config.json."""


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


def _six_norms(sizes: _Sizes) -> Mapping[str, Shape]:
    return {**_four_norms(sizes), **_head_norms(sizes)}


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def _optional_biases(settings: _Settings) -> Sequence[str]:
    attention = _ATTENTION if settings.flag("attention_bias") else ()
    return (*attention, *(_MLP if settings.flag("mlp_bias") else ()))


_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256}
_FAMILIES: Mapping[str, _Family] = {
    "gemma": _Family("GemmaForCausalLM", _separate, _two_norms, _optional_biases, _GEMMA_DEFAULTS),
    "gemma2": _Family("Gemma2ForCausalLM", _separate, _four_norms, _optional_biases, _GEMMA_DEFAULTS),
    "gemma3_text": _Family("Gemma3ForCausalLM", _separate, _six_norms, _optional_biases, _GEMMA_DEFAULTS),
    "llama": _Family("LlamaForCausalLM", _separate, _two_norms, _optional_biases),
    "mistral": _Family("MistralForCausalLM", _separate, _two_norms, defaults={"num_key_value_heads": 8}),
    "phi3": _Family("Phi3ForCausalLM", _fused, _two_norms),
    "qwen2": _Family("Qwen2ForCausalLM", _separate, _two_norms, lambda _: _ATTENTION[:3]),
    "qwen3": _Family("Qwen3ForCausalLM", _separate, _head_norms, _optional_biases, {"head_dim": 128}),
    "smollm3": _Family("SmolLM3ForCausalLM", _separate, _two_norms, _optional_biases, {"tie_word_embeddings": True}),
}

KNOWN_TYPES = frozenset(_FAMILIES)
"""model_type of each family."""


def is_ignored(name: str, is_tied: bool) -> bool:
    """Whether transformers ignores a stored tensor: a computed buffer, or the output head of a tied model."""
    return name.endswith(_COMPUTED) or (is_tied and name == _HEAD)


def find_layout(model: ModelFolder, tensors: Sequence[StoredTensor]) -> Layout:
    """The layout of a model that matches a family exactly, without ignored tensors.

    Args:
        model: the model; the data of ignored tensors is read, for the hash of the file and to compare a tied head.
        tensors: all stored tensors of the model.

    Raises:
        CannotStream: the model does not match a family.
    """
    folder = model.fetch([CONFIG])
    settings = _read_settings(folder)
    model_type = settings.get("model_type")
    family = _FAMILIES.get(str(model_type))
    if family is None:
        raise CannotStream(f"the model type {model_type!r} is not supported")
    if settings.get("architectures") != [family.architecture]:
        raise CannotStream(f"its architecture is not {family.architecture}")
    if settings.get("quantization_config"):
        raise CannotStream("it is already quantized")
    with_defaults = _Settings(settings, family.defaults)
    expected, linears = _expect(family, with_defaults)
    stored = {tensor.name: tensor for tensor in tensors}
    _compare(expected, stored, with_defaults.ties_head)
    _check_ignored(model, [tensor for tensor in tensors if tensor.name not in expected], stored[_EMBEDDING])
    return Layout(folder, settings, expected, linears)


def _read_settings(folder: Path) -> Mapping[str, Any]:
    try:
        settings = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, InvalidJson) as error:
        raise CannotStream(f"its {CONFIG} cannot be read") from error
    if not isinstance(settings, dict):
        raise CannotStream(f"its {CONFIG} is not a JSON object")
    return settings


def _expect(family: _Family, settings: _Settings) -> tuple[dict[str, Shape], frozenset[str]]:
    """All tensors, and the weights of the linear layers in the blocks."""
    sizes = _Sizes.of(settings)
    embedding = (settings.size("vocab_size"), sizes.hidden)
    tensors: dict[str, Shape] = {_EMBEDDING: embedding, "model.norm.weight": (sizes.hidden,)}
    if not settings.ties_head:
        tensors[_HEAD] = embedding
    layer_linears, norms = family.linears(sizes), family.norms(sizes)
    linears = set()
    for number in range(settings.size("num_hidden_layers")):
        prefix = f"model.layers.{number}."
        tensors |= {f"{prefix}{name}.weight": shape for name, shape in {**layer_linears, **norms}.items()}
        tensors |= {f"{prefix}{name}.bias": layer_linears[name][:1] for name in family.biases(settings)}
        linears |= {f"{prefix}{name}.weight" for name in layer_linears}
    return tensors, frozenset(linears)


def _compare(expected: Mapping[str, Shape], stored: Mapping[str, StoredTensor], is_tied: bool) -> None:
    for name in sorted(stored.keys() - expected.keys()):
        if not is_ignored(name, is_tied):
            raise CannotStream(f"it has the unexpected tensor {name}")
    for name in sorted(expected.keys() - stored.keys()):
        raise CannotStream(f"its tensor {name} is missing")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise CannotStream(f"the shape of its tensor {name} does not match {CONFIG}")
        if stored[name].dtype not in TORCH_DTYPES:
            raise CannotStream(f"its tensor {name} has dtype {stored[name].dtype}")


def _check_ignored(model: ModelFolder, tensors: Sequence[StoredTensor], embedding: StoredTensor) -> None:
    """Read ignored tensors: the hash of a file needs all its bytes, and a tied head must equal the embedding."""
    for tensor in tensors:
        if tensor.name != _HEAD:
            deque(pieces(model, tensor), maxlen=0)
        elif (tensor.dtype, tensor.shape) != (embedding.dtype, embedding.shape) or not all(
            one == other for one, other in zip(pieces(model, tensor), pieces(model, embedding), strict=True)
        ):
            raise CannotStream(f"its {_HEAD} differs from its embedding, although {CONFIG} ties them")
