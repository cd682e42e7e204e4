"""Finds the text part of a multimodal model: a causal language model of its own that gives the same answers to texts.

Both are built on torch's meta device. The decoder of the multimodal model must be of the class of the causal language
model's decoder, so no list of model types is needed. To be called in the trial's child process.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.models.folder import CONFIG
from edgetune_jobs.models.libraries import load_config
from edgetune_jobs.models.trial.loaded_names import LoadedNames
from edgetune_jobs.models.trial.same_logits import difference
from edgetune_jobs.models.trial.shapes import Shapes
from edgetune_jobs.models.trial.worker import say_doing
from edgetune_jobs.wording import count, first_line

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

# Types of text parts that no causal language model has, and the type that computes the same for texts: all three
# position streams of a multimodal rope are then equal, and no features of an image are added to a layer.
_EQUAL_TYPES = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
}
# Fields of a multimodal rope.
_STREAM_FIELDS = ("mrope_section", "mrope_interleaved", "type")
_TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_TIED = "tie_word_embeddings"
UNUSED = "no part of the model"


@dataclass(frozen=True)
class TextPart:
    """The text part of a multimodal model, as a causal language model."""

    whole: str
    """Architecture of the multimodal model."""

    architecture: str
    config: Mapping[str, Any]
    """Content of the text model's config.json."""

    names: Mapping[str, str]
    """The text model's names of its tensors, by their stored names."""

    left_out: Mapping[str, str]
    """All other tensors by their stored names: the part of the multimodal model that each belongs to."""


def find_text_part(folder: Path, tensors: Shapes) -> TextPart:
    """The text part of a multimodal model.

    Args:
        folder: has its config.json.
        tensors: shapes by name, as in the weights' files.

    Raises:
        InvalidInput: the model has no text part that is a causal language model, or lacks tensors of it.
    """
    say_doing(f"loading its {CONFIG}")
    config = load_config(folder)
    whole_class = _class_of(config)
    name = whole_class.__name__
    own_config = config.get_text_config(decoder=True)
    if own_config is config:
        raise _refused(name, f"its {CONFIG} has no text part")
    say_doing(f"building the model of {CONFIG} and its text part without their weights")
    whole = _build(name, lambda: whole_class(config))
    text_config = _causal_config(name, own_config)
    text_class = _causal_class(text_config)
    text = _build(name, lambda: text_class(text_config))
    pairs = _pairs(whole, text, is_equal_type=text_config is not own_config)
    setattr(text_config, _TIED, _is_tied(whole, text, pairs))
    text = _build(name, lambda: text_class(text_config))  # the tie decides which tensors it needs
    names, left_out = _divide(whole, text, pairs, tensors)
    different = difference(whole, text)
    if different is not None:
        raise _refused(name, f"{name} {different}, unlike {text_class.__name__}")
    return TextPart(name, text_class.__name__, _settings(folder, config, text_config, text_class), names, left_out)


