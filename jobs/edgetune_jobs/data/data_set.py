"""Reads the files of a data set: each row becomes an example or a row error."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from edgetune_contract.spec import DatasetSpec
from edgetune_jobs.data.examples import Example, RowParser
from edgetune_jobs.data.readers.columnar_rows import ColumnarReader
from edgetune_jobs.data.readers.csv_rows import read_csv
from edgetune_jobs.data.readers.json_rows import read_json, read_jsonl
from edgetune_jobs.data.readers.row_errors import RowErrors
from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow
from edgetune_jobs.data.readers.split_names import FolderFiles, choose_files
from edgetune_jobs.errors import Interrupted, InvalidInput
from edgetune_jobs.store.sources.source import DATA_SUFFIXES, Source
from edgetune_jobs.wording import count, some

TRAIN_FIELD = "spec.dataset.train"
EVAL_FIELD = "spec.dataset.eval"
_ROWS_BETWEEN_STOP_CHECKS = 1000
_MOST_COLUMNS = 10_000


@dataclass
class DataSet:
    """The valid rows of one data set, its field names and its warnings."""

    spec_field: str
    """spec.dataset.train or spec.dataset.eval."""

    examples: list[Example] = field(default_factory=list)
    """Ordered by file name, then by row."""

    fields: Counter[str] = field(default_factory=Counter)
    """Columns with the number of rows that have a value in them, in order of first appearance; at most 10,000."""

    warnings: list[str] = field(default_factory=list)

    held_out: "DataSet | None" = None
    """Rows of a training folder's validation or test files, if they are evaluated on."""

    def count_columns(self, row: RawRow) -> None:
        """Count the columns of a row that have a value."""
        self.fields.update(name for name in row.filled if name in self.fields or len(self.fields) < _MOST_COLUMNS)


def read_data_set(
    source: Source,
    spec_field: str,
    dataset: DatasetSpec,
    row_errors: RowErrors,
    stop: threading.Event,
) -> DataSet:
    """Read and validate all rows of a source; invalid rows and files are added to `row_errors`.

    Args:
        source: one file, or a folder whose data files are read in order of their names. In a folder, names of splits
            decide which files are trained and which are evaluated on.
        spec_field: spec.dataset.train or spec.dataset.eval.
        dataset: format and field names.
        row_errors: collects invalid rows and files.
        stop: set when the stage has to end.

    Raises:
        InvalidInput: the source has no data file, or the template is invalid.
        Interrupted: `stop` was set.
    """
    chosen = _choose_files(source, spec_field, dataset)
    folder = source.fetch([*chosen.rows, *chosen.held_out])
    parser = RowParser(dataset)
    with ColumnarReader() as columnar:
        reading = _Reading(folder, parser, columnar, row_errors, stop)
        data_set = reading.read(spec_field, chosen.rows)
        data_set.warnings[:0] = chosen.notes
        if chosen.held_out:
            data_set.held_out = reading.read(spec_field, chosen.held_out)
    return data_set


def _choose_files(source: Source, spec_field: str, dataset: DatasetSpec) -> FolderFiles:
    """Files to read, with notes on the others.

    Raises:
        InvalidInput: the source has no data file.
    """
    # By convention, readers of data skip names such as _SUCCESS, _metadata and .DS_Store.
    ignored = [path for path in source.ignored if not PurePosixPath(path).name.startswith((".", "_"))]
    names = [entry.path for entry in source.files]
    chosen = choose_files(names, to_train=spec_field == TRAIN_FIELD, has_eval=dataset.eval is not None)
    if not chosen.rows:
        found = some((*names, *ignored)) if names or ignored else "no files"
        raise InvalidInput(
            f"{spec_field}.uri: {source.uri} has no file ending in {', '.join(DATA_SUFFIXES)} (found {found}); "
            "set it to such a file, or to a folder with such files"
        )
    notes = [f"{spec_field}: {note}" for note in chosen.notes]
    if ignored:
        notes.append(
            f"{spec_field}: skipped {count(len(ignored), 'file of another type', 'files of other types')}: "
            f"{some(ignored)}"
        )
    return replace(chosen, notes=notes)


@dataclass(frozen=True)
class _Reading:
    """Reads files of one source."""

    folder: Path
    parser: RowParser
    columnar: ColumnarReader
    row_errors: RowErrors
    stop: threading.Event

    def read(self, spec_field: str, paths: Sequence[str]) -> DataSet:
        """The valid rows of these files."""
        data_set = DataSet(spec_field)
        empty = []
        for path in paths:
            before = len(data_set.examples), self.row_errors.total
            self._read_file(path, data_set)
            if (len(data_set.examples), self.row_errors.total) == before:
                empty.append(path)
            if self.row_errors.is_full:
                return data_set
        if len(empty) == len(paths):
            for path in empty:
                self.row_errors.add(spec_field, BadRow(Place(path), "no rows"))
        elif empty:
            # Parallel writers leave empty part files, which are harmless if other files have rows.
            data_set.warnings.append(f"{spec_field}: {count(len(empty), 'file')} without rows: {some(empty)}")
        return data_set

    def _read_file(self, name: str, data_set: DataSet) -> None:
        try:
            for number, row in enumerate(self._rows(self.folder / name, name)):
                if number % _ROWS_BETWEEN_STOP_CHECKS == 0 and self.stop.is_set():
                    raise Interrupted(
                        "stopped while reading the data; nothing was written; the next attempt starts over"
                    )
                if isinstance(row, RawRow):
                    data_set.count_columns(row)
                    parsed = self.parser.parse(row)
                else:
                    parsed = row
                if not isinstance(parsed, BadRow):
                    data_set.examples.append(parsed)
                    continue
                self.row_errors.add(data_set.spec_field, parsed)
                if self.row_errors.is_full:
                    return
        except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
            self.row_errors.add(data_set.spec_field, BadRow(Place(name), f"cannot be read: {error.strerror}"))

    def _rows(self, path: Path, name: str) -> Iterator[RawRow | BadRow]:
        match _suffix(name):
            case ".jsonl":
                return read_jsonl(path, name)
            case ".json":
                return read_json(path, name)
            case ".csv":
                return read_csv(path, name, self.parser.list_fields)
            case _:
                return self.columnar.read(path, name, self.parser.wanted_fields)


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
