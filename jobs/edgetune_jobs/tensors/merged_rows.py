"""Rows of a model's weights, as stored or merged with an adapter bitwise as by peft's merge_and_unload."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.folder import ModelFolder
from edgetune_jobs.models.weights import StoredTensor
from edgetune_jobs.tensors import nf4
from edgetune_jobs.tensors.row_reader import Buffers, read_rows
from edgetune_jobs.tensors.scratch_memory import cached_rows, scratch

if TYPE_CHECKING:
    import torch

PIECE_BYTES = 4 * 2**20
"""Size of a piece as stored, unless a single row is longer."""


@dataclass(frozen=True)
class LoraMatrices:
    """The update of one weight by an adapter: scale · B · A."""

    first: "torch.Tensor"
    """A: float32 [rank, inputs]."""

    second: "torch.Tensor"
    """B: float32 [outputs, rank]."""

    scale: float


@dataclass(frozen=True)
class _Nf4Weight:
    """A whole weight before NF4 quantization, and its block scales."""

    weight: "torch.Tensor"
    """[outputs, inputs] in the dtype of the model."""

    scales: "torch.Tensor"
    """Block scales before double quantization: float32 [blocks]."""

    rounded: "torch.Tensor"
    """Block scales after double quantization: float32 [blocks]."""


@dataclass(frozen=True)
class ModelWeights:
    """The tensors of a model, converted to one dtype. Thread-safe."""

    folder: ModelFolder
    tensors: Sequence[StoredTensor]
    dtype: str
    """torch's name of the dtype to which all tensors are converted first."""

    through_nf4: frozenset[str] = frozenset()
    """Weights that are quantized to NF4 and dequantized; their row length is a multiple of 64."""

    adapter: Mapping[str, LoraMatrices] = field(default_factory=dict)
    """Updates by the name of the weight."""

    threads: int = 1
    """Number of torch threads that the library would use: see nf4.round_scales."""

    _changed: set[str] = field(init=False, default_factory=set)
    """Weights with an adapter that merging has changed so far."""

    _pieces: Buffers = field(init=False, default_factory=lambda: Buffers(PIECE_BYTES))
    _whole: Buffers = field(init=False)

    def __post_init__(self) -> None:
        largest = max(map(self.held_bytes, self.tensors), default=0)
        object.__setattr__(self, "_whole", Buffers(largest))  # a few buffers of the largest size fit all weights

    def held_bytes(self, tensor: StoredTensor) -> int:
        return tensor.bytes if tensor.name in self.through_nf4 else 0

    def prepare(self, tensor: StoredTensor) -> _Nf4Weight:
        """Read a whole weight that goes through NF4, because double quantization needs all of its block scales."""
        import torch

        weight = self._read(tensor, 0, tensor.rows, self._whole)
        parts = [nf4.block_scales(weight[rows].view(-1)) for rows in cached_rows(weight)]
        scales = torch.cat(parts) if parts else torch.empty(0)
        return _Nf4Weight(weight, scales, nf4.round_scales(scales, self.threads))

    def rows(self, tensor: StoredTensor, first: int, count: int, prepared: Any) -> "torch.Tensor":
        """Merged rows of a tensor: [count, …] in the dtype of the model.

        Raises:
            InvalidInput: a value is not finite.
        """
        if prepared is None:
            rows = self._read(tensor, first, count, self._pieces)
        else:
            weight = prepared.weight[first : first + count]
            rows = self._pieces.take(weight.numel() * weight.element_size()).view(weight.dtype).view_as(weight)
        lora = self.adapter.get(tensor.name)
        for part in cached_rows(rows):
            piece = rows[part]
            if prepared is not None:
                _round(prepared, first + part.start, piece)
            if lora is not None:
                before = None if tensor.name in self._changed else piece.clone()
                _add(lora, first + part.start, piece)
                if before is not None and not piece.equal(before):
                    self._changed.add(tensor.name)
            if not _is_finite(piece):
                raise self._not_finite(tensor, first + part.start, len(piece))
        return rows

    def give_back(self, rows: "torch.Tensor") -> None:
        """Return the memory of `rows` for reuse."""
        self._pieces.give_back(rows)

    def release(self, prepared: Any) -> None:
        """Return the memory of `prepare` for reuse."""
        self._whole.give_back(prepared.weight)

    @property
    def unchanged(self) -> frozenset[str]:
        """Weights with an adapter that merging did not change, after all rows were read."""
        return frozenset(self.adapter.keys() - self._changed)

    def _not_finite(self, tensor: StoredTensor, first: int, count: int) -> InvalidInput:
        """The error about merged rows with NaN or infinity: finds the cause in the stored rows."""
        import torch

        dtype = getattr(torch, self.dtype)
        stored = read_rows(self.folder, tensor, first, count)
        if not _is_finite(stored):
            return not_finite(tensor.name)
        if not _is_finite(stored.to(dtype)):
            return InvalidInput(
                f"{tensor.name} has a value of magnitude {stored.abs().max().item():g}, which exceeds the maximum of "
                f"{self.dtype} ({torch.finfo(dtype).max:g}), the dtype of the model; train with "
                "spec.training.precision BF16 or FP32, or use another base model"
            )
        return InvalidInput(
            f"cannot merge the adapter: {tensor.name} would not be finite; train again with a lower "
            "spec.training.learningRate"
        )

    def _read(self, tensor: StoredTensor, first: int, count: int, buffers: Buffers) -> "torch.Tensor":
        """Rows in the dtype of the model."""
        import torch

        stored = read_rows(self.folder, tensor, first, count, buffers)
        rows = stored.to(getattr(torch, self.dtype))
        if rows is not stored:
            buffers.give_back(stored)
        return rows


def not_finite(name: str) -> InvalidInput:
    """The error about a stored weight with NaN or infinity."""
    return InvalidInput(f"{name} contains NaN or infinity, so the model is damaged; save or copy it again")


def _round(prepared: _Nf4Weight, first: int, out: "torch.Tensor") -> None:
    rows = prepared.weight[first : first + len(out)]
    per_row = rows.shape[1] // nf4.BLOCK
    blocks = slice(first * per_row, (first + len(out)) * per_row)
    nf4.round_blocks(rows.reshape(-1), prepared.scales[blocks], prepared.rounded[blocks], out.view(-1))


def _add(lora: LoraMatrices, first: int, rows: "torch.Tensor") -> None:
    import torch

    shape = tuple(rows.shape)
    delta = scratch("delta", shape, torch.float32)
    torch.mm(lora.second[first : first + len(rows)], lora.first, out=delta).mul_(lora.scale)
    rows += scratch("rounded delta", shape, rows.dtype).copy_(delta)


def _is_finite(rows: "torch.Tensor") -> bool:
    if not rows.numel():
        return True
    low, high = (value.item() for value in rows.aminmax())
    return bool(low > float("-inf") and high < float("inf"))  # comparisons with NaN are false
