"""Encodes linear layers as INT8 with one scale per row, for bitsandbytes INT8 and W8A8."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetune_jobs.models.weights import SAFETENSORS_DTYPES, StoredTensor
from edgetune_jobs.tensors.merged_rows import PIECE_BYTES
from edgetune_jobs.tensors.row_reader import Buffers
from edgetune_jobs.tensors.safetensors_plan import PlannedTensor, TensorGroup
from edgetune_jobs.tensors.safetensors_writer import SafetensorsWriter
from edgetune_jobs.tensors.unquantized_encoder import StoredEncoder, bytes_of, plan_stored

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Int8Scheme:
    """How a format quantizes the weight of a linear layer, and the tensors that it adds."""

    quantize_rows: "Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]"
    """(name, rows [rows, inputs], out int8 [rows, inputs]) -> scales of the rows. It does not change `rows`."""

    plan_tail: Callable[[StoredTensor, str], tuple[PlannedTensor, ...]]
    """(weight, safetensors' name of the model's dtype) -> the added tensors; the scales are first."""

    constants: tuple[bytes, ...] = ()
    """Bytes of the added tensors after the scales."""


def plan_int8(
    scheme: Int8Scheme, tensors: Sequence[StoredTensor], linears: Collection[str], dtype: str
) -> tuple[TensorGroup, ...]:
    """One group per tensor.

    Args:
        scheme: of the format.
        tensors: of the model.
        linears: weights to quantize to INT8.
        dtype: dtype of all other tensors, by torch's name.
    """
    groups = []
    for tensor, stored in zip(tensors, plan_stored(tensors, dtype), strict=True):
        if tensor.name not in linears:
            groups.append(stored)
            continue
        tail = scheme.plan_tail(tensor, SAFETENSORS_DTYPES[dtype])
        groups.append(TensorGroup(PlannedTensor(tensor.name, "I8", tensor.shape), tail))
    return tuple(groups)


class Int8Encoder:
    """Writes linear layers in INT8, and all other tensors unchanged."""

    def __init__(self, scheme: Int8Scheme, writer: SafetensorsWriter, groups: Sequence[TensorGroup]) -> None:
        """
        Args:
            scheme: of the format.
            writer: writes the bytes.
            groups: the plan, from `plan_int8`.
        """
        self._scheme = scheme
        self._writer = writer
        self._tails = {group.body.name: group.tail for group in groups if group.tail}
        self._others = StoredEncoder(writer)
        self._scales = bytearray()
        self._buffers = Buffers(PIECE_BYTES // 2)

    def row_multiple(self, tensor: StoredTensor) -> int:  # noqa: ARG002 - rows are independent
        return 1

    def encode(self, tensor: StoredTensor, first: int, rows: "torch.Tensor") -> Any:
        """Weight int8 [rows, inputs] and its scales; the unchanged rows if the tensor is not quantized.

        Raises:
            InvalidInput: the format cannot represent a value.
        """
        import torch

        if tensor.name not in self._tails:
            return self._others.encode(tensor, first, rows)
        quantized = self._buffers.take(rows.numel()).view(torch.int8).view(rows.shape)
        return quantized, self._scheme.quantize_rows(tensor.name, rows, quantized)

    def write(self, tensor: StoredTensor, first: int, encoded: Any) -> None:
        if tensor.name not in self._tails:
            self._others.write(tensor, first, encoded)
            return
        weight, scales = encoded
        self._scales += bytes_of(scales)
        if first + len(weight) == tensor.rows:
            self._set_tail(self._tails[tensor.name])
        self._writer.write(bytes_of(weight))
        self._buffers.give_back(weight)

    def _set_tail(self, tail: Sequence[PlannedTensor]) -> None:
        scales, *others = tail
        self._writer.set_tail(scales.name, bytes(self._scales))
        for tensor, data in zip(others, self._scheme.constants, strict=True):
            self._writer.set_tail(tensor.name, data)
        self._scales.clear()
