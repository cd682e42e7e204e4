"""Model families whose tensors are known without loading the model: names, shapes, and which are linear layers.

Each is proven against the library: see tests/stages/test_streaming.py. What a family does not describe exactly takes
the library's path.
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
from edgetune_jobs.store.strict_json import BrokenJson, parse_json
from edgetune_jobs.tensors.row_reader import pieces

Shape = tuple[int, ...]
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = f"{OUTPUT_HEAD}.weight"
# Of old checkpoints, such as those of Llama 2.
_COMPUTED = ".rotary_emb.inv_freq"


class CannotStream(Exception):
    """Why a model cannot be taken tensor by tensor: the words after "because"."""


@dataclass(frozen=True)
class Layout:
    """A model's tensors as its configuration wants them."""

    folder: Path
    """Holds config.json."""

    settings: Mapping[str, Any]
    """What config.json says."""

    tensors: Mapping[str, Shape]
    linears: frozenset[str]
    """Weights of the linear layers within the blocks: those that can have an adapter and are quantized."""

    @cached_property
    def config(self) -> Any:
        """transformers' PreTrainedConfig. Some need seconds and a hundred megabytes to be imported: ask only if you
        must."""
        return load_config(self.folder)


class _Settings:
    """config.json, with the defaults of the model's family."""

    def __init__(self, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._settings = {**defaults, **settings}

    def size(self, name: str) -> int:
        """A size.

        Raises:
            CannotStream: the configuration does not give it.
        """
        value = self._settings.get(name)
        if type(value) is not int or value < 1:
            raise CannotStream(f"its config.json does not give {name}")
        return value

    def optional_size(self, name: str) -> int | None:
        """A size that may be missing or null."""
        return None if self._settings.get(name) is None else self.size(name)

    def flag(self, name: str) -> bool:
        """A switch; off when it is missing."""
        return bool(self._settings.get(name))

    @property
    def ties_head(self) -> bool:
        """Whether the embedding is the output head as well."""
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
    """Of what older versions of transformers leave out of config.json."""


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


def _optional_biases(settings: _Settings) -> Sequence[str]:
    attention = _ATTENTION if settings.flag("attention_bias") else ()
    return (*attention, *(_MLP if settings.flag("mlp_bias") else ()))


_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256}
_FAMILIES: Mapping[str, _Family] = {
    "gemma": _Family("GemmaForCausalLM", _separate, _two_norms, _optional_biases, _GEMMA_DEFAULTS),
    "gemma2": _Family("Gemma2ForCausalLM", _separate, _four_norms, _optional_biases, _GEMMA_DEFAULTS),
    "llama": _Family("LlamaForCausalLM", _separate, _two_norms, _optional_biases),
    "mistral": _Family("MistralForCausalLM", _separate, _two_norms, defaults={"num_key_value_heads": 8}),
    "phi3": _Family("Phi3ForCausalLM", _fused, _two_norms),
    "qwen2": _Family("Qwen2ForCausalLM", _separate, _two_norms, lambda _: _ATTENTION[:3]),
    "qwen3": _Family("Qwen3ForCausalLM", _separate, _head_norms, _optional_biases, {"head_dim": 128}),
    "smollm3": _Family("SmolLM3ForCausalLM", _separate, _two_norms, _optional_biases, {"tie_word_embeddings": True}),
}

KNOWN_TYPES = frozenset(_FAMILIES)
"""model_type of the families."""


def is_left_out(name: str, is_tied: bool) -> bool:
    """Whether transformers does not take a stored tensor over.

    That are buffers which it computes by itself, and the output head of a model that is `is_tied`, if it is equal to
    the embedding, which stands for it.
    """
    return name.endswith(_COMPUTED) or (is_tied and name == _HEAD)


def find_layout(model: ModelFolder, tensors: Sequence[StoredTensor]) -> Layout:
    """The layout of a model, if it is exactly that of a known family. Tensors that are left out are not in it.

    Args:
        model: the model; of its weights, only those that may be left out are read.
        tensors: all that it stores.

    Raises:
        CannotStream: says what differs.
    """
    folder = model.fetch([CONFIG])
    settings = _read_settings(folder)
    model_type = settings.get("model_type")
    family = _FAMILIES.get(str(model_type))
    if family is None:
        raise CannotStream(f"models of type {model_type} are not known tensor by tensor")
    if settings.get("architectures") != [family.architecture]:
        raise CannotStream(f"its architecture is not {family.architecture}")
    if settings.get("quantization_config"):
        raise CannotStream("it is quantized already")
    with_defaults = _Settings(settings, family.defaults)
    expected, linears = _expect(family, with_defaults)
    there = {tensor.name: tensor for tensor in tensors}
    _compare(expected, there, with_defaults.ties_head)
    _check_left_out(model, [tensor for tensor in tensors if tensor.name not in expected], there[_EMBEDDING])
    return Layout(folder, settings, expected, linears)


def _read_settings(folder: Path) -> Mapping[str, Any]:
    try:
        settings = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, BrokenJson) as error:
        raise CannotStream(f"its {CONFIG} does not load") from error
    if not isinstance(settings, dict):
        raise CannotStream(f"its {CONFIG} is not a JSON object")
    return settings


def _expect(family: _Family, settings: _Settings) -> tuple[dict[str, Shape], frozenset[str]]:
    """All tensors, and which of them are weights of linear layers within the blocks."""
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


def _compare(expected: Mapping[str, Shape], there: Mapping[str, StoredTensor], is_tied: bool) -> None:
    for name in sorted(there.keys() - expected.keys()):
        if not is_left_out(name, is_tied):
            raise CannotStream(f"it has a tensor {name} beside those of its type")
    for name in sorted(expected.keys() - there.keys()):
        raise CannotStream(f"it has no tensor {name}")
    for name, shape in expected.items():
        if there[name].shape != shape:
            raise CannotStream(f"its tensor {name} has another shape than config.json asks for")
        if there[name].dtype not in TORCH_DTYPES:
            raise CannotStream(f"its tensor {name} is {there[name].dtype}")


def _check_left_out(model: ModelFolder, tensors: Sequence[StoredTensor], embedding: StoredTensor) -> None:
    """Read what is left out. Nothing may depend on it, and what is known of a file is the hash of all its bytes."""
    for tensor in tensors:
        if tensor.name != _HEAD:
            deque(pieces(model, tensor), maxlen=0)
        elif (tensor.dtype, tensor.shape) != (embedding.dtype, embedding.shape) or not all(
            one == other for one, other in zip(pieces(model, tensor), pieces(model, embedding), strict=True)
        ):
            raise CannotStream(f"its {_HEAD} is not its embedding, though config.json ties them")
