"""Reads rows of stored tensors as torch tensors."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgetune_jobs.errors import TransientError
from edgetune_jobs.models.folder import ModelFolder
from edgetune_jobs.models.weights import TORCH_DTYPES, StoredTensor, fill
from edgetune_jobs.store.files import CHUNK_BYTES

if TYPE_CHECKING:
    import torch


class Buffers:
    """Reusable memory for rows: allocating new memory takes as long as reading into it."""

    def __init__(self, least: int) -> None:
        """
        Args:
            least: size of the smallest buffers in bytes; smaller requests use these.
        """
        self._least = least
        self._lock = threading.Lock()
        self._free: defaultdict[int, list[torch.Tensor]] = defaultdict(list)
        self._taken: dict[int, torch.Tensor] = {}

    def take(self, size: int) -> "torch.Tensor":
        """uint8 [size], in a returned buffer or a new one."""
        import torch

        capacity = max(size, self._least)
        with self._lock:
            free = self._free[capacity]
            buffer = free.pop() if free else torch.empty(capacity, dtype=torch.uint8)
            self._taken[buffer.data_ptr()] = buffer
        return buffer[:size]

    def give_back(self, rows: "torch.Tensor") -> None:
        """Return the buffer that starts with `rows` for reuse; rows in other memory are ignored."""
        with self._lock:
            buffer = self._taken.pop(rows.data_ptr(), None)
            if buffer is not None:
                self._free[buffer.numel()].append(buffer)


def read_rows(
    folder: ModelFolder, tensor: StoredTensor, first: int, count: int, buffers: Buffers | None = None
) -> "torch.Tensor":
    """Rows of a tensor in their stored dtype: [count, …], in one of the buffers or in new memory.

    Raises:
        InvalidInput: the file has changed since its header was read.
        TransientError: the file ended early.
    """
    import torch

    size = count * tensor.row_bytes
    data = buffers.take(size) if buffers else torch.empty(size, dtype=torch.uint8)
    _fill(folder, tensor, first * tensor.row_bytes, memoryview(data.numpy()))
    return data.view(getattr(torch, TORCH_DTYPES[tensor.dtype])).reshape(count, *tensor.shape[1:])


def pieces(folder: ModelFolder, tensor: StoredTensor) -> Iterator[bytearray]:
    """The bytes of a tensor, in pieces of a few megabytes.

    Raises:
        InvalidInput: the file has changed since its header was read.
        TransientError: the file ended early.
    """
    for start in range(0, tensor.bytes, CHUNK_BYTES):
        piece = bytearray(min(CHUNK_BYTES, tensor.bytes - start))
        _fill(folder, tensor, start, memoryview(piece))
        yield piece


def _fill(folder: ModelFolder, tensor: StoredTensor, start: int, buffer: memoryview) -> None:
    """Read bytes of a tensor, from offset `start` relative to its first byte."""
    begin = tensor.begin + start
    filled = fill(folder, tensor.file, begin, buffer)
    if filled < len(buffer):
        raise TransientError(
            f"{folder.label}: {tensor.file} ended at byte {begin + filled:,}, but its header describes more; try again"
        )
