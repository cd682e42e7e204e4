"""Scratch memory for intermediate results, reused by each thread to avoid fragmentation."""

import math
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Few enough for intermediate float32 results to fit into the CPU cache, enough to make Python's overhead small.
_CACHED_NUMBERS = 2**19


class _Kept(threading.local):
    def __init__(self) -> None:
        self.tensors: dict[tuple[str, torch.dtype], torch.Tensor] = {}


_kept = _Kept()


def scratch(use: str, shape: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor":
    """An uninitialized tensor that the thread may use until its next call with the same `use` and dtype."""
    import torch

    numbers = math.prod(shape)
    tensor = _kept.tensors.get((use, dtype))
    if tensor is None or tensor.numel() < numbers:
        tensor = _kept.tensors[use, dtype] = torch.empty(numbers, dtype=dtype)
    return tensor[:numbers].view(shape)


def cached_rows(rows: "torch.Tensor") -> Iterator[slice]:
    """Slices of the first dimension, small enough for intermediate float32 results to fit into the CPU cache."""
    count = len(rows)
    step = max(1, _CACHED_NUMBERS * count // max(1, rows.numel()))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
