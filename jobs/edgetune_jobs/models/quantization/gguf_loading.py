"""Options to load GGUF edge models with transformers, which dequantizes their blocks."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_jobs.models.libraries import load_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


FILE = "model-Q8_0.gguf"
"""Name of the GGUF file in a model folder."""


def find_file(folder: Path) -> Path | None:
    """The GGUF file of a model folder; None if it has none."""
    path = folder / FILE
    return path if path.is_file() else None


def options(file: Path, device: "torch.device") -> dict[str, Any]:
    """Options of from_pretrained for a GGUF file in a folder with the model's config.json.

    transformers reads only part of the metadata of GGUF: head sizes and scaled rotary embeddings come from
    config.json. On a CPU, weights are float32, which represents Q8_0 exactly; on a GPU, they have the model's own dtype
    and need half the memory.
    """
    import torch

    config = _configuration(file.parent)
    return {
        "gguf_file": file.name,
        "config": config,
        "dtype": torch.float32 if device.type == "cpu" else config.dtype or torch.float32,
    }


def _configuration(folder: Path) -> "PreTrainedConfig":
    from transformers import LlamaConfig

    config = load_config(folder)
    if config.model_type != "mistral":
        return config
    # In GGUF, Mistral is a Llama model, which computes the same within the sliding window.
    values = config.to_dict()
    for name in ("model_type", "architectures", "sliding_window", "layer_types", "transformers_version"):
        values.pop(name, None)
    return LlamaConfig(**values, architectures=["LlamaForCausalLM"])
