"""Checks a downloaded checkpoint before training resumes from it: what the libraries load later would fail or be wrong.

This module imports torch and the Hugging Face libraries at its top; import it only inside functions.
"""

import json
import math
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from edgetune_jobs.models.adapters.adapter_files import WEIGHTS
from edgetune_jobs.store.store import DamagedObject

_STATE = "trainer_state.json"
_OPTIMIZER = "optimizer.pt"
_SCHEDULER = "scheduler.pt"
_RANDOM = "rng_state.pth"
_SCALER = "scaler.pt"  # with FP16 only
_FILES = (WEIGHTS, _STATE, _OPTIMIZER, _SCHEDULER, _RANDOM)
# Entries of an optimizer's state with a number for each parameter, by their names in torch and in bitsandbytes.
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "state1", "state2")


class CheckpointCheck:
    """Checks that a checkpoint folder has the state of a training with this model."""

    def __init__(self, model: torch.nn.Module, total_steps: int) -> None:
        """
        Args:
            model: the model with its adapter.
            total_steps: optimizer steps of the whole training.
        """
        self._adapter = {
            name: tuple(value.shape)
            for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        }
        self._trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        self._total_steps = total_steps

    def __call__(self, folder: Path, step: int) -> None:
        """Check a checkpoint that is named after the step.

        Raises:
            DamagedObject: a file is missing or unreadable, has values that are not finite, or belongs to another step
                or training.
        """
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise DamagedObject(f"it has no {missing[0]}")
        for name, check in self._checks(step):
            try:
                check(folder / name)
            except DamagedObject as error:
                raise DamagedObject(f"{name} {error}") from error
            except Exception as error:  # a damaged file makes its reader raise anything
                raise DamagedObject(f"{name} cannot be read: {' '.join(str(error).split())[:200]}") from error

    def _checks(self, step: int) -> Iterator[tuple[str, Callable[[Path], None]]]:
        yield _STATE, lambda path: self._check_state(path, step)
        yield WEIGHTS, self._check_adapter
        yield _OPTIMIZER, self._check_optimizer
        yield _SCHEDULER, lambda path: _check_scheduler(path, step)
        yield _RANDOM, _check_random
        yield _SCALER, _check_scaler

    def _check_state(self, path: Path, step: int) -> None:
        try:
            # Not strict: the trainer writes NaN and Infinity, as the gradient norm of steps that FP16 skips.
            state = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DamagedObject(f"is invalid JSON: {error}") from error
        found = state.get("global_step") if isinstance(state, dict) else None
        if type(found) is not int or found != step:
            raise DamagedObject(f"is of step {json.dumps(found)[:32]} instead of {step}")
        if step > self._total_steps:
            raise DamagedObject(f"is of step {step}, but the training has only {self._total_steps} steps")
        history = state.get("log_history")
        if not isinstance(history, list) or not all(_is_log(entry) for entry in history):
            raise DamagedObject("has a log_history that is not a list of figures")
        epoch = state.get("epoch")
        if not isinstance(epoch, int | float) or not 0 <= epoch < math.inf:
            raise DamagedObject("has no epoch")
        TrainerState.load_from_json(str(path))

    def _check_adapter(self, path: Path) -> None:
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise DamagedObject(f"is not a valid safetensors file: {error}") from error
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != self._adapter:
            other = sorted(
                name for name in shapes.keys() | self._adapter if shapes.get(name) != self._adapter.get(name)
            )
            raise DamagedObject(
                f"has {other[0]} with shape {shapes.get(other[0])} instead of {self._adapter.get(other[0])}"
            )
        _check_finite(tensors)

    def _check_optimizer(self, path: Path) -> None:
        state = _load(path)
        groups, entries = state["param_groups"], state["state"]
        members = [member for group in groups for member in group["params"]]
        if sorted(members) != list(range(len(self._trained))):
            raise DamagedObject(f"has the state of {len(members)} parameters instead of {len(self._trained)}")
        for name in _MOMENTS:
            # As multisets: an optimizer's groups may order the parameters differently.
            sizes = Counter(entry[name].numel() for entry in entries.values() if entry.get(name) is not None)
            if sizes - Counter(self._trained):
                raise DamagedObject(f"has {name} of other sizes than the adapter")
        _check_finite(state)


def _check_scheduler(path: Path, step: int) -> None:
    state = _load(path)
    last, rates = state["last_epoch"], state["base_lrs"]
    # With FP16, steps whose gradients overflow do not count.
    if type(last) is not int or not 0 <= last <= step:
        raise DamagedObject(f"is of step {str(last)[:32]}")
    if not all(isinstance(rate, float) and 0 <= rate < math.inf for rate in rates):
        raise DamagedObject("has learning rates that are not numbers")
    _check_finite(state)


def _check_random(path: Path) -> None:
    state = _load(path)
    # In generators of their own: the process's own generators stay as they are.
    random.Random().setstate(state["python"])  # noqa: S311 - not for secrets
    numpy.random.RandomState().set_state(state["numpy"])
    torch.Generator().set_state(state["cpu"])


def _check_scaler(path: Path) -> None:
    if path.is_file():
        _check_finite(_load(path))


def _load(path: Path) -> Any:
    """Content of a file of torch.save, by its weights-only reader.

    Raises:
        DamagedObject: the file would take more memory than its size.
    """
    with zipfile.ZipFile(path) as file:  # torch stores without compression
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise DamagedObject("is compressed, which torch.save never does")
    with safe_globals():
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_finite(value: Any) -> None:
    for tensor in _tensors(value):
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise DamagedObject("has a tensor that is larger than its content")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DamagedObject("has values that are not finite")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise DamagedObject("has values that are not finite")


def _is_log(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(value, int | float) for value in entry.values())
