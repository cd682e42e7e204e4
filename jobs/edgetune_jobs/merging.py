"""An adapter and its base as one model, and model folders: shared by merge, quantize and evaluate."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.spec import DatasetSpec, MergeBase, Method
from edgetune_jobs import adapters, models
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.prompts import PromptFormat

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

# Files that make a tokenizer, and the generation settings: copied as they are, since saving them anew can change them.
_COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "generation_config.json",
)
_PREFIX = "base_model.model."
_MATRICES = (".lora_A.weight", ".lora_B.weight")
# Kinds of adapters that the train stage never makes, and whose weights would be lost in merging.
_REFUSED_OPTIONS = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "fan_in_fan_out",
)


def load_tuned(base: Path, adapter: Path, merge_base: MergeBase, device: "torch.device") -> "PeftModel":
    """Base with its adapter beside it, not merged, in the number format that the base was trained in.

    With AsTrained and an adapter of QLoRA, the base has the values that training saw: NF4 and back, held in 16 or 32
    bits. That computes the same numbers as the 4-bit layers do, which unpack their weights in every pass.

    Raises:
        InvalidInput: base or adapter do not load, or do not fit each other.
    """
    import torch

    record = adapters.read_record(adapter)
    model = models.load_base(base, getattr(torch, record.base_dtype), device)
    if record.method is Method.QLORA and merge_base is MergeBase.AS_TRAINED:
        models.as_trained_weights(model)
    check_adapter(adapter, model)
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter), is_trainable=False).eval()


def merge(base: Path, adapter: Path, merge_base: MergeBase, device: "torch.device") -> "PreTrainedModel":
    """Base with its adapter added to its weights.

    Raises:
        InvalidInput: base or adapter do not load, do not fit each other, or give weights that are not finite.
    """
    tuned = load_tuned(base, adapter, merge_base, device)
    try:
        return tuned.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise InvalidInput(f"the adapter cannot be merged: {error}") from error


def check_adapter(adapter: Path, model: "PreTrainedModel") -> None:
    """Check that every adapter tensor has its place in the model, fits, and is finite; and that none is missing.

    Raises:
        InvalidInput: says which tensor does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((adapter / adapters.CONFIG).read_bytes())
        weights = load_file(adapter / adapters.WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidInput(f"the adapter does not load: {error}") from error
    _check_kind(config)
    layers = {
        name.removeprefix(_PREFIX).removesuffix(end) for name in weights for end in _MATRICES if name.endswith(end)
    }
    known = {f"{_PREFIX}{layer}{end}" for layer in layers for end in _MATRICES}
    _refuse_first(set(weights) - known, "has a tensor that belongs to no layer of the base")
    _refuse_first(known - set(weights), "lacks a tensor")
    modules = dict(model.named_modules())
    targets = tuple(config["target_modules"])
    asked = {name for name in modules if any(name == target or name.endswith(f".{target}") for target in targets)}
    _refuse_first(layers - set(modules), "is for a layer that the base does not have")
    _refuse_first(layers - asked, "has weights for a layer that its config does not name")
    _refuse_first(asked - layers, "has no weights for a layer that its config names")
    for layer in sorted(layers):
        _check_matrices(layer, modules[layer], weights)


def save_model(model: "PreTrainedModel", folder: Path, companions: Path, dataset: DatasetSpec) -> None:
    """Write a model folder that from_pretrained reads: safetensors, tokenizer, generation settings, edgetune.json.

    Args:
        model: the model.
        folder: where to; made if needed.
        companions: model folder whose tokenizer and generation settings are copied.
        dataset: the spec's section, for the prompt format.
    """
    from transformers import GenerationConfig

    # Older models come with settings that transformers refuses to write again; the file itself is copied below.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    for name in _COMPANION_FILES:
        if (companions / name).is_file():
            shutil.copyfile(companions / name, folder / name)
    PromptFormat.of(dataset).write(folder)


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _check_kind(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA" or not isinstance(config.get("target_modules"), list):
        raise InvalidInput("the adapter is no LoRA adapter with a list of target modules")
    refused = [name for name in _REFUSED_OPTIONS if config.get(name)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if refused:
        raise InvalidInput(f"the adapter uses {refused[0]}, which cannot be merged")


def _refuse_first(names: set[str], problem: str) -> None:
    if names:
        raise InvalidInput(f"the adapter does not fit the base: it {problem}: {min(names)}")


def _check_matrices(layer: str, module: Any, weights: "Mapping[str, torch.Tensor]") -> None:
    from torch import isfinite, nn

    if not isinstance(module, nn.Linear):
        raise InvalidInput(f"the adapter does not fit the base: {layer} is no linear layer there")
    first, second = (weights[f"{_PREFIX}{layer}{end}"] for end in _MATRICES)
    rank = first.shape[0]
    if tuple(first.shape) != (rank, module.in_features) or tuple(second.shape) != (module.out_features, rank):
        raise InvalidInput(
            f"the adapter does not fit the base: {layer} has {module.in_features} inputs and {module.out_features} "
            f"outputs there, but its matrices are {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if not (isfinite(first).all() and isfinite(second).all()):
        raise InvalidInput(
            f"the adapter has weights that are not finite in {layer}: train it again with a lower learningRate"
        )
