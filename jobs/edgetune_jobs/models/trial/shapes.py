"""Compares config.json with the tensors of a model, before any weight is read: on torch's meta device, without memory.

A model that is built from config.json has the names and shapes of the tensors that it will read. Only what is certain
is refused: a tensor of the same name but another shape, and a block that lacks tensors which other blocks have. Tensors
that the library renames or converts when it loads a model are left to it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.models.folder import CONFIG
from edgetune_jobs.models.skeleton import build_skeleton
from edgetune_jobs.models.trial.worker import say_doing
from edgetune_jobs.wording import count

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_REFERENCE = re.compile(r"\\\d+")  # to a group of the source pattern, in a target pattern


def compare_shapes(folder: Path, tensors: Shapes) -> tuple[str, ...]:
    """Warnings about a model folder whose config.json and tensors differ. To be called in the trial's child process.

    Args:
        folder: has config.json.
        tensors: shapes by name, as in the weights' files.

    Raises:
        InvalidInput: they contradict each other.
    """
    say_doing(f"building the model of {CONFIG} without its weights")
    model = build_skeleton(folder)
    expected = _shapes_of(model)
    stored = _in_model(tensors, model)
    for name in sorted(stored.keys() & expected.keys()):
        if stored[name] != expected[name] and not _is_converted(name, model):
            raise InvalidInput(
                f"{BASE_FIELD}: {CONFIG} does not describe these weights: {name} has the shape {list(stored[name])}, "
                f"but {CONFIG} says {list(expected[name])}; copy both from the same model"
            )
    missing = _certainly_missing(model, expected, stored)
    if missing:
        raise InvalidInput(
            f"{BASE_FIELD}: {CONFIG} describes more blocks than the weights have: "
            f"{count(len(missing), 'tensor is', 'tensors are')} missing (first: {missing[0]}); "
            f"copy {CONFIG} and weights from the same model"
        )
    surplus = _surplus_blocks(model, expected, stored)
    if surplus:
        return (
            f"{count(len(surplus), 'tensor', 'tensors')} of the base model (first: {surplus[0]}) are in blocks that "
            f"its {CONFIG} does not describe, and are not used",
        )
    return ()


def _shapes_of(model: "PreTrainedModel") -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _in_model(tensors: Shapes, model: "PreTrainedModel") -> dict[str, tuple[int, ...]]:
    """The stored tensors by their names in the model: a file of the bare model lacks the prefix, such as `model.`."""
    prefix = f"{model.base_model_prefix}."
    own = model.state_dict().keys()
    return {
        (prefix + name if name not in own and prefix + name in own else name): shape for name, shape in tensors.items()
    }


def _certainly_missing(model: "PreTrainedModel", expected: Shapes, stored: Shapes) -> list[str]:
    """Names of tensors that are not stored, although other blocks have them and the library does not make them up."""
    present = {_pattern(name) for name in stored.keys() & expected.keys()}
    shared = _names_by_tensor(model)
    optional = [re.compile(each) for each in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    return [
        name
        for name in expected
        if name not in stored
        and _pattern(name) in present
        and _pattern(name) != name
        and not any(other in stored for other in shared.get(name, ()))
        and not any(each.search(name) for each in optional)
        and not _is_converted(name, model)
    ]


def _surplus_blocks(model: "PreTrainedModel", expected: Shapes, stored: Shapes) -> list[str]:
    """Names of stored tensors in blocks that the model does not have, although it has others like them."""
    known = {_pattern(name) for name in expected}
    ignored = [re.compile(each) for each in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    return [
        name
        for name in sorted(stored)
        if name not in expected
        and _pattern(name) != name
        and _pattern(name) in known
        and not any(each.search(name) for each in ignored)
        and not _is_converted(name, model)
    ]


def _names_by_tensor(model: "PreTrainedModel") -> dict[str, list[str]]:
    """The names of each tensor that has several, because they are tied, by each of these names."""
    names: dict[int, list[str]] = {}
    for name, tensor in _all_tensors(model):
        names.setdefault(id(tensor), []).append(name)
    tied = {name: group for group in names.values() if len(group) > 1 for name in group}
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        tied.setdefault(target, []).append(source)
        tied.setdefault(source, []).append(target)
    return tied


def _all_tensors(model: "PreTrainedModel") -> Iterable[tuple[str, object]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _is_converted(name: str, model: "PreTrainedModel") -> bool:
    """Whether the library renames or converts a tensor of this name when it loads the model."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    mapping = model.__dict__.get("_edgetune_conversions")
    if mapping is None:
        mapping = [
            pattern
            for transform in get_model_conversion_mapping(model)
            for pattern in (*_texts(transform.source_patterns), *_texts(transform.target_patterns))
        ]
        model.__dict__["_edgetune_conversions"] = mapping
    return any(_matches(pattern, name) for pattern in mapping)


def _texts(patterns: str | Iterable[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(_REFERENCE.sub(".*", pattern), name) is not None
    except re.error:
        return pattern in name


def _pattern(name: str) -> str:
    """The name with # for each number, such as model.layers.#.mlp.up_proj.weight."""
    return _NUMBER.sub("#", name)
