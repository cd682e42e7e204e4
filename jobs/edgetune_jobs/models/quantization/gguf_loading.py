"""Options to load GGUF edge models with transformers, which dequantizes their blocks."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.models.libraries import load_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


def file_name(edge_format: EdgeFormat) -> str:
    """Name of the GGUF file in the model folder of a format."""
    return f"model-{edge_format.file_type}.gguf"


BASE_FILE = "base.gguf"
"""Name of the base's file in a folder of GGUF-LoRA."""

ADAPTER_FILE = "adapter.gguf"
"""Name of the adapter's file beside it."""


def find_file(folder: Path) -> Path | None:
    """The GGUF file of a model folder, for GGUF-LoRA that of the base; None if it has none."""
    names = (*(file_name(each) for each in EdgeFormat if each.file_type is not None), BASE_FILE)
    return next((path for name in names if (path := folder / name).is_file()), None)


def find_adapter(folder: Path) -> Path | None:
    """The adapter's file in a folder of GGUF-LoRA; None in folders of whole models."""
    path = folder / ADAPTER_FILE
    return path if path.is_file() else None


def options(file: Path, device: "torch.device") -> dict[str, Any]:
    """Options of from_pretrained for a GGUF file in a folder with the model's config.json.

    transformers reads only part of the metadata of GGUF: head sizes and scaled rotary embeddings come from
    config.json. On a CPU, weights are float32, which represents all types exactly; on a GPU, they have the model's own
    dtype and need half the memory.
    """
    import torch

    config = _configuration(file.parent)
    return {
        "gguf_file": file.name,
        "config": config,
        "dtype": torch.float32 if device.type == "cpu" else config.dtype or torch.float32,
    }


@contextmanager
def reading_once() -> Iterator[None]:
    """from_pretrained reads the same from a GGUF file in a third of the time.

    transformers builds the table of tensor names again for every module of the model, and gguf makes a memory map of
    each string in the vocabulary.
    """
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):  # type: ignore[misc, unused-ignore]  # untyped in some versions
        """The library's reader, with views of one array instead of memory maps."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    table, reader = gguf.get_tensor_name_map, gguf.GGUFReader
    gguf.get_tensor_name_map, gguf.GGUFReader = functools.cache(table), Reader
    try:
        yield
    finally:
        gguf.get_tensor_name_map, gguf.GGUFReader = table, reader


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
