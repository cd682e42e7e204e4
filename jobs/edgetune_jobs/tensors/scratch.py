"""Memory for intermediate results, kept by each thread: allocated again for each step, it would fragment."""

import math
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# So few that intermediate results in float32 fit the cache, so many that Python between the steps costs little.
_CACHED_NUMBERS = 2**19


class _Kept(threading.local):
    def __init__(self) -> None:
        self.tensors: dict[tuple[str, torch.dtype], torch.Tensor] = {}


_kept = _Kept()


def scratch(use: str, shape: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor":
    """A tensor with any content, which is the thread's own until it asks for the same use again."""
    import torch

    numbers = math.prod(shape)
    tensor = _kept.tensors.get((use, dtype))
    if tensor is None or tensor.numel() < numbers:
        tensor = _kept.tensors[use, dtype] = torch.empty(numbers, dtype=dtype)
    return tensor[:numbers].view(shape)


def cached_rows(rows: "torch.Tensor") -> Iterator[slice]:
    """Slices of the first dimension, so small that intermediate results in float32 fit the cache."""
    count = len(rows)
    step = max(1, _CACHED_NUMBERS * count // max(1, rows.numel()))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
