"""Data sets: which files they are, and every row of them either an example or a row error."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edgetune_contract.request import FileEntry
from edgetune_contract.spec import DatasetSpec
from edgetune_jobs.data.examples import Example, RowParser
from edgetune_jobs.data.readers.csv_rows import read_csv
from edgetune_jobs.data.readers.json_rows import read_json, read_jsonl
from edgetune_jobs.data.readers.parquet_rows import read_parquet
from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow
from edgetune_jobs.data.row_errors import RowErrors
from edgetune_jobs.errors import Interrupted, InvalidInput
from edgetune_jobs.messages import count, some
from edgetune_jobs.store.sources import DATA_SUFFIXES, Source

_ROWS_BETWEEN_STOP_CHECKS = 1000


@dataclass
class DataSet:
    """Rows of one data set that can be used, and what was seen on the way."""

    spec_field: str
    """spec.dataset.train or spec.dataset.eval."""

    examples: list[Example] = field(default_factory=list)
    """In the order of the files' names, then of their rows."""

    fields: dict[str, None] = field(default_factory=dict)
    """Names of all fields of all rows, in the order in which they were first seen."""

    warnings: list[str] = field(default_factory=list)


def read_data_set(
    source: Source, spec_field: str, dataset: DatasetSpec, row_errors: RowErrors, stop: threading.Event
) -> DataSet:
    """Read and judge all rows behind a URI; what cannot be used goes to `row_errors`.

    Args:
        source: one file, or a folder whose .jsonl, .json, .csv and .parquet files are read in the order of their names.
        spec_field: spec.dataset.train or spec.dataset.eval.
        dataset: format and field names.
        row_errors: where rows and files that cannot be used are noted.
        stop: set when the stage has to end.

    Raises:
        InvalidInput: there is no file to read.
        Interrupted: `stop` was set.
    """
    entries, ignored = _choose_files(source, spec_field)
    folder = source.fetch([entry.path for entry in entries])
    parser = RowParser(dataset)
    data_set = DataSet(spec_field)
    if ignored:
        data_set.warnings.append(
            f"{spec_field}: {count(len(ignored), 'file')} of other types not read: {some(ignored)}"
        )
    empty = []
    for entry in entries:
        before = len(data_set.examples), row_errors.total
        _read_file(folder / entry.path, entry.path, parser, data_set, row_errors, stop)
        if (len(data_set.examples), row_errors.total) == before:
            empty.append(entry.path)
    if len(empty) == len(entries):
        for path in empty:
            row_errors.add(spec_field, BadRow(Place(path), "has no rows"))
    elif empty:
        # Writers that work in parallel leave empty parts: no reason to stop as long as there are rows elsewhere.
        data_set.warnings.append(f"{spec_field}: {count(len(empty), 'file')} without rows: {some(empty)}")
    return data_set


def _choose_files(source: Source, spec_field: str) -> tuple[Sequence[FileEntry], list[str]]:
    """Files to read, and the names of those to leave alone.

    Raises:
        InvalidInput: there is no file to read.
    """
    # Names such as _SUCCESS, _metadata and .DS_Store are not meant for readers of data.
    ignored = [path for path in source.ignored if not PurePosixPath(path).name.startswith((".", "_"))]
    if not source.files:
        found = f"found {some(ignored)}" if ignored else "there is no file at all"
        raise InvalidInput(
            f"{spec_field}.uri: {source.uri} has no file ending in {', '.join(DATA_SUFFIXES)} ({found}): "
            "name such a file, or a folder that holds some"
        )
    return source.files, ignored


def _read_file(
    path: Path, name: str, parser: RowParser, data_set: DataSet, row_errors: RowErrors, stop: threading.Event
) -> None:
    try:
        for number, row in enumerate(_rows(path, name, parser)):
            if number % _ROWS_BETWEEN_STOP_CHECKS == 0 and stop.is_set():
                raise Interrupted("stopped while reading the data; nothing was written; the next attempt starts again")
            if isinstance(row, RawRow):
                data_set.fields.update(dict.fromkeys(row.fields))
                judged = parser.parse(row)
            else:
                judged = row
            if isinstance(judged, BadRow):
                row_errors.add(data_set.spec_field, judged)
            else:
                data_set.examples.append(judged)
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        row_errors.add(data_set.spec_field, BadRow(Place(name), f"cannot be read: {error.strerror}"))


def _rows(path: Path, name: str, parser: RowParser) -> Iterator[RawRow | BadRow]:
    match _suffix(name):
        case ".jsonl":
            return read_jsonl(path, name)
        case ".json":
            return read_json(path, name)
        case ".csv":
            return read_csv(path, name, parser.list_fields)
        case _:
            return read_parquet(path, name, parser.wanted_fields)


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
