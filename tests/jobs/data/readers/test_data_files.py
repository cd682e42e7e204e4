"""Files of all four types: each row becomes an example or an error with its place."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgetune_jobs.data.data_set import DataSet, read_data_set
from edgetune_jobs.data.readers import columnar_process
from edgetune_jobs.data.readers.columnar_rows import ColumnarReader
from edgetune_jobs.data.readers.csv_rows import read_csv
from edgetune_jobs.data.readers.json_rows import read_json, read_jsonl
from edgetune_jobs.data.readers.row_errors import RowErrors
from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow, Unit
from edgetune_jobs.errors import InvalidInput
from support.data_rows import data_source, dataset_spec, instruction_rows, jsonl, read, write_file

GOOD = '{"instruction": "a", "response": "b"}'


def _texts(data_set: DataSet) -> list[tuple[str, str]]:
    return [(example.prompt[0].content, example.response) for example in data_set.examples]


def _write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "ROWS.JSONL"])
def test_the_same_rows_are_read_from_every_file_type(tmp_path: Path, name: str) -> None:
    rows = [{"instruction": "Größe? ≤ 5", "response": 'line 1\nline "2"'}, {"instruction": "c", "response": "d,e"}]
    path = tmp_path / name
    match path.suffix.lower():
        case ".json":
            path.write_text(json.dumps(rows))
        case ".csv":
            path.write_text('response,instruction\n"line 1\nline ""2""",Größe? ≤ 5\n"d,e",c\n')
        case ".parquet":
            _write_parquet(path, {key: [row[key] for row in rows] for key in rows[0]})
        case _:
            path.write_text(jsonl(rows))
    data_set, problems = read(path)
    assert problems == []
    assert _texts(data_set) == [("Größe? ≤ 5", 'line 1\nline "2"'), ("c", "d,e")]


def test_all_data_files_of_a_folder_are_read_in_order_of_their_names(tmp_path: Path) -> None:
    write_file(tmp_path / "b.csv", "instruction,response\nfrom b,x\n")
    write_file(tmp_path / "a.jsonl", jsonl([{"instruction": "from a", "response": "x"}]))
    write_file(tmp_path / "deeper/c.json", json.dumps([{"instruction": "from c", "response": "x"}]))
    write_file(tmp_path / "README.md", "not data")
    write_file(tmp_path / "_SUCCESS", "")
    data_set, problems = read(tmp_path)
    assert problems == []
    assert [example.prompt[0].content for example in data_set.examples] == ["from a", "from b", "from c"]
    assert data_set.warnings == ["spec.dataset.train: skipped 1 file of another type: README.md"]


def test_the_error_about_a_folder_without_data_files_lists_its_files(tmp_path: Path) -> None:
    write_file(tmp_path / "rows.txt", "a")
    with pytest.raises(
        InvalidInput, match=r"has no file ending in \.jsonl, \.json, \.csv, \.parquet, \.arrow \(found rows\.txt\)"
    ):
        read(tmp_path)


def test_an_empty_part_file_is_a_warning_and_an_empty_data_set_an_error(tmp_path: Path) -> None:
    write_file(tmp_path / "a.jsonl", GOOD)
    write_file(tmp_path / "b.jsonl", " \n\n")
    data_set, problems = read(tmp_path)
    assert problems == []
    assert data_set.warnings == ["spec.dataset.train: 1 file without rows: b.jsonl"]
    write_file(tmp_path / "a.jsonl", "")
    assert read(tmp_path)[1] == ["a.jsonl: no rows", "b.jsonl: no rows"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ""),
        ("a.json", ""),
        ("a.json", "[]"),
        ("a.json", " \n"),
        ("a.csv", ""),
        ("a.csv", "instruction,response\n"),
    ],
)
def test_a_file_without_rows_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    assert read(write_file(tmp_path / name, content))[1] == [f"{name}: no rows"]


