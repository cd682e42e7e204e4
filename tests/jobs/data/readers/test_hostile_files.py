"""Files that are small and unpack to much, or are of another kind than their name, are one error with its place."""

import array
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune_jobs.data.readers import columnar_process, csv_rows, json_rows
from edgetune_jobs.data.readers.row_errors import MOST_COUNTED
from support.data_rows import instruction_rows, jsonl, read, write_file

MIB = 2**20


def _dictionary(value: str, rows: int) -> Any:
    import numpy
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(numpy.zeros(rows, numpy.int32)), [value])


def _repeated_text() -> dict[str, Any]:
    """One text of 8 MiB in 150 rows: 1.2 GB, in a file of about a kilobyte."""
    return {"instruction": _dictionary("x" * 8 * MIB, 150), "response": ["b"] * 150}


def _long_cell() -> dict[str, Any]:
    return {"instruction": ["a", "x" * 17 * MIB], "response": ["b", "b"]}


def _list_of_nulls() -> dict[str, Any]:
    import pyarrow

    many = pyarrow.ListArray.from_arrays(pyarrow.array([0, 80 * MIB], pyarrow.int32()), pyarrow.nulls(80 * MIB))
    return {"instruction": ["a"], "response": ["b"], "expected_keyword": many}


def _rows_without_end() -> dict[str, Any]:
    rows = 200_000
    return {"instruction": _dictionary("a", rows), "response": _dictionary("b", rows)}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (_repeated_text, "rows.parquet row 1: row group 1 unpacks to more than 512 MiB at once"),
        (_long_cell, "rows.parquet row 2: longer than 16,777,216 bytes"),
        (_list_of_nulls, "rows.parquet row 1: row group 1 unpacks to more than 512 MiB at once"),
        (_rows_without_end, "the file unpacks to more than 200 times its size"),
    ],
)
def test_parquet_that_unpacks_to_much_is_refused_by_row(
    tmp_path: Path, columns: Callable[[], dict[str, Any]], expected: str
) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table(columns()), path, compression="zstd")
    assert path.stat().st_size < 20_000

    (problem,) = read(path)[1]

    assert expected in problem


