"""The prepared data set on disk: written by prepare, read by train, evaluate, and quantize for an importance matrix.

train.parquet   input_ids list<int32>, completion_mask list<int8>: 1 for tokens that are learned
eval.parquet    prompt string, prompt_ids list<int32>, completion_ids list<int32>, response string,
                keywords list<string>; for the format Text prompt and prompt_ids are empty
report.json     counts, lengths in tokens, memory, warnings
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgetune_jobs.data.tokenization import TokenizedExample

TRAIN = "train.parquet"
EVAL = "eval.parquet"
REPORT = "report.json"


class RowWriter:
    """Writes examples to a Parquet file in batches; leaving the context closes the file."""

    def __init__(self, path: Path, schema: Any, row_of: Callable[[TokenizedExample], dict[str, object]]) -> None:
        """
        Args:
            path: the file.
            schema: its pyarrow schema.
            row_of: maps an example to its values by column.
        """
        from pyarrow import parquet

        self._schema = schema
        self._row_of = row_of
        self._writer = parquet.ParquetWriter(path, schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, batch: Sequence[TokenizedExample]) -> None:
        """Append examples."""
        import pyarrow

        rows = [self._row_of(example) for example in batch]
        self._writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=self._schema))


def open_train(folder: Path) -> RowWriter:
    """Open train.parquet for writing."""
    import pyarrow

    schema = pyarrow.schema(
        {"input_ids": pyarrow.list_(pyarrow.int32()), "completion_mask": pyarrow.list_(pyarrow.int8())}
    )
    return RowWriter(folder / TRAIN, schema, _train_row)


def open_eval(folder: Path) -> RowWriter:
    """Open eval.parquet for writing."""
    import pyarrow

    schema = pyarrow.schema(
        {
            "prompt": pyarrow.string(),
            "prompt_ids": pyarrow.list_(pyarrow.int32()),
            "completion_ids": pyarrow.list_(pyarrow.int32()),
            "response": pyarrow.string(),
            "keywords": pyarrow.list_(pyarrow.string()),
        }
    )
    return RowWriter(folder / EVAL, schema, _eval_row)


def read_eval_tokens(folder: Path, most_rows: int) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the prompts and the completions of the first rows of eval.parquet."""
    from pyarrow import parquet

    columns = parquet.read_table(folder / EVAL, columns=["prompt_ids", "completion_ids"]).slice(0, most_rows)
    return columns["prompt_ids"].to_pylist(), columns["completion_ids"].to_pylist()


def read_train_tokens(folder: Path) -> list[list[int]]:
    """Token ids of the rows of train.parquet."""
    from pyarrow import parquet

    rows: list[list[int]] = parquet.read_table(folder / TRAIN, columns=["input_ids"])["input_ids"].to_pylist()
    return rows


def write_report(folder: Path, report: Mapping[str, object]) -> None:
    """Write report.json."""
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_text_part(folder: Path) -> bool:
    """Whether the base is the text part of a multimodal model, according to report.json."""
    path = folder / REPORT
    return path.is_file() and "textPartOf" in json.loads(path.read_text(encoding="utf-8"))["base"]


def _train_row(example: TokenizedExample) -> dict[str, object]:
    return {"input_ids": example.input_ids, "completion_mask": example.completion_mask}


def _eval_row(example: TokenizedExample) -> dict[str, object]:
    return {
        "prompt": example.prompt,
        "prompt_ids": example.prompt_ids,
        "completion_ids": example.completion_ids,
        "response": example.reference,
        "keywords": list(example.source.keywords),
    }