def test_an_empty_parquet_file_is_invalid_and_one_without_rows_has_no_rows(tmp_path: Path) -> None:
    assert "invalid Parquet" in read(write_file(tmp_path / "a.parquet", ""))[1][0]
    import pyarrow

    empty = pyarrow.array([], pyarrow.string())
    path = _write_parquet(tmp_path / "b.parquet", {"instruction": empty, "response": empty})
    assert read(path)[1] == ["b.parquet: no rows"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"instruction": "a"', "invalid JSON: Expecting ',' delimiter, column 20"),
        ("instruction: a", "invalid JSON: Expecting value, column 1"),
        ('{"instruction": NaN, "response": "b"}', "invalid JSON: NaN is not a JSON number"),
        ('{"instruction": "a", "instruction": "c"}', "invalid JSON: duplicate field 'instruction'"),
        ("[" * 100_000, "invalid JSON: nested too deeply"),
        ("1" * 5000, "invalid JSON: Exceeds the limit"),
        ('{"instruction": "\x00", "response": "b"}', "NUL bytes: if the file is UTF-16"),
        ("[1, 2]", "expected an object, found a list; if the file is one JSON list, name it .json"),
        ("7", "expected an object, found a number"),
    ],
)
def test_an_invalid_line_is_reported_with_its_place_and_the_others_are_read(
    tmp_path: Path, line: str, reason: str
) -> None:
    data_set, problems = read(write_file(tmp_path / "rows.jsonl", f"{GOOD}\n\n{line}\n{GOOD}\n"))
    assert len(problems) == 1
    assert problems[0].startswith("rows.jsonl line 3: ")
    assert reason in problems[0]
    assert len(data_set.examples) == 2


def test_text_that_is_not_utf8_is_reported_with_line_and_byte(tmp_path: Path) -> None:
    latin = '{"instruction": "Größe", "response": "b"}'.encode("latin-1")
    content = GOOD.encode() + b"\n" + latin + b"\n"
    reason = "invalid UTF-8: byte 0xF6 at position 20 of the line; save the file as UTF-8"
    assert read(write_file(tmp_path / "rows.jsonl", content))[1] == [f"rows.jsonl line 2: {reason}"]
    as_list = b"[" + GOOD.encode() + b",\n" + latin + b"]"
    assert read(write_file(tmp_path / "rows.json", as_list))[1] == [f"rows.json line 2: {reason}"]
    cells = "instruction,response\na,b\nGröße,c\nd,e\n".encode("latin-1")
    data_set, problems = read(write_file(tmp_path / "rows.csv", cells))
    assert problems == ["rows.csv line 3: invalid UTF-8: byte 0xF6 in this row; save the file as UTF-8"]
    assert _texts(data_set) == [("a", "b"), ("d", "e")]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_utf8_with_a_byte_order_mark_is_accepted_and_utf16_refused(tmp_path: Path, suffix: str) -> None:
    content = "instruction,response\na,b\n" if suffix == ".csv" else GOOD
    data_set, problems = read(write_file(tmp_path / f"bom{suffix}", content.encode("utf-8-sig")))
    assert (problems, _texts(data_set)) == ([], [("a", "b")])
    path = write_file(tmp_path / f"wide{suffix}", content.encode("utf-16"))
    assert read(path)[1] == [f"wide{suffix}: the file is encoded as UTF-16; save it as UTF-8"]


def test_a_json_file_may_have_one_object_per_line(tmp_path: Path) -> None:
    path = write_file(tmp_path / "rows.json", f"{GOOD}\n{GOOD[:-1]}\n{GOOD}\n")
    data_set, problems = read(path)
    assert len(data_set.examples) == 2
    assert problems == ["rows.json line 2: invalid JSON: Expecting ',' delimiter, column 37"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"instruction": "a",\n "response": }]', "rows.json line 2: invalid JSON: Expecting value, column 14"),
        ('{\n "instruction": "a"', "rows.json line 2: invalid JSON: Expecting ',' delimiter, column 20"),
        ("[" * 100_000, "rows.json: invalid JSON: nested too deeply"),
        ('{"data": []}', "rows.json row 1: missing field 'instruction' (found: 'data')"),
        ("[[1]]", "rows.json row 1: expected an object, found a list"),
        ('"text"', "rows.json row 1: expected an object, found a string"),
    ],
)
def test_an_invalid_json_file_is_one_error(tmp_path: Path, content: str, problem: str) -> None:
    problems = read(write_file(tmp_path / "rows.json", content))[1]
    assert len(problems) == 1
    assert problems[0].startswith(problem)


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        ("instruction,response\na,b,c\nd,e\n", ["line 2: the row has 3 cells, but the header has 2"]),
        ("instruction,response\na\n", ["line 2: the row has 1 cell, but the header has 2"]),
        ('instruction,response\n"a"x,b\nd,e\n', ["line 2: invalid CSV: ',' expected after '\"'"]),
        ('instruction,response\na,b\n"c,d\ne,f\n', ["line 3: invalid CSV: unexpected end of data"]),
        ("instruction;response\na;b\n", ["line 1: the header 'instruction;response' has ';' and no commas"]),
        ("instruction,instruction\na,b\n", ["line 1: duplicate field 'instruction' in the header"]),
        ("instruction,response\na,\n", ["line 2: 'response' is empty"]),
        ("instruction,response\na,\x00b\n", ["line 2: 'response' contains a NUL character"]),
        ("instruction,response\na,\n\n\n,b\n", ["line 2: 'response' is empty", "line 5: 'instruction' is empty"]),
    ],
)
def test_invalid_csv_is_reported_with_its_line(tmp_path: Path, content: str, problems: list[str]) -> None:
    found = read(write_file(tmp_path / "rows.csv", content))[1]
    assert len(found) == len(problems)
    for actual, expected in zip(found, problems, strict=True):
        assert actual.startswith(f"rows.csv {expected}")


