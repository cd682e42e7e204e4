"""An adapter in GGUF: which base it fits, and its weights for transformers, which reads GGUF without adapters."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.quantization.gguf_loading import ADAPTER_FILE, BASE_FILE, find_adapter
from edgetune_jobs.store.store import DamagedObject

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BASE_SHA256 = "edgetune.base.sha256"
"""Metadata of an adapter: SHA-256 of the base's GGUF file."""

HEAD_BYTES = 4096
"""Bytes of an adapter's file that have this metadata."""

_SUFFIXES = (".lora_a", ".lora_b")
# Architectures of llama.cpp in which the two halves of each head's rows are interleaved, and the layers that have it.
_INTERLEAVED = ("llama",)
_ROTATED = ("q_proj", "k_proj")


def wrong_base(head: bytes, files: Sequence[FileEntry]) -> str:
    """Why an adapter does not fit the base in the same list of files; empty if it does.

    Args:
        head: the first HEAD_BYTES of the adapter's file.
        files: of the artifact.
    """
    base = next((entry.sha256 for entry in files if entry.path == BASE_FILE), None)
    if base is None:
        return f"{ADAPTER_FILE} has no {BASE_FILE} beside it"
    key = struct.pack("<Q", len(BASE_SHA256)) + BASE_SHA256.encode()
    value = head[:HEAD_BYTES].partition(key)[2]  # type and length of the text, then the text
    found = value[12 : 12 + len(base)].decode(errors="replace")
    if found == base:
        return ""
    return f"{ADAPTER_FILE} is for another base, with SHA-256 {found or 'unknown'}: {BASE_FILE} has {base}"


def check_base(folder: Path, files: Sequence[FileEntry]) -> None:
    """Check that the adapter in a folder, if there is one, is for the base beside it.

    Args:
        folder: of the artifact; its files have been verified.
        files: the artifact's list of files.

    Raises:
        DamagedObject: it is for another base.
    """
    adapter = find_adapter(folder)
    if adapter is None:
        return
    with adapter.open("rb") as file:
        problem = wrong_base(file.read(HEAD_BYTES), files)
    if problem:
        raise DamagedObject(problem)


def add_adapter(model: "PreTrainedModel", file: Path) -> None:
    """Add an adapter to the weights of a model that was read from the GGUF file of its base.

    Raises:
        InvalidInput: the adapter changes a layer that the model does not have.
    """
    import gguf
    import torch

    reader = gguf.GGUFReader(file)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    matrices = {tensor.name: torch.tensor(tensor.data, dtype=torch.float32) for tensor in reader.tensors}
    by_name = {name: member for member, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[architecture], model.config.num_hidden_layers)
    head = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    with torch.no_grad():
        for layer, module in model.named_modules():
            name = names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
            first, second = (matrices.pop(f"{name}{suffix}", None) for suffix in _SUFFIXES)
            if first is None or second is None:
                continue
            if architecture in _INTERLEAVED and layer.endswith(_ROTATED):
                second = _as_halves(second, head)
            update = (alpha / len(first)) * (second @ first)
            module.weight += update.to(module.weight)
    if matrices:
        raise InvalidInput(f"{file.name} changes {min(matrices)}, which the model of its base does not have")


def _as_halves(rows: "torch.Tensor", head: int) -> "torch.Tensor":
    """Rows [rows, …] in the order of transformers, which has both halves of each head one after the other."""
    pairs = rows.reshape(-1, head // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