def test_arrow_that_unpacks_to_much_is_refused_and_the_next_file_is_read(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import ipc

    table = pyarrow.table({"instruction": ["a"], "response": ["y" * 520 * MIB]})
    options = ipc.IpcWriteOptions(compression="zstd")
    with ipc.new_file(tmp_path / "a.arrow", table.schema, options=options) as writer:
        writer.write_table(table)
    small = pyarrow.Table.from_pylist(instruction_rows(2))
    with ipc.new_file(tmp_path / "b.arrow", small.schema) as writer:
        writer.write_table(small)

    data_set, problems = read(tmp_path)

    assert len(data_set.examples) == 2
    assert len(problems) == 1
    assert problems[0].startswith("a.arrow row 1: batch 1 unpacks to more than 512 MiB at once")


def test_a_library_that_is_killed_by_a_file_is_an_error_of_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = write_file(tmp_path / "bin/python", "#!/bin/sh\nread line\nkill -SEGV $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(killer))
    path = write_file(tmp_path / "rows.parquet", b"PAR1")

    assert read(path)[1] == [
        "rows.parquet row 1: unpacking this row ended the library (signal 11); "
        "write the file again from data that you know"
    ]


def test_the_process_that_unpacks_files_has_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = write_file(tmp_path / "bin/python", f"#!/bin/sh\nread line\nenv > {tmp_path / 'environment'}\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "OPENAI_API_KEY", "GH_TOKEN", "DATABASE_PASSWORD"):
        monkeypatch.setenv(name, "secret value")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "kept value")

    read(write_file(tmp_path / "rows.parquet", b"PAR1"))

    environment = (tmp_path / "environment").read_text()
    assert "secret value" not in environment
    assert "kept value" in environment


def test_offsets_beyond_the_data_of_an_arrow_file_are_an_error(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import ipc

    batch = pyarrow.RecordBatch.from_pydict({"instruction": ["abc"], "response": ["b"]})
    path = tmp_path / "rows.arrow"
    with ipc.new_stream(path, batch.schema) as writer:
        writer.write_batch(batch)
    offsets, broken = (array.array("i", (0, end)).tobytes() for end in (3, 2**30))
    assert offsets in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(offsets, broken))

    answers = [json.loads(line) for line in columnar_process.lines(path, {"instruction"})]

    assert answers[-1][0] == "bad"
    assert answers[-1][2].startswith("invalid Arrow, cannot read this row and the rows after it: ")


def test_reading_stops_after_thousands_of_invalid_rows(tmp_path: Path) -> None:
    from edgetune_jobs.data.readers.row_errors import RowErrors
    from edgetune_jobs.data.readers.rows import BadRow, Place

    problems = RowErrors()
    for _ in range(MOST_COUNTED):
        problems.add("spec.dataset.train", BadRow(Place("a.jsonl"), "is empty"))
    assert problems.is_full
    with pytest.raises(Exception, match=r"at least 10,000 invalid rows or files, and was not read further"):
        problems.raise_if_any()
    write_file(tmp_path / "a.jsonl", "{}\n" * (MOST_COUNTED + 50))
    write_file(tmp_path / "b.jsonl", jsonl(instruction_rows(2)))
    assert read(tmp_path)[0].examples == []


def test_a_csv_record_over_many_lines_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_ROW_BYTES", 10_000)
    content = 'instruction,response\na,b\n"' + 'c\n","' * 5000

    data_set, problems = read(write_file(tmp_path / "rows.csv", content))

    assert len(data_set.examples) == 1
    assert problems == [
        "rows.csv line 3: longer than 10,000 bytes; the lines after it were not read; is a quote not closed?"
    ]


def test_a_hundred_thousand_fields_with_one_name_twice_are_an_error(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(100_000)]
    path = write_file(tmp_path / "rows.csv", ",".join([*names, names[-1]]) + "\n")
    assert read(path)[1] == ["rows.csv line 1: duplicate field 'n99999' in the header"]
    fields = ",".join(f'"{name}": 1' for name in [*names, names[-1]])
    path = write_file(tmp_path / "rows.jsonl", f"{{{fields}}}\n")
    assert read(path)[1] == ["rows.jsonl line 1: invalid JSON: duplicate field 'n99999'"]


def test_a_json_list_of_too_many_values_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_JSON_VALUES", 100)
    path = write_file(tmp_path / "rows.json", "[" + "{}," * 100 + "{}]")
    assert read(path)[1] == ["rows.json: more than 100 values; convert it to .jsonl, one object per line"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (json.dumps(instruction_rows(9), indent=2), "this is one JSON list on several lines, not a value on each line"),
        (
            "[" + ",\n".join(json.dumps(row) for row in instruction_rows(9)) + "]",
            "this is one JSON list on several lines, not a value on each line; rename it to .json",
        ),
        (
            "\n".join(json.dumps(row, indent=2) for row in instruction_rows(9)),
            "its JSON objects are on several lines; write each object on one line",
        ),
    ],
)
def test_indented_json_named_jsonl_is_one_error(tmp_path: Path, content: str, reason: str) -> None:
    (problem,) = read(write_file(tmp_path / "rows.jsonl", content))[1]
    assert problem.startswith(f"rows.jsonl: {reason}")


def test_a_long_first_row_is_not_taken_for_an_object_on_several_lines(tmp_path: Path) -> None:
    # The reader looks at the first 64 KiB, which end in a space here.
    rows = [{"instruction": "a " * 50_000, "response": "b"}, {"instruction": "a", "response": "b"}]
    for shift in ("", " "):
        content = "".join(shift + json.dumps(row) + "\n" for row in rows)
        data_set, problems = read(write_file(tmp_path / "rows.jsonl", content))
        assert (len(data_set.examples), problems) == (2, [])


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\x1f\x8b\x08", "the file is compressed by gzip; unpack it"),
        (b"PK\x03\x04", "the file is a ZIP archive or a spreadsheet"),
        (b"PAR1", "the file is Parquet; rename it to .parquet"),
        (b"version https://git-lfs.github.com/spec/v1", "the file is a pointer of Git LFS"),
    ],
)
def test_a_file_of_another_kind_is_one_error(tmp_path: Path, suffix: str, head: bytes, reason: str) -> None:
    (problem,) = read(write_file(tmp_path / f"rows{suffix}", head + b"\n\x00\n" * 50))[1]
    assert problem.startswith(f"rows{suffix}: {reason}")