def test_a_csv_cell_may_contain_a_list_of_keywords(tmp_path: Path) -> None:
    content = 'instruction,response,expected_keyword\na,b,"[""x"", ""y""]"\nc,d,z\ne,f,\ng,h,"[x"\n'
    data_set, problems = read(write_file(tmp_path / "rows.csv", content))
    assert [example.keywords for example in data_set.examples] == [("x", "y"), ("z",), ()]
    assert problems == ["rows.csv line 5: 'expected_keyword' starts with '[', but is invalid JSON: Expecting value"]


def test_a_line_longer_than_the_limit_is_an_error_and_the_rows_after_it_are_read(tmp_path: Path) -> None:
    content = f"{GOOD}\n" + json.dumps({"instruction": "x" * 1000, "response": "b"}) + f"\n{GOOD}\n"
    first, long, last = read_jsonl(write_file(tmp_path / "rows.jsonl", content), "rows.jsonl", max_row_bytes=100)
    assert isinstance(first, RawRow)
    assert isinstance(last, RawRow)
    assert long == BadRow(Place("rows.jsonl", Unit.LINE, 2), "longer than 100 bytes")


def test_parquet_reads_lists_and_structs_and_reports_rows_by_number(tmp_path: Path) -> None:
    path = _write_parquet(
        tmp_path / "rows.parquet",
        {
            "instruction": ["a", None, "c"],
            "response": ["b", "b", "b"],
            "expected_keyword": [["x", "y"], None, []],
            "picture": [b"\xff", b"", None],
        },
    )
    data_set, problems = read(path)
    assert [example.keywords for example in data_set.examples] == [("x", "y"), ()]
    assert problems == ["rows.parquet row 2: 'instruction' is empty"]
    chat = [[{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]]
    data_set, problems = read(_write_parquet(tmp_path / "chat.parquet", {"messages": chat}), format="Chat")
    assert (problems, data_set.examples[0].response) == ([], "hi")


def test_the_error_about_a_missing_parquet_column_lists_the_columns(tmp_path: Path) -> None:
    path = _write_parquet(tmp_path / "rows.parquet", {"prompt": ["a"], "completion": ["b"]})
    assert read(path)[1] == [
        "rows.parquet row 1: missing field 'instruction' (found: 'prompt', 'completion'); did you mean 'prompt'? "
        "if so, set spec.dataset.fields.instruction: 'prompt'"
    ]


def test_a_truncated_parquet_file_is_an_error(tmp_path: Path) -> None:
    path = _write_parquet(tmp_path / "rows.parquet", {"instruction": ["a"] * 99, "response": ["b"] * 99})
    path.write_bytes(path.read_bytes()[:-20])
    problems = read(path)[1]
    assert len(problems) == 1
    assert problems[0].startswith("rows.parquet row 1: invalid Parquet, cannot read this row and the rows after it: ")


def test_a_file_that_disappeared_is_an_error(tmp_path: Path) -> None:
    path = write_file(tmp_path / "rows.jsonl", GOOD)
    source = data_source(path)
    assert source.files

    class Vanishing:
        uri, files, ignored, digest = source.uri, source.files, source.ignored, source.digest
        read_into, read_note = source.read_into, source.read_note

        def fetch(self, paths: object) -> Path:
            del paths
            path.unlink()
            return path.parent

    problems = RowErrors()
    read_data_set(Vanishing(), "spec.dataset.train", dataset_spec(), problems, threading.Event())
    assert problems.listed[0][1].reason == "cannot be read: No such file or directory"


def test_the_first_twenty_errors_are_listed_and_all_are_counted() -> None:
    problems = RowErrors()
    for number in range(1, 16):
        problems.add("spec.dataset.train", BadRow(Place("a.jsonl", Unit.LINE, number), "missing field 'response'"))
    problems.add("spec.dataset.train", BadRow(Place("a.jsonl", Unit.LINE, 40), "is empty"))
    problems.add("spec.dataset.train", BadRow(Place("a.jsonl", Unit.LINE, 42), "is empty"))
    problems.add("spec.dataset.train", BadRow(Place("b.json"), "x" * 1000))
    for number in range(3000):
        problems.add("spec.dataset.eval", BadRow(Place("a.jsonl", Unit.LINE, 5 + number), "is empty"))
    with pytest.raises(InvalidInput) as caught:
        problems.raise_if_any()
    assert str(caught.value).split("\n") == [
        "the data has 3,018 invalid rows or files; fix or remove them (showing the first 20):",
        "spec.dataset.train: a.jsonl lines 1 to 15: missing field 'response'",
        "spec.dataset.train: a.jsonl lines 40, 42: is empty",
        f"spec.dataset.train: b.json: {'x' * 300}…",
        "spec.dataset.eval: a.jsonl lines 5 to 6: is empty",
    ]
    RowErrors().raise_if_any()


ROW_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["instruction", "response", "messages", "role", "content", "x"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400) | st.text(alphabet='[]{}",:\\n\n\r ab;é\x00', max_size=200).map(str.encode))
@example(content=b'"\xed\xa0\x80"')
@example(content=b"\xef\xbb\xbf")
def test_random_bytes_give_only_rows_and_row_errors(tmp_path: Path, suffix: str, content: bytes) -> None:
    data_set, problems = read(write_file(tmp_path / f"rows{suffix}", content))
    assert problems or data_set.examples
    "\n".join(problems).encode()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(min_value=0), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_parquet_gives_only_rows_and_row_errors(tmp_path: Path, position: int, byte: int, cut: bool) -> None:
    path = _write_parquet(tmp_path / "rows.parquet", {"instruction": ["a", "b"], "response": ["b", "c"]})
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    write_file(path, bytes(content[: position % len(content)] if cut else content))
    answers = [json.loads(line) for line in columnar_process.lines(path, {"instruction", "response"})]
    assert answers[-1][0] in ("end", "bad")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=ROW_LIKE, row_format=st.sampled_from(["Instruction", "Chat", "Text"]))
