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


def test_the_questions_are_asked_on_a_terminal(folder: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edgetune_cli", "init"]
    with subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        os.write(ours, b"tickets\ns3://models/small\n\nchat\nserver\n")
        output, questions = process.communicate(timeout=60)
    os.close(ours)

    assert process.returncode == 0, questions
    assert output.decode().split() == ["tickets.yaml", "train.jsonl"]
    for question in ("Name of the model", "Base model", "Training data", "What is a row", "Where will it run"):
        assert questions.decode().count(question) == 1
    spec = written()["spec"]
    assert (spec["baseModel"]["uri"], spec["dataset"]["format"]) == ("s3://models/small", "Chat")
    assert spec["quantization"]["formats"] == ["CompressedTensorsW8A8"]


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
