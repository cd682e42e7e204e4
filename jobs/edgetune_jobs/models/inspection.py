"""A base model as its files describe it: configuration, tokenizer files, tensors. Nothing of it is loaded or run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_contract.spec import LoraSpec
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.messages import some
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
from edgetune_jobs.models.target_modules import matching, requested_modules, short_name
from edgetune_jobs.models.weights import (
    OUTPUT_HEAD,
    WEIGHTS,
    WEIGHTS_INDEX,
    read_json,
    read_tensors,
    weight_files,
)
from edgetune_jobs.store.sources import Source

_CAUSAL_LM = ("ForCausalLM", "LMHeadModel")
# Their linear layers are Conv1D, which holds its weight the other way round: nothing here adds an adapter to that.
_TRANSPOSED_TYPES = ("gpt2", "openai-gpt")
_FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer within the model's repeated blocks."""

    name: str
    """Such as model.layers.0.self_attn.q_proj."""

    weights: int
    features: int
    """Inputs plus outputs: an adapter of rank r on this layer has r times as many parameters."""

    @property
    def short_name(self) -> str:
        """Such as q_proj."""
        return short_name(self.name)


@dataclass(frozen=True)
class BaseModel:
    """What is known of a base model without loading it."""

    folder: Path
    """Local folder with configuration and tokenizer, without weights."""

    config: Mapping[str, Any]
    architecture: str
    bytes: int
    """Size of the files that a run uses."""

    tensors: Mapping[str, Tensor]
    """The tensors that from_pretrained reads, by name."""

    @property
    def parameters(self) -> int:
        """How many numbers the model has; a tied output head counts once."""
        return sum(tensor.numbers for name, tensor in self.tensors.items() if not self._is_tied(name))

    @property
    def linear_layers(self) -> tuple[LinearLayer, ...]:
        """Linear layers of the blocks, in the order of their names: those that can have an adapter.

        They are told by their tensors: two dimensions, and a block's number in the name, which embeddings and the
        output head do not have. Experts are left out: the libraries fuse them into tensors that take no adapter.
        """
        return tuple(
            LinearLayer(name.removesuffix(".weight"), tensor.numbers, sum(tensor.shape))
            for name, tensor in sorted(self.tensors.items())
            if _is_linear(name, tensor)
        )

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model was made for, in tokens, if the configuration says so."""
        return _first_int(self.config, "max_position_embeddings", "n_positions")

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream; 0 if the configuration does not say."""
        return _first_int(self.config, "hidden_size", "n_embd") or 0

    @property
    def layers(self) -> int:
        """Number of blocks; 0 if the configuration does not say."""
        return _first_int(self.config, "num_hidden_layers", "n_layer") or 0

    @property
    def vocabulary(self) -> int | None:
        """Rows of the embedding: token ids lie below it."""
        return _first_int(self.config, "vocab_size")

    def _is_tied(self, name: str) -> bool:
        return bool(self.config.get("tie_word_embeddings")) and name == f"{OUTPUT_HEAD}.weight"


def inspect_base(source: Source) -> BaseModel:
    """Look at a base model: small files are fetched, of the weights only the headers are read.

    Raises:
        InvalidInput: it is not a causal language model in safetensors, or holds code, or is quantized already, or a
            file of it is broken.
    """
    model = SourceModelFolder(source, base_label(source.uri))
    if CONFIG not in model.sizes:
        found = some(sorted([*model.sizes, *source.ignored]))
        raise InvalidInput(
            f"{model.label} has no {CONFIG} (found: {found}): name the folder that save_pretrained wrote"
        )
    shards = weight_files(model)
    small = [name for name in (CONFIG, *COMPANION_FILES) if name in model.sizes]
    folder = source.fetch(small)
    config = read_json(model, CONFIG)
    architecture = _check_config(config)
    _check_tokenizer(model)
    tensors = {each.name: Tensor(each.dtype, each.shape, each.begin, each.end) for each in read_tensors(model)}
    _check_weights(tensors)
    index = [WEIGHTS_INDEX] if shards != [WEIGHTS] else []
    return BaseModel(
        folder=folder,
        config=config,
        architecture=architecture,
        bytes=sum(model.sizes[name] for name in {*small, *shards, *index}),
        tensors=tensors,
    )


