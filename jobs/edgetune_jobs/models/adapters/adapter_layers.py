"""The layers that an adapter changes, and the check that it matches the base model."""

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_jobs.errors import HOW_TO_TRAIN_SMALLER_WEIGHTS, InvalidInput, TrainingDiverged
from edgetune_jobs.models.adapters import adapter_files
from edgetune_jobs.models.adapters.target_modules import matching
from edgetune_jobs.wording import count

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."
"""Prefix of the names of an adapter's tensors."""

_MATRICES = (".lora_A.weight", ".lora_B.weight")
# Options of a plain LoRA adapter: they do not change what it adds beyond scale · B · A for each layer.
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
    """Read adapter_config.json.

    Raises:
        InvalidInput: it cannot be read, or is not the config of a LoRA adapter with a list of target modules.
    """
    try:
        config = json.loads((adapter / adapter_files.CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot load the adapter: {error}") from error
    if (
        not isinstance(config, dict)
        or config.get("peft_type") != "LORA"
        or not isinstance(config.get("target_modules"), list)
    ):
        raise InvalidInput("the adapter is not a LoRA adapter with a list of target modules")
    return config


def read_adapter_weights(adapter: Path) -> "dict[str, torch.Tensor]":
    """Tensors of the adapter by name.

    Raises:
        InvalidInput: they cannot be loaded.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(adapter / adapter_files.WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidInput(f"cannot load the adapter: {error}") from error


def special_options(config: Mapping[str, Any]) -> list[str]:
    """Options that add more than two matrices per layer, sorted: DoRA, biases, whole modules, …"""
    return sorted(name for name, value in config.items() if name not in _PLAIN_OPTIONS and value not in _OFF)


def adapter_layers(weights: "Mapping[str, torch.Tensor]") -> set[str]:
    """Names of the layers for which a plain adapter has matrices."""
    return {name.removeprefix(PREFIX).removesuffix(end) for name in weights for end in _MATRICES if name.endswith(end)}


def matrices_of(weights: "Mapping[str, torch.Tensor]", layer: str) -> "tuple[torch.Tensor, torch.Tensor]":
    """Matrices A [rank, inputs] and B [outputs, rank] of a layer."""
    first, second = (weights[f"{PREFIX}{layer}{end}"] for end in _MATRICES)
    return first, second


def scale_of(config: Mapping[str, Any], layer: str) -> float:
    """The scale s of the update s · B · A: alpha / rank, or alpha / √rank with rsLoRA (as in peft)."""
    rank = rank_of(config, layer)
    alpha = _by_pattern(config.get("alpha_pattern"), layer, config["lora_alpha"])
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def rank_of(config: Mapping[str, Any], layer: str) -> int:
    """Rank of a layer's matrices according to the adapter's config."""
    return int(_by_pattern(config.get("rank_pattern"), layer, config["r"]))


def check_layers(
    config: Mapping[str, Any],
    weights: "Mapping[str, torch.Tensor]",
    linears: Mapping[str, LinearSizes],
    modules: Collection[str],
) -> None:
    """Check that a plain adapter has both matrices for each target layer, with matching shapes and finite values.

    Args:
        config: the adapter's.
        weights: the adapter's.
        linears: linear layers of the base model.
        modules: names of all modules of the base model, including the linear layers.

    Raises:
        InvalidInput: names the first tensor or layer that does not match.
    """
    layers = adapter_layers(weights)
    known = {f"{PREFIX}{layer}{end}" for layer in layers for end in _MATRICES}
    refuse_first(set(weights) - known, "unexpected tensor")
    refuse_first(known - set(weights), "missing tensor")
    targets = set().union(*(matching(target, modules) for target in config["target_modules"]))
    refuse_first(layers - set(modules), "the base model has no layer")
    refuse_first(layers - targets, "the adapter has weights for a layer that is not in its target_modules:")
    refuse_first(targets - layers, "the adapter has no weights for the target layer")
    for layer in sorted(layers):
        if layer not in linears:
            raise InvalidInput(f"the adapter does not match the base model: {layer} is not a linear layer")
        _check_matrices(config, weights, layer, linears[layer])


def check_learned(weights: "Mapping[str, torch.Tensor]", steps: int) -> tuple[str, ...]:
    """Check a plain adapter after training: it must add something finite to the base. B starts as zeros.

    Args:
        weights: the adapter's.
        steps: optimizer steps of the training.

    Returns:
        A warning about layers that learned nothing.

    Raises:
        TrainingDiverged: a value is not finite.
        InvalidInput: no layer learned anything.
    """
    for name in sorted(weights):
        if not weights[name].isfinite().all():
            raise TrainingDiverged(
                f"the adapter has values that are not finite after training: {name}; {HOW_TO_TRAIN_SMALLER_WEIGHTS}"
            )
    layers = sorted(adapter_layers(weights))
    idle = [layer for layer in layers if not matrices_of(weights, layer)[1].any()]
    if layers and len(idle) == len(layers):
        raise InvalidInput(
            f"the adapter is all zeros after {count(steps, 'step')}, so training changed nothing: raise "
            "spec.training.maxSteps, epochs or learningRate, and check that warmupRatio leaves steps with a learning "
            "rate above 0"
        )
    if not idle:
        return ()
    return (f"{len(idle)} of the {len(layers)} layers with an adapter learned nothing, such as {idle[0]}",)


def refuse_first(names: Collection[str], problem: str) -> None:
    """Refuse an adapter with a problem, naming the first of `names`, if there are any.

    Raises:
        InvalidInput: there is a name.
    """
    if names:
        raise InvalidInput(f"the adapter does not match the base model: {problem} {min(names)}")


def _check_matrices(
    config: Mapping[str, Any], weights: "Mapping[str, torch.Tensor]", layer: str, sizes: LinearSizes
) -> None:
    from torch import isfinite

    first, second = matrices_of(weights, layer)
    inputs, outputs = sizes
    rank = first.shape[0]
    if tuple(first.shape) != (rank, inputs) or tuple(second.shape) != (outputs, rank):
        raise InvalidInput(
            f"the adapter does not match the base model: {layer} has {inputs} inputs and {outputs} outputs, but the "
            f"adapter's matrices have the shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if rank != rank_of(config, layer):
        raise InvalidInput(
            f"the adapter does not match its {adapter_files.CONFIG}: the matrices of {layer} have rank {rank}, but the "
            f"config says {rank_of(config, layer)}"
        )
    if not (isfinite(first).all() and isfinite(second).all()):
        raise InvalidInput(
            f"the adapter has weights that are not finite in {layer}; train again with a lower "
            "spec.training.learningRate"
        )


def _by_pattern(patterns: Mapping[str, Any] | None, layer: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the end of a layer's name, as in peft."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", layer))
    return next(found, otherwise)