def test_any_json_value_is_an_example_or_a_row_error(tmp_path: Path, value: object, row_format: str) -> None:
    path = write_file(tmp_path / "rows.jsonl", json.dumps(value) + "\n")
    data_set, problems = read(path, format=row_format)
    assert len(data_set.examples) + len(problems) == 1
    "\n".join(problems).encode()


def test_readers_return_every_row_of_a_valid_file(tmp_path: Path) -> None:
    rows = instruction_rows(2000)
    path = write_file(tmp_path / "rows.jsonl", jsonl(rows))
    assert [row.value for row in read_jsonl(path, "rows.jsonl") if isinstance(row, RawRow)] == rows
    listed = write_file(tmp_path / "rows.json", json.dumps(rows))
    assert [row.value for row in read_json(listed, "rows.json") if isinstance(row, RawRow)] == rows
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    table = _write_parquet(tmp_path / "rows.parquet", columns)
    with ColumnarReader() as columnar:
        found = list(columnar.read(table, "rows.parquet", set(columns)))
    assert [row.value for row in found if isinstance(row, RawRow)] == rows
    cells = "\n".join(",".join(str(value) for value in row.values()) for row in rows)
    sheet = write_file(tmp_path / "rows.csv", f"instruction,response,expected_keyword\n{cells}\n")
    assert [row.value for row in read_csv(sheet, "rows.csv", ()) if isinstance(row, RawRow)] == rows
