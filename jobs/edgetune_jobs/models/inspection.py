"""Inspects a base model by its files: configuration, tokenizer files, tensors. It loads and runs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_contract.spec import LoraSpec
from edgetune_jobs.data.row_checks import TokenLimits
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.adapters.target_modules import matching, requested_modules, short_name
from edgetune_jobs.models.folder import (
    CODE_FIELD,
    COMPANION_FILES,
    CONFIG,
    TOKENIZER_CONFIG,
    VOCABULARIES,
    ModelFolder,
    SourceModelFolder,
    base_label,
)
from edgetune_jobs.models.libraries import prepare_libraries
from edgetune_jobs.models.safetensors_header import Tensor
from edgetune_jobs.models.trial.bounds import check_bounds
from edgetune_jobs.models.weights import (
    OUTPUT_HEAD,
    WEIGHTS,
    WEIGHTS_INDEX,
    read_json,
    read_tensors,
    weight_files,
)
from edgetune_jobs.store.sources.source import Source
from edgetune_jobs.wording import count, some

_CAUSAL_LM = ("ForCausalLM", "LMHeadModel")
# Their layers are Conv1D, whose weights are transposed; adapters for Conv1D are not supported.
_TRANSPOSED_TYPES = ("gpt2", "openai-gpt")
# Vocabularies of the libraries sentencepiece and tiktoken, which no image has: tokenizer.json is made from them.
_UNCONVERTED = ("tokenizer.model", "spiece.model")
_FLOATS = ("F16", "BF16", "F32", "F64")
_ROUTERS = ("gate", "router")


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of the model's blocks."""

    name: str
    """For example model.layers.0.self_attn.q_proj."""

    weights: int
    features: int
    """Inputs plus outputs; an adapter of rank r on this layer has r times as many parameters."""

    @property
    def short_name(self) -> str:
        """For example q_proj."""
        return short_name(self.name)


@dataclass(frozen=True)
class BaseModel:
    """A base model, described without loading it."""

    folder: Path
    """Local folder with configuration and tokenizer, without weights."""

    config: Mapping[str, Any]
    architecture: str
    bytes: int
    """Total size of the files that a run uses."""

    tensors: Mapping[str, Tensor]
    """The tensors that from_pretrained reads, by name."""

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied output head is counted once."""
        return sum(tensor.numbers for name, tensor in self.tensors.items() if not self._is_tied(name))

    @property
    def linear_layers(self) -> tuple[LinearLayer, ...]:
        """Linear layers of the blocks, which can have an adapter, ordered by name.

        Their weights have two dimensions and a block number in the name; embeddings and the output head have no block
        number. Experts and their routers are excluded: in transformers, they are no linear layers.
        """
        routers = _ROUTERS if self.has_experts else ()
        return tuple(
            LinearLayer(name.removesuffix(".weight"), tensor.numbers, sum(tensor.shape))
            for name, tensor in sorted(self.tensors.items())
            if _is_linear(name, tensor) and name.split(".")[-2] not in routers
        )

    @property
    def has_experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        return any("experts" in name.split(".") for name in self.tensors)

    @property
    def limits(self) -> TokenLimits:
        """Which tokens it supports."""
        return token_limits(self.config)

    @property
    def max_positions(self) -> int | None:
        """Maximum sequence length in tokens, if it is in the configuration."""
        return self.limits.max_positions

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream; 0 if it is not in the configuration."""
        return _first_int(self.config, "hidden_size", "n_embd") or 0

    @property
    def layers(self) -> int:
        """Number of blocks; 0 if it is not in the configuration."""
        return _first_int(self.config, "num_hidden_layers", "n_layer") or 0

    @property
    def vocabulary(self) -> int | None:
        """Rows of the embedding; token ids are smaller than this."""
        return self.limits.vocabulary

    @property
    def largest_tensor_bytes(self) -> int:
        """Size of the largest tensor as stored, usually the embedding."""
        return max((tensor.end - tensor.begin for tensor in self.tensors.values()), default=0)

    @property
    def largest_linear_bytes(self) -> int:
        """Size of the largest weight of a linear layer as stored: merging holds a few of them."""
        names = {f"{layer.name}.weight" for layer in self.linear_layers}
        return max((tensor.end - tensor.begin for name, tensor in self.tensors.items() if name in names), default=0)

    @property
    def cache_bytes_per_token(self) -> int:
        """KV cache of one token in 16 bits: a key and a value for each layer and key head."""
        heads = _first_int(self.config, "num_attention_heads", "n_head") or 1
        key_heads = _first_int(self.config, "num_key_value_heads") or heads
        head = _first_int(self.config, "head_dim") or self.hidden_size // heads
        return 2 * self.layers * key_heads * head * 2

    def _is_tied(self, name: str) -> bool:
        return bool(self.config.get("tie_word_embeddings")) and name == f"{OUTPUT_HEAD}.weight"


def inspect_base(source: Source) -> BaseModel:
    """Inspect a base model: fetch its small files and read the headers of its weights.

    Raises:
        InvalidInput: the model is not a causal language model in safetensors, needs its own code, is already
            quantized, or has an invalid file.
    """
    model = SourceModelFolder(source, base_label(source.uri))
    if CONFIG not in model.sizes:
        found = some(sorted([*model.sizes, *source.ignored]))
        raise InvalidInput(f"{model.label} has no {CONFIG} (found: {found}); use a folder that save_pretrained wrote")
    shards = weight_files(model)
    small = [name for name in (CONFIG, *COMPANION_FILES) if name in model.sizes]
    folder = source.fetch(small)
    config = read_json(model, CONFIG)
    architecture = _check_config(config)
    _check_tokenizer(model)
    tensors = {each.name: Tensor(each.dtype, each.shape, each.begin, each.end) for each in read_tensors(model)}
    _check_weights(tensors)
    check_bounds(config, len(tensors))
    index = [WEIGHTS_INDEX] if shards != [WEIGHTS] else []
    return BaseModel(
        folder=folder,
        config=config,
        architecture=architecture,
        bytes=sum(model.sizes[name] for name in {*small, *shards, *index}),
        tensors=tensors,
    )


