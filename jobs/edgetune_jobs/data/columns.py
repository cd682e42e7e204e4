"""Columns of data that no object describes yet: their names, and which of them are plainly prompt and response."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgetune_contract.spec import DatasetFields, RowFormat
from edgetune_jobs.data.examples import KNOWN_AS
from edgetune_jobs.data.readers.columnar_rows import ColumnarReader
from edgetune_jobs.data.readers.csv_rows import read_csv
from edgetune_jobs.data.readers.json_rows import read_json, read_jsonl
from edgetune_jobs.data.readers.rows import BadRow, RawRow
from edgetune_jobs.data.readers.split_names import choose_files
from edgetune_jobs.store.sources.source import DATA_SUFFIXES

_ROLES: Mapping[RowFormat, tuple[str, ...]] = {
    RowFormat.INSTRUCTION: ("instruction", "response"),
    RowFormat.CHAT: ("messages",),
    RowFormat.TEXT: ("text",),
}
# Plain only together: rows of a classification.
_CLASSIFICATION = {"instruction": "text", "response": "label"}
_SHAREGPT_MESSAGES = "conversations"


def columns_of(data: Path) -> tuple[str, ...]:
    """Names of the columns of the first row of a file, or of the first training file of a folder; empty if unknown."""
    if data.is_dir():
        names = sorted(each.name for each in data.iterdir() if each.suffix.lower() in DATA_SUFFIXES)
        rows = choose_files(names, to_train=True, has_eval=False).rows
        return columns_of(data / rows[0]) if rows else ()
    with ColumnarReader() as columnar:
        first = next((each for each in _rows(data, columnar) if isinstance(each, RawRow)), None)
        return tuple(first.fields) if first is not None else ()


def probable_format(columns: Sequence[str]) -> RowFormat:
    """The format that rows with these columns probably have."""
    if _SHAREGPT_MESSAGES in columns or plain_fields(RowFormat.CHAT, columns) is not None:
        return RowFormat.CHAT
    if plain_fields(RowFormat.INSTRUCTION, columns) is None and plain_fields(RowFormat.TEXT, columns) is not None:
        return RowFormat.TEXT
    return RowFormat.INSTRUCTION


def plain_fields(row_format: RowFormat, columns: Sequence[str]) -> dict[str, str] | None:
    """The value of spec.dataset.fields, without defaults; None if it is not plain which column is what.

    Args:
        row_format: format of the rows.
        columns: names of their columns.
    """
    found = {role: _column(role, columns) for role in _ROLES[row_format]}
    if row_format is RowFormat.INSTRUCTION and None in found.values():
        found = {role: next((each for each in columns if each == name), None) for role, name in _CLASSIFICATION.items()}
    if row_format is RowFormat.CHAT and _SHAREGPT_MESSAGES in columns:
        return {}
    fields = {role: name for role, name in found.items() if name is not None}
    if len(fields) < len(found):
        return None
    defaults = DatasetFields()
    return {role: name for role, name in fields.items() if name != getattr(defaults, role)}


def _column(role: str, columns: Sequence[str]) -> str | None:
    by_lower_case = {name.lower(): name for name in reversed(columns)}
    return next((by_lower_case[name] for name in (role, *KNOWN_AS[role]) if name in by_lower_case), None)


def _rows(path: Path, columnar: ColumnarReader) -> Iterator[RawRow | BadRow]:
    match path.suffix.lower():
        case ".jsonl":
            return read_jsonl(path, path.name)
        case ".json":
            return read_json(path, path.name)
        case ".csv":
            return read_csv(path, path.name, ())
        case ".parquet" | ".arrow":
            return columnar.read(path, path.name, ())
        case _:
            return iter(())
