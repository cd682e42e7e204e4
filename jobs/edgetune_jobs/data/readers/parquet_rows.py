"""Rows of .parquet files."""

from collections.abc import Collection, Iterator
from pathlib import Path

from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow, Unit
from edgetune_jobs.messages import first_line

_BATCH_ROWS = 1024


def read_parquet(path: Path, name: str, wanted: Collection[str]) -> Iterator[RawRow | BadRow]:
    """Rows by column names; only the wanted columns are read.

    Args:
        path: the file.
        name: what messages call it.
        wanted: columns that will be looked at.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if len(set(columns)) != len(columns):
                yield BadRow(Place(name), f"names a column twice: {', '.join(columns)}")
                return
            readable = [column for column in columns if column in wanted]
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=readable):
                for value in batch.to_pylist():
                    number += 1
                    yield RawRow(Place(name, Unit.ROW, number), value, columns)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = f"broken Parquet, from here on unreadable: {first_line(error)}"
        yield BadRow(Place(name, Unit.ROW, number + 1), reason)
