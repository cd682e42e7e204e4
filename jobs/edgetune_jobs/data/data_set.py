"""Reads the files of a data set: each row becomes an example or a row error."""

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
from edgetune_jobs.store.sources import DATA_SUFFIXES, Source
from edgetune_jobs.wording import count, some

_ROWS_BETWEEN_STOP_CHECKS = 1000


@dataclass
class DataSet:
    """The valid rows of one data set, its field names and its warnings."""

    spec_field: str
    """spec.dataset.train or spec.dataset.eval."""

    examples: list[Example] = field(default_factory=list)
    """Ordered by file name, then by row."""

    fields: dict[str, None] = field(default_factory=dict)
    """Names of all fields of all rows, in order of first appearance."""

    warnings: list[str] = field(default_factory=list)


def read_data_set(
    source: Source, spec_field: str, dataset: DatasetSpec, row_errors: RowErrors, stop: threading.Event
) -> DataSet:
    """Read and validate all rows of a source; invalid rows and files are added to `row_errors`.

    Args:
        source: one file, or a folder whose .jsonl, .json, .csv and .parquet files are read in order of their names.
        spec_field: spec.dataset.train or spec.dataset.eval.
        dataset: format and field names.
        row_errors: collects invalid rows and files.
        stop: set when the stage has to end.

    Raises:
        InvalidInput: the source has no data file.
        Interrupted: `stop` was set.
    """
    entries, ignored = _choose_files(source, spec_field)
    folder = source.fetch([entry.path for entry in entries])
    parser = RowParser(dataset)
    data_set = DataSet(spec_field)
    if ignored:
        data_set.warnings.append(
            f"{spec_field}: skipped {count(len(ignored), 'file of another type', 'files of other types')}: "
            f"{some(ignored)}"
        )
    empty = []
    for entry in entries:
        before = len(data_set.examples), row_errors.total
        _read_file(folder / entry.path, entry.path, parser, data_set, row_errors, stop)
        if (len(data_set.examples), row_errors.total) == before:
            empty.append(entry.path)
    if len(empty) == len(entries):
        for path in empty:
            row_errors.add(spec_field, BadRow(Place(path), "no rows"))
    elif empty:
        # Parallel writers leave empty part files, which are harmless if other files have rows.
        data_set.warnings.append(f"{spec_field}: {count(len(empty), 'file')} without rows: {some(empty)}")
    return data_set


def _choose_files(source: Source, spec_field: str) -> tuple[Sequence[FileEntry], list[str]]:
    """Files to read, and names of the files to warn about.

    Raises:
        InvalidInput: the source has no data file.
    """
    # By convention, readers of data skip names such as _SUCCESS, _metadata and .DS_Store.
    ignored = [path for path in source.ignored if not PurePosixPath(path).name.startswith((".", "_"))]
    if not source.files:
        found = some(ignored) if ignored else "no files"
        raise InvalidInput(
            f"{spec_field}.uri: {source.uri} has no file ending in {', '.join(DATA_SUFFIXES)} (found {found}); "
            "set it to such a file, or to a folder with such files"
        )
    return source.files, ignored


def _read_file(
    path: Path, name: str, parser: RowParser, data_set: DataSet, row_errors: RowErrors, stop: threading.Event
) -> None:
    try:
        for number, row in enumerate(_rows(path, name, parser)):
            if number % _ROWS_BETWEEN_STOP_CHECKS == 0 and stop.is_set():
                raise Interrupted("stopped while reading the data; nothing was written; the next attempt starts over")
            if isinstance(row, RawRow):
                data_set.fields.update(dict.fromkeys(row.fields))
                parsed = parser.parse(row)
            else:
                parsed = row
            if isinstance(parsed, BadRow):
                row_errors.add(data_set.spec_field, parsed)
            else:
                data_set.examples.append(parsed)
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
