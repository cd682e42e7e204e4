"""What an adapter adds to which layers of a base, and whether it fits them."""

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models import adapters
from edgetune_jobs.models.target_modules import matching

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."
"""Of the names of an adapter's tensors."""

_MATRICES = (".lora_A.weight", ".lora_B.weight")
# Options of peft that say how an adapter was made or is written down, not what it adds.
_PLAIN_OPTIONS = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "init_lora_weights",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)

_OFF: tuple[Any, ...] = (None, False, "none", 0, [], {})

LinearSizes = tuple[int, int]
"""Inputs and outputs of a linear layer."""


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """adapter_config.json.

    Raises:
        InvalidInput: it does not load, or is not that of a LoRA adapter with a list of target modules.
    """
    try:
        config = json.loads((adapter / adapters.CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the adapter does not load: {error}") from error
    if (
        not isinstance(config, dict)
        or config.get("peft_type") != "LORA"
        or not isinstance(config.get("target_modules"), list)
    ):
        raise InvalidInput("the adapter is no LoRA adapter with a list of target modules")
    return config


def read_adapter_weights(adapter: Path) -> "dict[str, torch.Tensor]":
    """Tensors of the adapter by name.

    Raises:
        InvalidInput: they do not load.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(adapter / adapters.WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidInput(f"the adapter does not load: {error}") from error


def special_options(config: Mapping[str, Any]) -> list[str]:
    """Options that make an adapter more than two matrices for each layer, sorted: DoRA, biases, whole modules, …"""
    return sorted(name for name, value in config.items() if name not in _PLAIN_OPTIONS and value not in _OFF)


def adapter_layers(weights: "Mapping[str, torch.Tensor]") -> set[str]:
    """Names of the base's layers that a plain adapter has matrices for."""
    return {name.removeprefix(PREFIX).removesuffix(end) for name in weights for end in _MATRICES if name.endswith(end)}


def matrices_of(weights: "Mapping[str, torch.Tensor]", layer: str) -> "tuple[torch.Tensor, torch.Tensor]":
    """Matrices A [rank, inputs] and B [outputs, rank] of a layer."""
    first, second = (weights[f"{PREFIX}{layer}{end}"] for end in _MATRICES)
    return first, second


def scale_of(config: Mapping[str, Any], layer: str) -> float:
    """The factor of B · A."""
    rank = rank_of(config, layer)
    alpha = _by_pattern(config.get("alpha_pattern"), layer, config["lora_alpha"])
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def rank_of(config: Mapping[str, Any], layer: str) -> int:
    """Rank of a layer's matrices by the adapter's config."""
    return int(_by_pattern(config.get("rank_pattern"), layer, config["r"]))


def check_layers(
    config: Mapping[str, Any],
    weights: "Mapping[str, torch.Tensor]",
    linears: Mapping[str, LinearSizes],
    modules: Collection[str],
) -> None:
    """Check that every tensor of a plain adapter has its place in the base, fits, and is finite; and none is missing.

    Args:
        config: the adapter's.
        weights: the adapter's.
        linears: linear layers of the base.
        modules: names of all modules of the base, those layers among them.

    Raises:
        InvalidInput: says which tensor does not fit.
    """
    layers = adapter_layers(weights)
    known = {f"{PREFIX}{layer}{end}" for layer in layers for end in _MATRICES}
    refuse_first(set(weights) - known, "has a tensor that belongs to no layer of the base")
    refuse_first(known - set(weights), "lacks a tensor")
    asked = set().union(*(matching(target, modules) for target in config["target_modules"]))
    refuse_first(layers - set(modules), "is for a layer that the base does not have")
    refuse_first(layers - asked, "has weights for a layer that its config does not name")
    refuse_first(asked - layers, "has no weights for a layer that its config names")
    for layer in sorted(layers):
        if layer not in linears:
            raise InvalidInput(f"the adapter does not fit the base: {layer} is no linear layer there")
        _check_matrices(config, weights, layer, linears[layer])


def refuse_first(names: Collection[str], problem: str) -> None:
    """Refuse an adapter for the first of some names, if there is one.

    Raises:
        InvalidInput: there is.
    """
    if names:
        raise InvalidInput(f"the adapter does not fit the base: it {problem}: {min(names)}")


def _check_matrices(
    config: Mapping[str, Any], weights: "Mapping[str, torch.Tensor]", layer: str, sizes: LinearSizes
) -> None:
    from torch import isfinite

    first, second = matrices_of(weights, layer)
    inputs, outputs = sizes
    rank = first.shape[0]
    if tuple(first.shape) != (rank, inputs) or tuple(second.shape) != (outputs, rank):
        raise InvalidInput(
            f"the adapter does not fit the base: {layer} has {inputs} inputs and {outputs} "
            f"outputs there, but its matrices are {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if rank != rank_of(config, layer):
        raise InvalidInput(
            f"the adapter does not fit its config: {layer} has matrices of rank {rank}, but the config says "
            f"{rank_of(config, layer)}"
        )
    if not (isfinite(first).all() and isfinite(second).all()):
        raise InvalidInput(
            f"the adapter has weights that are not finite in {layer}: train it again with a lower learningRate"
        )


def _by_pattern(patterns: Mapping[str, Any] | None, layer: str, otherwise: Any) -> Any:
    """The value whose key, a pattern, matches the end of a layer's name, as peft looks it up."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", layer))
    return next(found, otherwise)
