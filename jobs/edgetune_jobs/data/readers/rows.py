"""What a data file holds before anyone has judged it: rows with their place, and what could not be read as a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """How places in a file are counted, from 1."""

    LINE = "line"
    ROW = "row"


@dataclass(frozen=True)
class Place:
    """Where something stands in a data file; number None means the file as a whole."""

    file: str
    unit: Unit = Unit.LINE
    number: int | None = None

    def __str__(self) -> str:
        return self.file if self.number is None else f"{self.file} {self.unit} {self.number}"


@dataclass(frozen=True)
class RawRow:
    """One row as the file gives it: any value, of which only a mapping from field names to values is of use."""

    place: Place
    value: object
    columns: Sequence[str] | None = None
    """Names of all fields, where `value` holds only some of them."""

    @property
    def fields(self) -> Sequence[str]:
        """Names of the row's fields."""
        if self.columns is not None:
            return self.columns
        return tuple(self.value) if isinstance(self.value, Mapping) else ()


@dataclass(frozen=True)
class BadRow:
    """A row, or a whole file, that cannot be used, and why."""

    place: Place
    reason: str


# A row beyond this is a broken file: 16 MiB of text are some 4 million tokens.
MAX_ROW_BYTES = 16 * 2**20

_OTHER_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def foreign_encoding(head: bytes) -> str | None:
    """Encoding that the byte order mark at the head of a file names, if it is not UTF-8."""
    return next((name for mark, name in _OTHER_ENCODINGS if head.startswith(mark)), None)


def not_utf8(byte: int, position: str) -> str:
    """Reason for text that is not UTF-8."""
    return f"is not UTF-8: byte 0x{byte:02X} {position}; save the file as UTF-8"
