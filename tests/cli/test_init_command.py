"""`edgetune init`: what it writes is valid, is planned, and has rows that can be read."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgetune_cli.__main__ import app
from support.fake_hub import running_hub

COMMIT = "0123456789" * 4
FORMATS = {"Instruction": {"instruction", "response"}, "Chat": {"messages"}, "Text": {"text"}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edgetune(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def written(name: str = "tickets") -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(Path(f"{name}.yaml").read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("row_format", FORMATS)
@pytest.mark.parametrize("device", ["cpu", "board", "server"])
def test_what_is_written_is_valid_and_planned_and_its_rows_can_be_read(row_format: str, device: str) -> None:
    done = edgetune("init", "--name", "tickets", "--format", row_format, "--device", device)
    Path("base").mkdir()

    validated = edgetune("validate", "-f", "tickets.yaml")
    planned = edgetune("plan", "-f", "tickets.yaml")
    checked = edgetune("data", "check", "-f", "tickets.yaml", "-o", "json")

    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == ["tickets.yaml", "train.jsonl"]
    assert validated.stdout.splitlines()[-1] == "1 valid, 0 invalid"
    assert "warning" not in validated.stdout
    assert planned.exit_code == 0
    assert ("no gate on the score" in planned.stdout) is False
    rows = [json.loads(line) for line in Path("train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [FORMATS[row_format] <= row.keys() for row in rows] == [True, True]
    found = json.loads(checked.stdout)
    assert (found["valid"], found["trainRows"], found["evalRows"]) == (True, 1, 1)


def test_the_object_has_gates_and_the_format_for_the_device() -> None:
    edgetune("init", "--name", "tickets", "--device", "board", "--min-score", "0.9")

    spec = written()["spec"]
    assert spec["evaluation"]["gates"] == {"minScore": 0.9, "minImprovement": 0.05, "maxDrop": 0.05}
    assert spec["quantization"]["formats"] == ["GGUF-Q8_0"]


def answer(folder: Path, answers: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `edgetune init` on a terminal with these lines typed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edgetune_cli", "init"]
    with subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        os.write(ours, answers.encode())
        output, questions = process.communicate(timeout=120)
    os.close(ours)
    return process.returncode, output.decode(), questions.decode()


def test_the_questions_are_asked_on_a_terminal(folder: Path) -> None:
    code, output, questions = answer(folder, "tickets\ns3://models/small\n\nchat\nserver\n")

    assert code == 0, questions
    assert output.split() == ["tickets.yaml", "train.jsonl"]
    for question in ("Name of the model", "Base model", "Training data", "What is a row", "Where will it run"):
        assert questions.count(question) == 1
    spec = written()["spec"]
    assert (spec["baseModel"]["uri"], spec["dataset"]["format"]) == ("s3://models/small", "Chat")
    assert spec["quantization"]["formats"] == ["CompressedTensorsW8A8"]


def test_a_wrong_answer_is_asked_for_again_and_the_others_are_kept(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    (folder / "taken.yaml").write_text("")
    answers = [
        "My Home",
        "taken",
        "home",
        "http://host/model",
        "./base",
        "row.jsonl",
        "rows.jsonl",
        "rows",
        "",
        "phone",
    ]

    code, output, questions = answer(folder, "\n".join([*answers, "board", ""]))

    assert code == 0, questions
    assert output.split() == ["home.yaml"]
    counts = {
        "Name of the model": 3,
        "Base model: a": 2,
        "Training data": 2,
        "What is a row (": 2,
        "Where will it run (": 2,
    }
    assert {question: questions.count(question) for question in counts} == counts
    for problem in (
        "metadata.name: must be at most 253 lower-case letters",
        "taken.yaml exists, and nothing is overwritten",
        "spec.baseModel.uri: ",
        "row.jsonl does not exist; did you mean 'rows.jsonl'?",
        "What is a row: 'rows' is none of instruction, chat, text",
        "Where will it run: 'phone' is none of cpu, board, server",
    ):
        assert problem in questions
    assert written("home")["spec"]["quantization"]["formats"] == ["GGUF-Q8_0"]


@pytest.mark.parametrize(
    ("name", "rows", "dataset"),
    [
        (
            "rows.jsonl",
            '{"prompt": "a", "completion": "b"}\n',
            {"format": "Instruction", "fields": {"instruction": "prompt", "response": "completion"}},
        ),
        ("rows.csv", "Question,answer\na,b\n", {"fields": {"instruction": "Question", "response": "answer"}}),
        ("rows.json", '[{"text": "a", "label": "b"}]', {"fields": {"instruction": "text", "response": "label"}}),
        ("rows.jsonl", '{"instruction": "a", "input": "c", "output": "b"}', {"fields": {"response": "output"}}),
        ("rows.jsonl", '{"instruction": "a", "response": "b"}', {"format": "Instruction"}),
        ("rows.jsonl", '{"messages": []}', {"format": "Chat"}),
        ("rows.jsonl", '{"conversations": []}', {"format": "Chat"}),
        ("rows.jsonl", '{"body": "a"}', {"format": "Text", "fields": {"text": "body"}}),
        ("rows.jsonl", "no JSON", {"format": "Instruction"}),
    ],
)
def test_columns_of_the_data_are_written_where_it_is_plain_which_is_which(
    name: str, rows: str, dataset: dict[str, Any]
) -> None:
    Path(name).write_text(rows)

    done = edgetune("init", "--name", "tickets", "--train", name)

    assert done.exit_code == 0, done.output
    found = written()["spec"]["dataset"]
    assert {key: found.get(key) for key in ("format", "fields")} == {"format": "Instruction", "fields": None} | dataset


def test_columns_of_parquet_and_of_a_folder_are_read_too(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "rows").mkdir()
    pq.write_table(pa.table({"query": ["a"], "target": ["b"]}), folder / "rows" / "train.parquet")

    edgetune("init", "--name", "tickets", "--train", "rows")

    assert written()["spec"]["dataset"]["fields"] == {"instruction": "query", "response": "target"}


def test_columns_of_which_it_is_not_plain_are_named_in_a_comment() -> None:
    Path("rows.jsonl").write_text(json.dumps({"site": 1, "a\nb: {c": 2, "true": 3}))

    done = edgetune("init", "--name", "tickets", "--train", "rows.jsonl")

    lines = [line.strip() for line in Path("tickets.yaml").read_text().splitlines()]
    assert done.exit_code == 0, done.output
    assert "# Say which columns are meant. The data has: site, a\\nb: {c, true" in lines
    assert "# fields: {instruction: question, response: answer}" in lines
    assert "fields" not in written()["spec"]["dataset"]


def test_the_comments_on_fields_and_template_are_valid_lines() -> None:
    edgetune("init", "--name", "tickets")
    text = Path("tickets.yaml").read_text()
    Path("tickets.yaml").write_text(text.replace("# fields:", "fields:").replace("# template:", "template:"))

    dataset = written()["spec"]["dataset"]
    assert dataset["fields"] == {"instruction": "question", "response": "answer"}
    assert dataset["template"] == "### Instruction:\n{instruction}\n\n### Response:\n"
    assert edgetune("validate", "-f", "tickets.yaml").exit_code == 0


def test_data_with_a_typo_in_its_name_gets_no_sample_rows(folder: Path) -> None:
    Path("train.jsonl").write_text("{}\n")

    done = edgetune("init", "--name", "tickets", "--train", "tran.jsonl")
    in_another_folder = edgetune("init", "new", "--name", "tickets", "--train", "tran.jsonl")

    assert (done.exit_code, done.stderr.strip()) == (2, "tran.jsonl does not exist; did you mean 'train.jsonl'?")
    assert "did you mean 'train.jsonl'?" in in_another_folder.stderr
    assert [path.name for path in folder.iterdir()] == ["train.jsonl"]


def test_nothing_is_overwritten() -> None:
    edgetune("init", "--name", "tickets")
    before = Path("tickets.yaml").read_text(encoding="utf-8")

    done = edgetune("init", "--name", "tickets", "--device", "board")

    assert done.exit_code == 2
    assert done.stderr.strip().startswith("tickets.yaml exists, and nothing is overwritten")
    assert Path("tickets.yaml").read_text(encoding="utf-8") == before


def test_own_data_is_left_as_it_is() -> None:
    Path("rows.jsonl").write_text("{}\n")

    done = edgetune("init", "--name", "tickets", "--train", "rows.jsonl")

    assert done.stdout.splitlines() == ["tickets.yaml"]
    assert "put your rows" not in done.stderr
    assert Path("rows.jsonl").read_text() == "{}\n"


def test_data_and_base_of_the_current_folder_are_used_in_another_one(folder: Path) -> None:
    Path("rows.jsonl").write_text("{}\n")
    Path("base").mkdir()

    done = edgetune("init", "new", "--name", "tickets", "--train", "rows.jsonl", "--base", "./base")

    spec = written("new/tickets")["spec"]
    assert done.stdout.splitlines() == ["new/tickets.yaml"]
    assert spec["dataset"]["train"]["uri"] == str(folder / "rows.jsonl")
    assert spec["baseModel"]["uri"] == str(folder / "base")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--name", "Tickets!"), "metadata.name: must be at most 253 lower-case letters"),
        (("--base", "http://host/model"), "spec.baseModel.uri: "),
        (("--device", "bord"), "Did you mean 'board'?"),
        (("--train", "missing.csv"), "missing.csv does not exist; name a file that ends in .jsonl"),
    ],
)
def test_an_answer_that_cannot_be_used_writes_nothing(folder: Path, options: tuple[str, ...], message: str) -> None:
    done = edgetune("init", *options)

    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["true", "1e4", "12"])
def test_a_name_that_yaml_would_read_as_another_value_is_quoted(name: str) -> None:
    edgetune("init", "--name", name)

    assert written(name)["metadata"]["name"] == name


def test_a_model_of_the_hub_is_pinned_to_the_commit_of_its_branch(folder: Path) -> None:
    # In a process of its own: huggingface_hub reads its settings once, when it is imported.
    command = [sys.executable, "-m", "edgetune_cli", "init", "--name", "tickets", "--base", "hf://org/model"]
    with running_hub("org/model", COMMIT, {"config.json": b"{}"}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    assert done.returncode == 0, done.stderr
    assert written()["spec"]["baseModel"] == {"uri": "hf://org/model", "revision": COMMIT}
    assert edgetune("validate", "-f", "tickets.yaml").exit_code == 0
