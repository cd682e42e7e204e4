"""Rows of a data file before validation, and rows that could not be read, with their places."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """The unit in which places in a file are counted, from 1."""

    LINE = "line"
    ROW = "row"


@dataclass(frozen=True)
class Place:
    """A place in a data file; `number` None means the whole file."""

    file: str
    unit: Unit = Unit.LINE
    number: int | None = None

    def __str__(self) -> str:
        return self.file if self.number is None else f"{self.file} {self.unit} {self.number}"


@dataclass(frozen=True)
class RawRow:
    """One row as read from the file. Only a mapping from field names to values can become an example."""

    place: Place
    value: object
    columns: Sequence[str] | None = None
    """Names of all fields, if `value` has only some of them."""

    @property
    def fields(self) -> Sequence[str]:
        """Names of the row's fields."""
        if self.columns is not None:
            return self.columns
        return tuple(self.value) if isinstance(self.value, Mapping) else ()

    @property
    def filled(self) -> Iterator[str]:
        """Names of the row's fields that have a value; those that were not read may have one."""
        values = self.value if isinstance(self.value, Mapping) else {}
        return (name for name in self.fields if name not in values or values[name] not in (None, "", []))


@dataclass(frozen=True)
class BadRow:
    """An invalid row or file, and the reason."""

    place: Place
    reason: str


# A longer row means a broken file: 16 MiB of text are about 4 million tokens.
MAX_ROW_BYTES = 16 * 2**20

_OTHER_KINDS = (
    (b"\x1f\x8b", "is compressed by gzip; unpack it"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it"),
    (b"BZh", "is compressed by bzip2; unpack it"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it"),
    (b"PK\x03\x04", "is a ZIP archive or a spreadsheet; unpack it, or save the sheet as CSV"),
    (b"PAR1", "is Parquet; rename it to .parquet"),
    (b"ARROW1", "is Arrow; rename it to .arrow"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the data; run git lfs pull"),
)
_OTHER_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def foreign_content(head: bytes) -> str | None:
    """The reason why a file is not text in UTF-8, by its first 32 bytes or more; None if they do not tell."""
    for mark, encoding in _OTHER_ENCODINGS:
        if head.startswith(mark):
            return f"the file is encoded as {encoding}; save it as UTF-8"
    return next((f"the file {what}" for mark, what in _OTHER_KINDS if head.startswith(mark)), None)


def not_utf8(byte: int, position: str) -> str:
    """Reason for text that is not UTF-8."""
    return f"invalid UTF-8: byte 0x{byte:02X} {position}; save the file as UTF-8"
