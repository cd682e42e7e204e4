"""Memory for intermediate results, kept by each thread: allocated anew for each step, it would lie in fragments."""

import math
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
