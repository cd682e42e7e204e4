"""Reads and validates headers of safetensors files, without reading the tensors.

A file has 8 bytes with the header's length N as a little-endian unsigned integer, N bytes of JSON that start with {,
and the tensors' bytes. The JSON maps each tensor's name to dtype, shape and data_offsets [begin, end) relative to the
end of the header. The tensors fill the rest of the file without gap or overlap.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.store.strict_json import InvalidJson, parse_json
from edgetune_jobs.wording import count

# A quarter of what the safetensors library allows: 200,000 tensors in one file. JSON of this size can become 600 MB.
MAX_HEADER_BYTES = 25_000_000
LENGTH_BYTES = 8
METADATA = "__metadata__"
# More than torch allows, and few enough that the product of the sizes can be computed and printed.
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
"""(start, length) -> up to `length` bytes from offset `start`."""


@dataclass(frozen=True)
class Tensor:
    """One tensor as described by the header."""

    dtype: str
    """Name in DTYPE_BITS."""

    shape: tuple[int, ...]
    begin: int
    """Offset of the first byte from the end of the header."""

    end: int
    """Offset after the last byte."""

    @property
    def numbers(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


def read_header(read_range: ReadRange, file_bytes: int, file: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name.

    Args:
        read_range: reads from the file.
        file_bytes: size of the file.
        file: its name in messages.

    Raises:
        InvalidInput: the header is invalid, or does not match the size of the file.
    """
    prefix = read_range(0, LENGTH_BYTES)
    if file_bytes < LENGTH_BYTES or len(prefix) < LENGTH_BYTES:
        raise _invalid(file, f"the file has {min(file_bytes, len(prefix))} bytes, too few for a header")
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
        raise _invalid(
            file,
            f"the header length is {length:,} bytes, but the file has {file_bytes:,} bytes and the limit is "
            f"{MAX_HEADER_BYTES:,}",
        )
    header = read_range(LENGTH_BYTES, length)
    if len(header) < length:
        raise _invalid(file, f"the file ends in its header, after {len(header):,} of {length:,} bytes")
    return parse_header(header, file_bytes - LENGTH_BYTES - length, file)


def parse_header(header: bytes, data_bytes: int, file: str) -> dict[str, Tensor]:
    """Tensors by name.

    Args:
        header: the JSON.
        data_bytes: number of bytes in the file after the header.
        file: its name in messages.

    Raises:
        InvalidInput: the header is invalid, or its tensors do not fill exactly these bytes.
    """
    if not header.startswith(b"{"):
        raise _invalid(file, "the header does not start with {")
    try:
        entries = parse_json(header.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _invalid(file, "the header is not valid UTF-8") from error
    except InvalidJson as error:
        raise _invalid(file, f"the header is {error.reason}") from error
    _check_metadata(file, entries.pop(METADATA, {}))
    tensors = {name: _tensor(file, name, entry) for name, entry in entries.items()}
    _check_coverage(file, tensors, data_bytes)
    return tensors


def _check_metadata(file: str, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid(file, f"{METADATA} is not a map of strings")


def _tensor(file: str, name: str, entry: Any) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise _invalid(file, f"{_shown(name)} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _invalid(file, f"{_shown(name)} has the unknown dtype {str(dtype)[:32]!r}")
    if not _are_sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        raise _invalid(file, f"{_shown(name)} has an invalid shape")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _invalid(file, f"{_shown(name)} has invalid data_offsets")
    tensor = Tensor(dtype, tuple(shape), *offsets)
    bits = tensor.numbers * DTYPE_BITS[dtype]
    if bits != 8 * (tensor.end - tensor.begin):
        raise _invalid(
            file,
            f"{_shown(name)} has {tensor.end - tensor.begin:,} bytes, but shape {_sizes(shape)} in {dtype} requires "
            f"{bits // 8:,}",
        )
    return tensor


def _check_coverage(file: str, tensors: Mapping[str, Tensor], data_bytes: int) -> None:
    """Check that the tensors fill the bytes after the header exactly, without gap or overlap."""
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin < position:
            raise _invalid(file, f"{_shown(name)} overlaps another tensor")
        if tensor.begin > position:
            raise _invalid(file, f"no tensor covers {count(tensor.begin - position, 'byte')} before {_shown(name)}")
        if tensor.end > data_bytes:
            raise _invalid(
                file,
                f"{_shown(name)} ends at byte {tensor.end:,}, but the file has only {data_bytes:,} bytes of tensors "
                "and may be truncated",
            )
        position = tensor.end
    if position != data_bytes:
        raise _invalid(file, f"no tensor covers {count(data_bytes - position, 'byte')} at the end")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _sizes(shape: list[int]) -> str:
    return "[" + ", ".join(str(size) for size in shape[:8]) + (", …]" if len(shape) > 8 else "]")


def _shown(name: str) -> str:
    return f"tensor {name if len(name) <= 128 else name[:128] + '…'!r}"


def _invalid(file: str, reason: str) -> InvalidInput:
    return InvalidInput(f"{file} is not a valid safetensors file: {reason}; save or copy the model again")