def _class_of(config: "PreTrainedConfig") -> "type[PreTrainedModel]":
    """The class of the multimodal model."""
    import transformers

    architecture = str((config.architectures or [""])[0])
    found: Any = getattr(transformers, architecture, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    if not is_model or found.config_class is None or not isinstance(config, found.config_class):
        raise _refused(architecture[:128], "transformers has no such model of this type")
    model_class: type[PreTrainedModel] = found
    return model_class


def _build(name: str, make: Any) -> "PreTrainedModel":
    """A model without weights, on torch's meta device."""
    import torch
    from transformers import initialization

    try:
        with initialization.no_init_weights(), torch.device("meta"), initialization.meta_device_safe_creation_ops():
            model: PreTrainedModel = make()
    except MemoryError:
        raise
    except Exception as error:  # a configuration is checked by the code that computes with it
        raise _refused(name, f"transformers cannot build it from its {CONFIG}: {first_line(error)[:300]}") from error
    return model


def _causal_config(name: str, config: "PreTrainedConfig") -> "PreTrainedConfig":
    """The configuration of a causal language model with this text part."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return config
    model_type = _EQUAL_TYPES.get(config.model_type)
    if model_type is None:
        raise _refused(name, f"its text part ({config.model_type}) is not a causal language model in transformers")
    fields = config.to_dict()
    rope = {field: value for field, value in fields["rope_parameters"].items() if field not in _STREAM_FIELDS}
    if rope.get("rope_type") == "mrope":
        rope["rope_type"] = "default"
    equal: PreTrainedConfig = CONFIG_MAPPING[model_type].from_dict(
        {**fields, "rope_parameters": rope, "model_type": model_type}
    )
    return equal


def _causal_class(config: "PreTrainedConfig") -> "type[PreTrainedModel]":
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    found: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found


Pairs = Mapping[str, str]
"""Names of the text model's modules, by the names of the same modules in the multimodal model."""


def _pairs(whole: "PreTrainedModel", text: "PreTrainedModel", *, is_equal_type: bool) -> Pairs:
    """The modules that both models have.

    Raises:
        InvalidInput: the decoder of the multimodal model is of another class.
    """
    decoder, own = whole.get_decoder(), text.get_decoder()
    if isinstance(decoder, type(text)):
        return {_name_of(whole, decoder): ""}
    head = whole.get_output_embeddings()
    if head is None or (type(decoder) is not type(own) and not is_equal_type):
        raise _refused(
            type(whole).__name__, f"its decoder is a {type(decoder).__name__}, not the one of {type(text).__name__}"
        )
    return {
        _name_of(whole, decoder): _name_of(text, own),
        _name_of(whole, head): _name_of(text, text.get_output_embeddings()),
    }


def _name_of(model: "PreTrainedModel", module: "nn.Module") -> str:
    return next(name for name, each in model.named_modules() if each is module)


def _is_tied(whole: "PreTrainedModel", text: "PreTrainedModel", pairs: Pairs) -> bool:
    """Whether the multimodal model ties its output head to the embedding."""
    head = f"{_name_of(text, text.get_output_embeddings())}.weight"
    return any(_renamed(name, pairs) == head for name in whole.all_tied_weights_keys)


def _renamed(name: str, pairs: Pairs) -> str | None:
    """The text model's name of a tensor of the multimodal model; None if it is in none of the shared modules."""
    for whole, text in pairs.items():
        if name.startswith(f"{whole}."):
            return f"{text}.{name.removeprefix(f'{whole}.')}".removeprefix(".")
    return None


def _divide(
    whole: "PreTrainedModel", text: "PreTrainedModel", pairs: Pairs, tensors: Shapes
) -> tuple[dict[str, str], dict[str, str]]:
    """Names of the text model's tensors, and the parts of all others, both by their stored names.

    Raises:
        InvalidInput: a tensor of the text model is stored twice, is converted otherwise, has another shape, or is
            missing.
    """
    loaded, own, expected = LoadedNames(whole), LoadedNames(text), text.state_dict()
    names: dict[str, str] = {}
    left_out: dict[str, str] = {}
    found: set[str] = set()
    for stored in loaded.in_order(tensors):
        tensor = loaded.find(stored)
        name = None if tensor is None else _renamed(tensor.stored_as, pairs)
        if tensor is None or name is None:
            left_out[stored] = UNUSED if tensor is None else _part(whole, tensor.name)
            continue
        target = own.find(name)
        if target is None or target.operations != tensor.operations:
            raise _refused(type(whole).__name__, f"{type(text).__name__} does not load its tensor {name[:128]}")
        if target.name in found and not target.operations:
            raise InvalidInput(f"{BASE_FIELD}: tensor {stored[:128]!r} is stored twice; save or copy the model again")
        shape = tuple(expected[target.name].shape)
        if tensors[stored] != shape and not target.operations:
            raise InvalidInput(
                f"{BASE_FIELD}: {CONFIG} does not describe the text part of {type(whole).__name__}: {stored[:128]} has "
                f"the shape {list(tensors[stored])}, but {CONFIG} says {list(shape)}; copy both from the same model"
            )
        found.add(target.name)
        names[stored] = name
    missing = [name for name in expected if name not in found and not _is_made_up(name, text)]
    if missing:
        raise InvalidInput(
            f"{BASE_FIELD}: {count(len(missing), 'tensor', 'tensors')} of the text part of {type(whole).__name__} "
            f"{'is' if len(missing) == 1 else 'are'} missing from the weights (first: {missing[0]}); "
            f"copy {CONFIG} and weights from the same model"
        )
    return names, left_out


def _is_made_up(name: str, model: "PreTrainedModel") -> bool:
    """Whether the library needs no stored tensor of this name, because it is tied or computed."""
    optional = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return name in model.all_tied_weights_keys or any(re.search(each, name) for each in optional)


def _part(whole: "PreTrainedModel", name: str) -> str:
    """The part of the multimodal model that a tensor belongs to, such as vision_tower."""
    return name.removeprefix(f"{whole.base_model_prefix}.").partition(".")[0]


def _settings(
    folder: Path, config: "PreTrainedConfig", text_config: "PreTrainedConfig", text_class: "type[PreTrainedModel]"
) -> dict[str, Any]:
    """Content of the text model's config.json. Special tokens and dtype are those of the whole model, if it has any."""
    settings: dict[str, Any] = json.loads(text_config.to_json_string(use_diff=False))
    whole = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    tokens = {name: whole[name] for name in _TOKEN_FIELDS if whole.get(name) is not None}
    dtype = settings.get("dtype") or json.loads(config.to_json_string(use_diff=False)).get("dtype")
    return {**settings, **tokens, "dtype": dtype, "architectures": [text_class.__name__]}


def _refused(whole: str, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{BASE_FIELD}: {CONFIG} has the multimodal architecture {whole!r}, whose text part cannot be used: {reason}; "
        "use a text model, or save the text part as a model of its own (docs/base-models.md)"
    )
