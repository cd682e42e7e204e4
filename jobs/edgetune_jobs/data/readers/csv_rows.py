"""Reads rows of .csv files: a header with the field names, commas, double quotes, UTF-8."""

import csv
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Self, TextIO

from edgetune_jobs.data.readers.rows import (
    MAX_ROW_BYTES,
    BadRow,
    Place,
    RawRow,
    Unit,
    foreign_content,
    not_utf8,
)
from edgetune_jobs.store.strict_json import InvalidJson, parse_json
from edgetune_jobs.wording import count

# surrogateescape decodes an invalid byte to the surrogate at this offset: rows after an invalid cell can be read.
_ESCAPED_BYTE = 0xDC00


class _RecordTooLong(Exception):
    """A record is longer than the maximum of a row."""


def read_csv(path: Path, name: str, list_fields: Collection[str]) -> Iterator[RawRow | BadRow]:
    """Rows keyed by the header's names. Empty cells are None; a row's place is its first line.

    Args:
        path: the file.
        name: its name in messages.
        list_fields: fields whose cells may contain a JSON list.
    """
    with path.open("rb") as file:
        if reason := foreign_content(file.read(32)):
            yield BadRow(Place(name), reason)
            return
    csv.field_size_limit(MAX_ROW_BYTES)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        records = _records(text, name)
        header = next(records, None)
        if header is None:
            return
        if isinstance(header, BadRow):
            yield header
            return
        place, columns = header
        if reason := _check_header(columns):
            yield BadRow(place, reason)
            return
        for record in records:
            yield record if isinstance(record, BadRow) else _to_row(*record, columns, list_fields)


def _records(text: TextIO, name: str) -> Iterator[tuple[Place, list[str]] | BadRow]:
    """The cells of each record with its first line; empty lines are skipped."""
    lines = _RecordLines(text)
    reader = csv.reader(lines, strict=True)
    while True:
        place = Place(name, Unit.LINE, reader.line_num + 1)
        lines.begin_record()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield BadRow(place, f"invalid CSV: {error}")
            continue
        except _RecordTooLong:
            reason = f"longer than {MAX_ROW_BYTES:,} bytes; the lines after it were not read; is a quote not closed?"
            yield BadRow(place, reason)
            return
        if cells is None:
            return
        if cells:
            yield place, cells


class _RecordLines:
    """The lines of a file; a record, which may have many lines, is bounded."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._left = MAX_ROW_BYTES

    def begin_record(self) -> None:
        """The next line begins a record."""
        self._left = MAX_ROW_BYTES

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise _RecordTooLong
        if not line:
            raise StopIteration
        return line


def _check_header(columns: list[str]) -> str | None:
    """Why a header is invalid; None if it is valid."""
    if byte := _byte_not_utf8(columns):
        return not_utf8(byte, "in the header")
    if len(columns) == 1 and (separator := next((mark for mark in ";\t|" if mark in columns[0]), None)):
        return f"the header {columns[0]!r} has {separator!r} and no commas; separate cells by commas"
    if len(set(columns)) != len(columns):
        duplicate = Counter(columns).most_common(1)[0][0]
        return f"duplicate field {duplicate[:64]!r} in the header"
    return None


def _to_row(place: Place, cells: list[str], columns: list[str], list_fields: Collection[str]) -> RawRow | BadRow:
    if byte := _byte_not_utf8(cells):
        return BadRow(place, not_utf8(byte, "in this row"))
    if len(cells) != len(columns):
        return BadRow(place, f"the row has {count(len(cells), 'cell')}, but the header has {len(columns)}")
    row: dict[str, object] = {}
    for column, cell in zip(columns, cells, strict=True):
        row[column] = cell or None
        if column in list_fields and cell.lstrip().startswith("["):
            try:
                row[column] = parse_json(cell)
            except InvalidJson as error:
                return BadRow(place, f"{column!r} starts with '[', but is {error.reason}")
    return RawRow(place, row)


def _byte_not_utf8(cells: list[str]) -> int | None:
    """First byte of these cells that is not valid UTF-8."""
    try:
        for cell in cells:
            cell.encode()
    except UnicodeEncodeError as error:
        return ord(error.object[error.start]) - _ESCAPED_BYTE
    return None
