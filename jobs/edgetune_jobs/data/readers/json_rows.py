"""Reads rows of .jsonl and .json files."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgetune_jobs.data.readers.rows import (
    MAX_ROW_BYTES,
    BadRow,
    Place,
    RawRow,
    Unit,
    foreign_encoding,
    not_utf8,
    wrong_encoding,
)
from edgetune_jobs.store.strict_json import InvalidJson, parse_json

# A .json file is parsed as a whole, which takes several times its size in memory.
MAX_JSON_BYTES = 2**30

_BOM = b"\xef\xbb\xbf"


def read_jsonl(path: Path, name: str, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[RawRow | BadRow]:
    """One JSON value per line; blank lines are skipped.

    Args:
        path: the file.
        name: its name in messages.
        max_row_bytes: maximum length of a line in bytes; longer lines are invalid.
    """
    with path.open("rb") as file:
        for number, line in _lines(file, max_row_bytes):
            place = Place(name, Unit.LINE, number)
            if number == 1 and line is not None and (encoding := foreign_encoding(line)):
                yield BadRow(Place(name), wrong_encoding(encoding))
                return
            row = _parse_line(place, line, max_row_bytes)
            if row is not None:
                yield row


def read_json(path: Path, name: str) -> Iterator[RawRow | BadRow]:
    """A JSON list of rows, or one row per line.

    Args:
        path: the file.
        name: its name in messages.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        yield BadRow(Place(name), f"larger than {MAX_JSON_BYTES >> 30} GiB; convert it to .jsonl, one object per line")
        return
    content = path.read_bytes().removeprefix(_BOM)
    if encoding := foreign_encoding(content):
        yield BadRow(Place(name), wrong_encoding(encoding))
        return
    if not content.strip():
        return
    if not content.lstrip().startswith(b"["):
        yield from _read_objects(path, name, content)
        return
    try:
        rows = parse_json(_decode(content))
    except InvalidJson as error:
        yield _bad_file(name, error)
        return
    for number, value in enumerate(rows, start=1):
        yield RawRow(Place(name, Unit.ROW, number), value)


def _read_objects(path: Path, name: str, content: bytes) -> Iterator[RawRow | BadRow]:
    """Rows of a .json file that is not a list: one object per line, or a single object on several lines."""
    try:
        value = parse_json(_decode(content))
    except InvalidJson as error:
        first_line = content.lstrip().split(b"\n", maxsplit=1)[0].rstrip()
        if first_line.startswith(b"{") and first_line.endswith(b"}"):
            yield from read_jsonl(path, name)
        else:
            yield _bad_file(name, error)
        return
    yield RawRow(Place(name, Unit.ROW, 1), value)


def _bad_file(name: str, error: InvalidJson) -> BadRow:
    place = Place(name) if error.line is None else Place(name, Unit.LINE, error.line)
    return BadRow(place, _with_column(error))


def _with_column(error: InvalidJson) -> str:
    return error.reason if error.column is None else f"{error.reason}, column {error.column}"


def _decode(content: bytes) -> str:
    """The text of a whole file.

    Raises:
        InvalidJson: the file is not valid UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line_start = content.rfind(b"\n", 0, error.start) + 1
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidJson(
            not_utf8(content[error.start], f"at position {error.start - line_start + 1} of the line"), line
        ) from error


def _lines(file: BinaryIO, max_row_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None for a line longer than the maximum, which is skipped without reading it into memory."""
    number = 0
    while line := file.readline(max_row_bytes + 1):
        number += 1
        if len(line) <= max_row_bytes:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(max_row_bytes)
        yield number, None


def _parse_line(place: Place, line: bytes | None, max_row_bytes: int) -> RawRow | BadRow | None:
    if line is None:
        return BadRow(place, f"longer than {max_row_bytes:,} bytes")
    if place.number == 1:
        line = line.removeprefix(_BOM)
    try:
        text = line.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow(place, not_utf8(line[error.start], f"at position {error.start + 1} of the line"))
    if not text.strip():
        return None
    try:
        return RawRow(place, parse_json(text))
    except InvalidJson as error:
        return BadRow(place, _with_column(error))
