"""Encodes rows unchanged as safetensors: merged models, and tensors that a format does not quantize."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgetune_jobs.models.weights import SAFETENSORS_DTYPES, StoredTensor
from edgetune_jobs.tensors.safetensors_plan import PlannedTensor, TensorGroup
from edgetune_jobs.tensors.safetensors_writer import SafetensorsWriter

if TYPE_CHECKING:
    import torch


def plan_stored(tensors: Sequence[StoredTensor], dtype: str) -> tuple[TensorGroup, ...]:
    """One group per tensor, all in one dtype, given by torch's name."""
    return tuple(TensorGroup(PlannedTensor(tensor.name, SAFETENSORS_DTYPES[dtype], tensor.shape)) for tensor in tensors)


class StoredEncoder:
    """Writes rows unchanged."""

    def __init__(self, writer: SafetensorsWriter) -> None:
        self._writer = writer

    def row_multiple(self, tensor: StoredTensor) -> int:  # noqa: ARG002 - rows are independent
        return 1

    def encode(self, tensor: StoredTensor, first: int, rows: "torch.Tensor") -> "torch.Tensor":  # noqa: ARG002
        return rows

    def write(self, tensor: StoredTensor, first: int, encoded: "torch.Tensor") -> None:  # noqa: ARG002 - in order
        self._writer.write(bytes_of(encoded))


def bytes_of(tensor: "torch.Tensor") -> memoryview:
    """The memory of a contiguous tensor."""
    import torch

    return memoryview(tensor.view(-1).view(torch.uint8).numpy())