def targeted_layers(base: BaseModel, lora: LoraSpec) -> tuple[LinearLayer, ...]:
    """The linear layers that get an adapter: those whose name is, or ends in, one of the target modules.

    Raises:
        InvalidInput: a target module is no linear layer of the base.
    """
    layers = {layer.name: layer for layer in base.linear_layers}
    targets = requested_modules(lora, layers, layers)
    matches = {target: matching(target, layers) for target in targets}
    unknown = [target for target, names in matches.items() if not names]
    if unknown or not targets:
        there = ", ".join(sorted({layer.short_name for layer in layers.values()})) or "none"
        what = f"no linear layer {', '.join(unknown)}" if unknown else "no linear layer at all"
        requested = lora.target_modules
        preset = f" ({requested} is {', '.join(targets)})" if isinstance(requested, str) else ""
        raise InvalidInput(
            f"spec.lora.targetModules: the base ({base.architecture}) has {what}{preset}; "
            f"its linear layers are: {there}. Name some of these, or AllLinear"
        )
    meant = set().union(*matches.values())
    return tuple(layer for name, layer in layers.items() if name in meant)


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
        InvalidInput: the model needs its own code, is quantized already, is no causal language model, or has other
            layers than linear ones.
    """
    if config.get(CODE_FIELD) and not _is_native(config.get("model_type")):
        raise _refused_code(CONFIG)
    if config.get("quantization_config") or config.get("compression_config"):
        raise InvalidInput(
            f"spec.baseModel: {CONFIG} has a quantization_config: the base is quantized already. "
            "Name the model in 16 or 32 bits; QLoRA quantizes it by itself"
        )
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise InvalidInput(f"spec.baseModel: {CONFIG} names no architectures: save the model with save_pretrained")
    if not architectures[0].endswith(_CAUSAL_LM):
        raise InvalidInput(
            f"spec.baseModel: {CONFIG} names the architecture {architectures[0][:128]!r}; only causal language models "
            "(…ForCausalLM, …LMHeadModel) can be fine-tuned"
        )
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InvalidInput(f"spec.baseModel: {CONFIG} names no model_type: save the model with save_pretrained")
    if model_type in _TRANSPOSED_TYPES:
        raise InvalidInput(
            f"spec.baseModel: the layers of the type {model_type} are Conv1D, not linear layers, and cannot be "
            "fine-tuned here: name a base of another type, such as llama, mistral, qwen2, qwen3, gemma2 or phi3"
        )
    return architectures[0]


def _check_tokenizer(model: ModelFolder) -> None:
    if not any(name in model.sizes for name in VOCABULARIES):
        raise InvalidInput(
            f"{model.label} has no tokenizer (none of {', '.join(VOCABULARIES)}): "
            "save it beside the model with tokenizer.save_pretrained"
        )
    if TOKENIZER_CONFIG in model.sizes and read_json(model, TOKENIZER_CONFIG).get(CODE_FIELD):
        raise _refused_code(TOKENIZER_CONFIG)


def _check_weights(tensors: Mapping[str, Tensor]) -> None:
    packed = sorted(
        name for name, tensor in tensors.items() if _is_linear(name, tensor) and tensor.dtype not in _FLOATS
    )
    if packed:
        raise InvalidInput(
            f"spec.baseModel: {len(packed)} weights are {tensors[packed[0]].dtype} (first: {packed[0]}), so the base "
            "is quantized already: name the model in 16 or 32 bits"
        )


def _is_native(model_type: object) -> bool:
    """Whether transformers has a causal language model of this type, which it then takes instead of a model's own code.

    Models that were there before the library knew them, such as Phi-3, go on naming their code.
    """
    prepare_libraries()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return isinstance(model_type, str) and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _refused_code(file: str) -> InvalidInput:
    return InvalidInput(
        f"spec.baseModel: {file} has an {CODE_FIELD}: the model wants to run Python code of its own, which is refused "
        "(trust_remote_code is never used). Name a model that the transformers library knows"
    )


def _first_int(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if type(config.get(name)) is int), None)