def token_limits(config: Mapping[str, Any]) -> TokenLimits:
    """Which tokens a base model with this configuration supports; for a multimodal one, those of its text part."""
    part = config.get("text_config")
    config = part if isinstance(part, Mapping) else config
    positions = _first_int(config, "max_position_embeddings", "n_positions")
    return TokenLimits(vocabulary=_first_int(config, "vocab_size"), max_positions=positions)


def targeted_layers(base: BaseModel, lora: LoraSpec) -> tuple[LinearLayer, ...]:
    """The linear layers that get an adapter: the last parts of their name are one of the target modules.

    Raises:
        InvalidInput: a target module is not a linear layer of the base model.
    """
    layers = {layer.name: layer for layer in base.linear_layers}
    targets = requested_modules(lora, layers, layers, base.config["model_type"] if base.has_experts else None)
    matches = {target: matching(target, layers) for target in targets}
    unknown = [target for target, names in matches.items() if not names]
    if unknown or not targets:
        names = ", ".join(sorted({layer.short_name for layer in layers.values()}))
        missing = f"no linear layer {', '.join(repr(target) for target in unknown)}" if unknown else "no linear layers"
        requested = lora.target_modules
        preset = f" ({requested} is {', '.join(targets)})" if isinstance(requested, str) else ""
        advice = f"use AllLinear or some of its linear layers: {names}" if names else "use another base model"
        raise InvalidInput(
            f"spec.lora.targetModules: the base model ({base.architecture}) has {missing}{preset}; {advice}"
        )
    targeted = set().union(*matches.values())
    return tuple(layer for name, layer in layers.items() if name in targeted)


def _is_linear(name: str, tensor: Tensor) -> bool:
    parts = name.split(".")
    return (
        parts[-1] == "weight"
        and len(tensor.shape) == 2
        and any(part.isdigit() for part in parts)
        and "experts" not in parts
        and "embed" not in parts[-2]
    )


def _check_config(config: Mapping[str, Any]) -> str:
    """The architecture's class name.

    Raises:
        InvalidInput: the model needs its own code, is not a causal language model, or has Conv1D layers instead of
            linear ones.
    """
    if config.get(CODE_FIELD) and not _is_native(config.get("model_type")):
        raise _refused_code(CONFIG)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise InvalidInput(f"spec.baseModel: {CONFIG} has no architectures; save the model with save_pretrained")
    if not architectures[0].endswith(_CAUSAL_LM):
        raise InvalidInput(
            f"spec.baseModel: {CONFIG} has the unsupported architecture {architectures[0][:128]!r}; use a causal "
            "language model (…ForCausalLM, …LMHeadModel)"
        )
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InvalidInput(f"spec.baseModel: {CONFIG} has no model_type; save the model with save_pretrained")
    if model_type in _TRANSPOSED_TYPES:
        raise InvalidInput(
            f"spec.baseModel: models of type {model_type!r} have Conv1D layers, which Edgetune cannot fine-tune; "
            "use a model of another type, such as llama, mistral, qwen2, qwen3, gemma2 or phi3"
        )
    return architectures[0]


def _check_tokenizer(model: ModelFolder) -> None:
    if not any(name in model.sizes for name in VOCABULARIES):
        raise InvalidInput(
            f"{model.label} has no tokenizer (none of {', '.join(VOCABULARIES)}); "
            "save one into this folder with tokenizer.save_pretrained"
        )
    unconverted = next((name for name in _UNCONVERTED if name in model.sizes), None)
    if not any(name in model.sizes for name in VOCABULARIES if name not in _UNCONVERTED) and unconverted:
        raise InvalidInput(
            f"{model.label} has {unconverted} but no tokenizer.json, which Edgetune reads: take it from another "
            "repository of the same model, or make it once and check its tokens (docs/base-models.md has the lines for "
            "it: some conversions have other tokens, with which the model answers badly)"
        )
    if TOKENIZER_CONFIG in model.sizes and read_json(model, TOKENIZER_CONFIG).get(CODE_FIELD):
        raise _refused_code(TOKENIZER_CONFIG)


def _check_weights(tensors: Mapping[str, Tensor]) -> None:
    packed = sorted(
        name for name, tensor in tensors.items() if _is_linear(name, tensor) and tensor.dtype not in _FLOATS
    )
    if packed:
        raise InvalidInput(
            f"spec.baseModel: {count(len(packed), 'weight has', 'weights have')} dtype {tensors[packed[0]].dtype} "
            f"(first: {packed[0]}), so the model is already quantized; use a model in 16 or 32 bits"
        )


def _is_native(model_type: object) -> bool:
    """Whether transformers has a causal language model of this type, which it uses instead of the model's own code.

    Models that are older than their support in transformers, such as Phi-3, still refer to their own code.
    """
    prepare_libraries()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return isinstance(model_type, str) and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _refused_code(file: str) -> InvalidInput:
    return InvalidInput(
        f"spec.baseModel: {file} has {CODE_FIELD}, so the model needs its own Python code, which Edgetune never runs "
        "(trust_remote_code is off); use a model type that transformers supports"
    )


def _first_int(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if type(config.get(name)) is int), None)
