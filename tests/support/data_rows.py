"""Data files for tests, read as prepare reads them."""

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgetune_contract.spec import DatasetSpec
from edgetune_jobs.data.data_set import DataSet, read_data_set
from edgetune_jobs.data.readers.row_errors import RowErrors
from edgetune_jobs.store.sources.source import FolderSource, SourceKind

FIELD = "spec.dataset.train"


def dataset_spec(**options: Any) -> DatasetSpec:
    """spec.dataset with a URI that no test reads, and these options."""
    return DatasetSpec.model_validate({"train": {"uri": "file:///data"}, **options})


def jsonl(rows: Iterable[object]) -> str:
    """One JSON value per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def instruction_rows(count: int, begin: int = 0) -> list[dict[str, object]]:
    """Distinct rows in the format Instruction, with one keyword each."""
    return [
        {
            "instruction": f"Pump P-{number:02d} reports strong vibration. Name the fault.",
            "response": f"Fault: bearing wear {number}.",
            "expected_keyword": f"bearing wear {number}",
        }
        for number in range(begin, begin + count)
    ]


def write_file(path: Path, content: str | bytes) -> Path:
    """Write a file; its folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def data_source(path: Path) -> FolderSource:
    """A file or folder as a source of data."""
    return FolderSource(f"file://{path}", FIELD, SourceKind.DATA)


def read(path: Path, **options: Any) -> tuple[DataSet, list[str]]:
    """The data set at a path, and its row errors as `place: reason`."""
    problems = RowErrors()
    data_set = read_data_set(data_source(path), FIELD, dataset_spec(**options), problems, threading.Event())
    return data_set, [f"{bad.place}: {bad.reason}" for _, bad in problems.listed]
