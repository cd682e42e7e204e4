"""Bounds of a config.json: numbers that no model has, and settings that choose code, found without any library."""

from collections.abc import Iterator, Mapping
from typing import Any

from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.models.folder import CONFIG, IMPLEMENTATION_FIELDS
from edgetune_jobs.wording import some

_TEXT_PARTS = ("", "text_config.")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SIZES = (
    "hidden_size",
    "n_embd",
    "d_model",
    "vocab_size",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
)
# Larger than any model, and small enough for a product of two of them to be a number of torch.
_LARGEST_SIZE = 2**31 - 1
# A model may use a block several times.
_FEWEST_LAYERS_ALLOWED = 1_000
_QUANTIZATION_FIELDS = ("quantization_config", "compression_config")


def check_bounds(config: Mapping[str, Any], tensors: int) -> None:
    """Check the numbers of a config.json, so that a model without weights can be built from it.

    Args:
        config: its content.
        tensors: number of the weights' tensors.

    Raises:
        InvalidInput: a size is not positive or larger than any model's, or there are more blocks than tensors, or a
            part of the model is already quantized.
    """
    most_layers = max(tensors, _FEWEST_LAYERS_ALLOWED)
    for path, value in _fields(config, ""):
        prefix, _, name = path.rpartition(".")
        if name in _QUANTIZATION_FIELDS and value is not None:
            raise InvalidInput(
                f"{BASE_FIELD}: {CONFIG} has a {path}, so the model is already quantized; use a model in 16 or 32 "
                "bits, which QLoRA quantizes itself"
            )
        if type(value) is not int or name not in (*_LAYERS, *_SIZES):
            continue
        least = 1 if f"{prefix}." in _TEXT_PARTS or not prefix else 0
        most = most_layers if name in _LAYERS else _LARGEST_SIZE
        if not least <= value <= most:
            basis = f" (the weights have {tensors:,} tensors)" if name in _LAYERS and value > most else ""
            raise InvalidInput(
                f"{BASE_FIELD}: {path} in {CONFIG} is {value:,}, but must be from {least:,} to {most:,}{basis}; "
                "copy the file again from where the weights are from"
            )


def implementation_warnings(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Warning about fields of a config.json that choose the code of attention or experts, which are not used."""
    found = [
        f"{path}: {str(value)[:64]}"
        for path, value in _fields(config, "")
        if path.rpartition(".")[2] in IMPLEMENTATION_FIELDS and value is not None
    ]
    return (f"the base model's {CONFIG} chooses code, which is not used: {some(found)}",) if found else ()


def _fields(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All fields of nested objects, by their paths."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            below = f"{path}.{name}" if path else str(name)
            yield below, item
            yield from _fields(item, below)
