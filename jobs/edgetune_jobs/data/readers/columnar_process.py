"""The process that unpacks .parquet and .arrow files, with limits on its memory and time: a small file can be a bomb.

It reads requests from standard input, one JSON object per line: path, wanted. It answers with lines of JSON: first
["columns", names], then an object for each row, and at the end ["end"] or ["bad", row, reason].
"""

import json
import math
import os
import resource
import signal
import sys
from collections.abc import Collection, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from edgetune_jobs.data.readers.rows import MAX_ROW_BYTES
from edgetune_jobs.wording import first_line

COLUMNS, END, BAD = "columns", "end", "bad"
MAX_MEMORY_BYTES = 512 * 2**20
"""Memory for unpacking, besides that of the libraries."""

MAX_SECONDS = 60
"""Time for one batch of rows."""

MAX_RATIO = 200
"""Rows that are more than so many times as large as their file are a bomb. Text compresses 3 to 20 times."""

_BATCH_ROWS = 64
_MOST_COLUMNS = 10_000
_SMALLEST_BUDGET, _LARGEST_BUDGET = 64 * 2**20, 4 * 2**30
# A row takes memory even if it is empty.
_ROW_OVERHEAD_BYTES = 512
_ARROW_FILE = b"ARROW1"


class _Batch(Protocol):
    def to_pylist(self) -> list[dict[str, Any]]: ...


class _Refused(Exception):
    """The file is not read further; the message is the reason."""


def lines(path: Path, wanted: Collection[str]) -> Iterator[str]:
    """The answer to one request."""
    number = 0
    place = ""
    try:
        is_parquet = path.suffix.lower() == ".parquet"
        columns, batches = _open_parquet(path, wanted) if is_parquet else _open_arrow(path, wanted)
        yield _dump([COLUMNS, _shown(columns, wanted)])
        left = min(max(_SMALLEST_BUDGET, path.stat().st_size * MAX_RATIO), _LARGEST_BUDGET)
        for where, batch in batches:
            place = where
            signal.alarm(MAX_SECONDS)
            for row in batch.to_pylist():
                line = _dump({name: _without_nulls(value) for name, value in row.items()})
                left -= len(line) + _ROW_OVERHEAD_BYTES
                _check_size(line, left)
                number += 1
                yield line
        yield _dump([END])
    except _Refused as error:
        yield _dump([BAD, number + 1, str(error)])
    except MemoryError:
        reason = (
            f"{place or 'the file'} unpacks to more than {MAX_MEMORY_BYTES >> 20} MiB at once; "
            "write the file again from data that you know"
        )
        yield _dump([BAD, number + 1, reason])
    except Exception as error:  # noqa: BLE001 - with broken files, the library raises any kind of exception
        kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
        reason = f"invalid {kind}, cannot read this row and the rows after it: {first_line(error)}"
        yield _dump([BAD, number + 1, reason])
    finally:
        signal.alarm(0)


def main() -> None:
    """Answer requests until standard input ends."""
    import pyarrow
    from pyarrow import ipc, parquet

    del ipc, parquet  # loaded before memory is limited
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    _limit_memory()
    for request in sys.stdin:
        asked = json.loads(request)
        for line in lines(Path(asked["path"]), asked["wanted"]):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _limit_memory() -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux: other systems do not enforce the limit either
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _open_parquet(path: Path, wanted: Collection[str]) -> tuple[list[str], Iterator[tuple[str, _Batch]]]:
    from pyarrow import parquet

    # Without pre_buffer and with a buffer, pages are read one by one instead of whole columns.
    file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    columns = file.schema_arrow.names

    def batches() -> Iterator[tuple[str, _Batch]]:
        readable = _readable(columns, wanted)
        for group in range(file.num_row_groups):
            place = f"row group {group + 1}"
            yield place, _NOTHING
            rows = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=readable, use_threads=False)
            yield from ((place, batch) for batch in rows)

    return columns, batches()


def _open_arrow(path: Path, wanted: Collection[str]) -> tuple[list[str], Iterator[tuple[str, _Batch]]]:
    """A file of the datasets library's save_to_disk, which is a stream, or of Feather."""
    import pyarrow
    from pyarrow import ipc

    with path.open("rb") as head:
        is_file = head.read(len(_ARROW_FILE)) == _ARROW_FILE
    source = pyarrow.OSFile(str(path))
    schema = (ipc.open_file if is_file else ipc.open_stream)(source).schema
    source.seek(0)
    columns = schema.names
    options = ipc.IpcReadOptions(
        included_fields=[columns.index(name) for name in _readable(columns, wanted)], use_threads=False
    )

    def batches() -> Iterator[tuple[str, _Batch]]:
        reader = ipc.open_file(source, options=options) if is_file else ipc.open_stream(source, options=options)
        every = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader
        yield "batch 1", _NOTHING
        for number, batch in enumerate(every, start=1):
            place = f"batch {number}"
            # The library trusts offsets in Arrow files, which are read as they are stored.
            batch.validate(full=True)
            for begin in range(0, batch.num_rows, _BATCH_ROWS):
                yield place, batch.slice(begin, _BATCH_ROWS)
            yield f"batch {number + 1}", _NOTHING

    return columns, batches()


class _Nothing:
    """A batch without rows, which says where the next one begins."""

    def to_pylist(self) -> list[dict[str, Any]]:
        return []


_NOTHING = _Nothing()


def _readable(columns: list[str], wanted: Collection[str]) -> list[str]:
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise _Refused(f"duplicate column {column[:64]!r}")
        seen.add(column)
    return [column for column in columns if column in wanted]


def _shown(columns: list[str], wanted: Collection[str]) -> list[str]:
    """All wanted columns, and the first of the others."""
    others = [column for column in columns if column not in wanted][:_MOST_COLUMNS]
    kept = {*others, *wanted}
    return [column for column in columns if column in kept]


def _check_size(line: str, left: int) -> None:
    if len(line) > MAX_ROW_BYTES:
        raise _Refused(f"longer than {MAX_ROW_BYTES:,} bytes; the rows after it were not read")
    if left < 0:
        raise _Refused(
            f"the file unpacks to more than {MAX_RATIO} times its size, or more than {_LARGEST_BUDGET >> 30} GiB; "
            "the rows after this one were not read; write the file again from data that you know"
        )


def _without_nulls(value: object) -> object:
    """The value without null fields in objects: in a table, every object has every field."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=_as_text)


def _as_text(value: object) -> str:
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal) and math.isfinite(value):
        return str(value)
    raise TypeError(f"values of type {type(value).__name__} are no text")


if __name__ == "__main__":
    main()
