"""Rows of a data file before validation, and rows that could not be read, with their places."""

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class BadRow:
    """An invalid row or file, and the reason."""

    place: Place
    reason: str


# A longer row means a broken file: 16 MiB of text are about 4 million tokens.
MAX_ROW_BYTES = 16 * 2**20

_OTHER_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def foreign_encoding(head: bytes) -> str | None:
    """The encoding of the byte order mark at the head of a file, if it is not UTF-8."""
    return next((name for mark, name in _OTHER_ENCODINGS if head.startswith(mark)), None)


def wrong_encoding(encoding: str) -> str:
    """Reason for a file in another encoding."""
    return f"the file is encoded as {encoding}; save it as UTF-8"


def not_utf8(byte: int, position: str) -> str:
    """Reason for text that is not UTF-8."""
    return f"invalid UTF-8: byte 0x{byte:02X} {position}; save the file as UTF-8"
