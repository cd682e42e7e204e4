"""Rows of stored tensors as torch tensors."""

from typing import TYPE_CHECKING

from edgetune_jobs.errors import TransientFault
from edgetune_jobs.model_weights import ModelFolder, StoredTensor

if TYPE_CHECKING:
    import torch

# Number formats that weights come in.
TORCH_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
SAFETENSORS_DTYPES = {name: short for short, name in TORCH_DTYPES.items()}


def read_rows(folder: ModelFolder, tensor: StoredTensor, first: int, count: int) -> "torch.Tensor":
    """Rows of a tensor as they are stored: [count, …], in memory of their own.

    Raises:
        InvalidInput: the file was changed since its header was read.
        TransientFault: the file ends before its header says so.
    """
    import torch

    data = torch.empty(count * tensor.row_bytes, dtype=torch.uint8)
    _fill(folder, tensor.file, tensor.begin + first * tensor.row_bytes, memoryview(data.numpy()))
    return data.view(getattr(torch, TORCH_DTYPES[tensor.dtype])).reshape(count, *tensor.shape[1:])


def _fill(folder: ModelFolder, file: str, start: int, buffer: memoryview) -> None:
    """Read a whole range; one that arrives cut short is continued."""
    filled = 0
    while filled < len(buffer):
        arrived = folder.read_into(file, start + filled, buffer[filled:])
        if not arrived:
            raise TransientFault(
                f"{folder.label}: {file} ends at byte {start + filled:,}, though its header says that there is more; "
                "try again"
            )
        filled += arrived
