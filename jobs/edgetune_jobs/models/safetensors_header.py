"""Headers of safetensors files, read and checked without touching the tensors.

A file is: 8 bytes, the header's length N as a little-endian unsigned integer; N bytes of JSON, which begin with {; then
the tensors' bytes. The JSON maps each tensor's name to dtype, shape and data_offsets [begin, end) within those bytes,
which the tensors fill without gap or overlap.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.store.strict_json import BrokenJson, parse_json

# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000
LENGTH_BYTES = 8
METADATA = "__metadata__"
# More than torch allows. The product of so many sizes stays a number that can be computed and printed.
_MOST_DIMENSIONS = 64
_FIELDS = {"dtype", "shape", "data_offsets"}

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

ReadRange = Callable[[int, int], bytes]
"""Up to `length` bytes from `start` on: (start, length) -> bytes."""


@dataclass(frozen=True)
class Tensor:
    """One tensor as the header describes it."""

    dtype: str
    """Name in DTYPE_BITS."""

    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the end of the header."""

    end: int
    """One after the last byte."""

    @property
    def numbers(self) -> int:
        """How many numbers it holds; 1 for a scalar."""
        return math.prod(self.shape)


def read_header(read_range: ReadRange, file_bytes: int, file: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name.

    Args:
        read_range: reads from the file.
        file_bytes: the file's size.
        file: what messages call it.

    Raises:
        InvalidInput: the header is broken, or does not fit the file.
    """
    prefix = read_range(0, LENGTH_BYTES)
    if file_bytes < LENGTH_BYTES or len(prefix) < LENGTH_BYTES:
        raise _broken(file, f"the file has {min(file_bytes, len(prefix))} bytes, too few for a header")
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
        raise _broken(
            file,
            f"the header claims {length:,} bytes, but the file has {file_bytes:,} and a header may have "
            f"{MAX_HEADER_BYTES:,}",
        )
    header = read_range(LENGTH_BYTES, length)
    if len(header) < length:
        raise _broken(file, f"the file ends within its header, after {len(header):,} of {length:,} bytes")
    return parse_header(header, file_bytes - LENGTH_BYTES - length, file)


def parse_header(header: bytes, data_bytes: int, file: str) -> dict[str, Tensor]:
    """Tensors by name.

    Args:
        header: the JSON.
        data_bytes: bytes of the file after the header.
        file: what messages call it.

    Raises:
        InvalidInput: the header is broken, or does not describe just these bytes.
    """
    if not header.startswith(b"{"):
        raise _broken(file, "the header does not begin with {")
    try:
        entries = parse_json(header.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _broken(file, "the header is not UTF-8") from error
    except BrokenJson as error:
        raise _broken(file, f"the header is {error.reason}") from error
    _check_metadata(file, entries.pop(METADATA, {}))
    tensors = {name: _tensor(file, name, entry) for name, entry in entries.items()}
    _check_coverage(file, tensors, data_bytes)
    return tensors


def _check_metadata(file: str, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(file, f"{METADATA} is not a map of texts")


def _tensor(file: str, name: str, entry: Any) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise _broken(file, f"{_shown(name)} does not have just dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _broken(file, f"{_shown(name)} has the unknown dtype {str(dtype)[:32]!r}")
    if not _are_sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        raise _broken(file, f"{_shown(name)} has a shape that is no list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(file, f"{_shown(name)} has data_offsets that are no range of bytes")
    tensor = Tensor(dtype, tuple(shape), *offsets)
    bits = tensor.numbers * DTYPE_BITS[dtype]
    if bits != 8 * (tensor.end - tensor.begin):
        raise _broken(
            file,
            f"{_shown(name)} has {tensor.end - tensor.begin:,} bytes, but its shape {_sizes(shape)} in {dtype} takes "
            f"{bits // 8:,}",
        )
    return tensor


def _check_coverage(file: str, tensors: Mapping[str, Tensor], data_bytes: int) -> None:
    """Check that the tensors fill the bytes after the header: no overlap, no gap, nothing beyond, nothing left."""
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin < position:
            raise _broken(file, f"{_shown(name)} overlaps another tensor")
        if tensor.begin > position:
            raise _broken(file, f"{tensor.begin - position:,} bytes before {_shown(name)} belong to no tensor")
        if tensor.end > data_bytes:
            raise _broken(
                file,
                f"{_shown(name)} ends at byte {tensor.end:,}, but the file has only {data_bytes:,} bytes of tensors: "
                "was it cut short?",
            )
        position = tensor.end
    if position != data_bytes:
        raise _broken(file, f"{data_bytes - position:,} bytes at the end belong to no tensor")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _sizes(shape: list[int]) -> str:
    return "[" + ", ".join(str(size) for size in shape[:8]) + (", …]" if len(shape) > 8 else "]")


def _shown(name: str) -> str:
    return f"tensor {name if len(name) <= 128 else name[:128] + '…'!r}"


def _broken(file: str, what: str) -> InvalidInput:
    return InvalidInput(f"{file} is not a sound safetensors file: {what}; save or copy the model again")
