"""Reads rows of .parquet files."""

from collections.abc import Collection, Iterator
from pathlib import Path

from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow, Unit
from edgetune_jobs.wording import first_line

_BATCH_ROWS = 1024


def read_parquet(path: Path, name: str, wanted: Collection[str]) -> Iterator[RawRow | BadRow]:
    """Rows with the names of all columns and the values of the wanted ones.

    Args:
        path: the file.
        name: its name in messages.
        wanted: columns to read.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if len(set(columns)) != len(columns):
                duplicate = next(column for column in columns if columns.count(column) > 1)
                yield BadRow(Place(name), f"duplicate column {duplicate!r}")
                return
            readable = [column for column in columns if column in wanted]
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=readable):
                for value in batch.to_pylist():
                    number += 1
                    yield RawRow(Place(name, Unit.ROW, number), value, columns)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = f"invalid Parquet, cannot read this row and the rows after it: {first_line(error)}"
        yield BadRow(Place(name, Unit.ROW, number + 1), reason)
