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
    foreign_content,
    not_utf8,
)
from edgetune_jobs.store.strict_json import InvalidJson, parse_json

# A .json file is parsed as a whole, which takes several times its size in memory.
MAX_JSON_BYTES = 2**30

# So many values take 3 GB of memory, even if all of them are empty.
MAX_JSON_VALUES = 30_000_000

_HEAD_BYTES = 65_536
_HEAD_LINES = 100
_BOM = b"\xef\xbb\xbf"


def read_jsonl(path: Path, name: str, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[RawRow | BadRow]:
    """One JSON value per line; blank lines are skipped.

    Args:
        path: the file.
        name: its name in messages.
        max_row_bytes: maximum length of a line in bytes; longer lines are invalid.
    """
    with path.open("rb") as file:
        if reason := foreign_content(file.read(32)) or _indented(file):
            yield BadRow(Place(name), reason)
            return
        file.seek(0)
        for number, line in _lines(file, max_row_bytes):
            row = _parse_line(Place(name, Unit.LINE, number), line, max_row_bytes)
            if row is not None:
                yield row


def _indented(file: BinaryIO) -> str | None:
    """Why the file is not one value per line, by its first two lines; None if they do not tell.

    Otherwise each line of an indented list would be an error of its own.
    """
    file.seek(0)
    lines = (file.readline(_HEAD_BYTES) for _ in range(_HEAD_LINES))
    filled = [line for line in lines if line.strip()][:2]
    head = [line.strip() for line in filled]
    first = head[0].removeprefix(_BOM).lstrip() if head else b""
    if not first.startswith((b"[", b"{")) or len(head) < 2 or _is_json(first) or _is_json(head[1]):
        return None
    if first.startswith(b"["):
        return "this is one JSON list on several lines, not a value on each line; rename it to .json"
    if filled[0].endswith(b"\n") and not first.endswith((b"}", b"]")):
        return "its JSON objects are on several lines; write each object on one line, or all of them as a list in .json"
    return None


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line.decode("utf-8"))
    except (InvalidJson, UnicodeDecodeError):
        return False
    return True


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
    if reason := foreign_content(content):
        yield BadRow(Place(name), reason)
        return
    if not content.strip():
        return
    if not content.lstrip().startswith(b"["):
        yield from _read_objects(path, name, content)
        return
    if sum(content.count(mark) for mark in (b"[", b"{", b",")) > MAX_JSON_VALUES:
        yield BadRow(Place(name), f"more than {MAX_JSON_VALUES:,} values; convert it to .jsonl, one object per line")
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
