"""Tries a base model in the child process: loads its configuration and tokenizer, and compares it with its tensors."""

from collections.abc import Callable, Mapping
from pathlib import Path

from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.models.folder import CONFIG
from edgetune_jobs.models.libraries import load_config
from edgetune_jobs.models.loading import load_tokenizer
from edgetune_jobs.models.quantization.coverage import Coverage, nf4_coverage
from edgetune_jobs.models.safetensors_header import Tensor
from edgetune_jobs.models.skeleton import build_skeleton
from edgetune_jobs.models.trial.process import HOW_TO_REPAIR, TrialFailed, TrialProcess, Value
from edgetune_jobs.models.trial.shapes import Shapes, compare_shapes
from edgetune_jobs.models.trial.worker import say_doing


def try_model(trial: TrialProcess, folder: Path, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Warnings about a base model whose configuration and tokenizer can be loaded.

    Args:
        trial: the child process.
        folder: has configuration and tokenizer.
        tensors: the model's tensors by name.

    Raises:
        InvalidInput: they cannot be loaded, exceed the limits, or do not describe these tensors.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return _call(trial, _load, folder, shapes)


def try_coverage(trial: TrialProcess, folder: Path) -> Coverage:
    """What QLoRA quantizes in a base model that `try_model` has accepted.

    Args:
        trial: the child process.
        folder: has the configuration.

    Raises:
        InvalidInput: the model exceeds the limits.
    """
    return _call(trial, _cover, folder)


def _call(trial: TrialProcess, function: Callable[..., Value], *arguments: object) -> Value:
    try:
        return trial.call(function, *arguments)
    except TrialFailed as error:
        raise InvalidInput(f"{BASE_FIELD}: {error}; {HOW_TO_REPAIR}") from error


def _cover(folder: Path) -> Coverage:
    say_doing(f"building the model of {CONFIG} without its weights")
    return nf4_coverage(build_skeleton(folder))


def _load(folder: Path, shapes: Shapes) -> tuple[str, ...]:
    import torch

    say_doing(f"loading its {CONFIG}")
    dtype = load_config(folder).dtype
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidInput(
            f"{BASE_FIELD}: {CONFIG} has the dtype {str(dtype)[:64]!r}; set it to the dtype of the weights"
        )
    say_doing("loading its tokenizer")
    load_tokenizer(folder)
    return compare_shapes(folder, shapes)
