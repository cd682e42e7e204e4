"""Encodes a model's rows as one GGUF file."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from edgetune_jobs.errors import HOW_TO_TRAIN_SMALLER_WEIGHTS, InvalidInput
from edgetune_jobs.models.weights import StoredTensor
from edgetune_jobs.stage import NewFiles, OutputFile
from edgetune_jobs.tensors.formats.gguf.layout import GgufLayout, GgufTensor, extra_tensors
from edgetune_jobs.tensors.formats.gguf.vocabulary import GgufVocabulary

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 32


class GgufEncoder:
    """Writes one GGUF file. It is a context manager; an incomplete file is discarded at the exit."""

    def __init__(self, layout: GgufLayout, header: bytes, outputs: NewFiles, path: str) -> None:
        """
        Args:
            layout: of the model.
            header: the first bytes of the file, from `make_header`.
            outputs: creates the file.
            path: path of the file in `outputs`.
        """
        self._layout = layout
        self._header = header
        self._outputs = outputs
        self._path = path
        self._open = ExitStack()
        self._file: OutputFile | None = None

    @property
    def total_bytes(self) -> int:
        """Size of the file in bytes."""
        return len(self._header) + sum(_padded(tensor.bytes) for tensor in _file_order(self._layout))

    def __enter__(self) -> Self:
        self._file = self._open.enter_context(self._outputs.create(self._path, self.total_bytes))
        self._file.write(self._header)
        for tensor, values in extra_tensors(self._layout):
            self._write(tensor, values, is_last=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def row_multiple(self, tensor: StoredTensor) -> int:
        """The rows of a head if llama.cpp has them in another order, otherwise 1."""
        return max(1, self._layout.tensors[tensor.name].head_rows)

    def encode(self, tensor: StoredTensor, first: int, rows: "torch.Tensor") -> "torch.Tensor":
        """The rows in the dtype and order of the file.

        Raises:
            InvalidInput: a value is not finite, or too large.
        """
        encoded = self._layout.tensors[tensor.name].encode(rows)
        if encoded is None:
            raise InvalidInput(
                f"{tensor.name} has a value in rows {first} to {first + len(rows) - 1} that is not finite or too large "
                f"for {self._layout.dtype}; {HOW_TO_TRAIN_SMALLER_WEIGHTS}"
            )
        return encoded

    def write(self, tensor: StoredTensor, first: int, encoded: "torch.Tensor") -> None:
        """Write the output of `encode`."""
        is_last = first + len(encoded) == tensor.rows
        self._write(self._layout.tensors[tensor.name], encoded, is_last=is_last)

    def _write(self, tensor: GgufTensor, values: "torch.Tensor", *, is_last: bool) -> None:
        if self._file is None:
            raise RuntimeError("no file is open")
        self._file.write(memoryview(values.numpy()).cast("B"))
        if is_last:
            self._file.write(bytes(_padded(tensor.bytes) - tensor.bytes))


def make_header(layout: GgufLayout, vocabulary: GgufVocabulary, name: str, scratch: Path) -> bytes:
    """The bytes of the file before its first tensor.

    Args:
        layout: of the model.
        vocabulary: of its tokenizer.
        name: display name of the model.
        scratch: folder for a small temporary file.
    """
    import numpy
    from gguf import GGMLQuantizationType, GGUFWriter

    path = scratch / "header.gguf"
    writer = GGUFWriter(path, layout.architecture)
    layout.add_to(writer)
    vocabulary.add_to(writer, name)
    for tensor in _file_order(layout):
        kind = GGMLQuantizationType[tensor.dtype]
        writer.add_tensor_info(tensor.name, tensor.shape, numpy.dtype("float32"), tensor.bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = path.read_bytes()
    path.unlink()
    return header + bytes(_padded(len(header)) - len(header))


def tensor_offsets(layout: GgufLayout, header_bytes: int) -> Mapping[str, int]:
    """Where each tensor begins in the file, by its name there."""
    tensors = _file_order(layout)
    ends = accumulate((_padded(tensor.bytes) for tensor in tensors), initial=header_bytes)
    return {tensor.name: start for tensor, start in zip(tensors, ends, strict=False)}


def _file_order(layout: GgufLayout) -> Sequence[GgufTensor]:
    return [*(tensor for tensor, _ in extra_tensors(layout)), *layout.tensors.values()]


def _padded(size: int) -> int:
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
