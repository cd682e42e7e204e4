"""Every object in examples/ is valid, has gates and can be planned; generators write the committed rows."""

import csv
import json
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from edgetune_cli.__main__ import app
from edgetune_contract.evaluation import Gates
from edgetune_operator.api import names

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
OBJECTS = sorted(EXAMPLES.glob("*/lora-fine-tune.yaml"))
GENERATED = {"functions": ("train.jsonl", "eval.jsonl"), "tickets": ("train.csv", "eval.csv")}


def test_every_folder_is_in_the_table() -> None:
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))}
    assert {line.split("[")[1].split("]")[0] for line in table.splitlines() if line.startswith("| [")} == folders


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.parent.name)
def test_every_object_is_valid_has_gates_and_is_planned(path: Path, tmp_path: Path) -> None:
    values = path.with_name("values.yaml")
    profiles = ["--profiles", str(values)] if values.exists() else []

    planned = CliRunner().invoke(app, ["plan", "-f", str(path), "--workdir", str(tmp_path), *profiles])

    assert planned.exit_code == 0, planned.output
    assert "publish" in planned.stdout
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["evaluation"]["gates"]


def samples() -> dict[str, dict[str, Any]]:
    """Every object that a reader may copy: of the examples, the pages and the notes of the chart, by its place."""
    notes = (REPOSITORY / "charts" / "edgetune" / "templates" / "NOTES.txt").read_text(encoding="utf-8")
    found = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in OBJECTS}
    found["NOTES.txt"] = re.sub(r"(?m)^.*\{\{.*\n", "", notes.split("<<'YAML'\n")[1].split("YAML\n")[0])
    for path in (REPOSITORY / "README.md", EXAMPLES / "README.md", *(REPOSITORY / "docs").glob("**/*.md")):
        blocks = re.findall(r"^ *```yaml\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        for number, block in enumerate(blocks):
            found[f"{path.relative_to(REPOSITORY).as_posix()} block {number}"] = textwrap.dedent(block)
    documents = {
        f"{place} {number}": document
        for place, text in found.items()
        if f"kind: {names.KIND}" in text
        for number, document in enumerate(yaml.safe_load_all(text))
    }
    return {place: document for place, document in documents.items() if document["kind"] == names.KIND}


def test_every_object_that_a_reader_may_copy_has_a_gate_on_the_score() -> None:
    found = samples()

    assert {place.split(" ")[0] for place in found} >= {"README.md", "docs/operations.md", "NOTES.txt"}
    gates = {place: document["spec"].get("evaluation", {}).get("gates", {}) for place, document in found.items()}
    without = [place for place, each in gates.items() if not Gates.model_validate(each).has_one_on_the_score]
    assert without == []


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_every_overlay_of_the_gitops_example_sets_a_gate_on_the_score(overlay: str) -> None:
    kustomization = EXAMPLES / "gitops" / "overlays" / overlay / "kustomization.yaml"
    (patch,) = yaml.safe_load(kustomization.read_text(encoding="utf-8"))["patches"]

    assert Gates.model_validate(yaml.safe_load(patch["patch"])["spec"]["evaluation"]["gates"]).has_one_on_the_score


@pytest.mark.parametrize("name", GENERATED)
def test_the_committed_rows_are_those_that_the_generator_writes(name: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-I", EXAMPLES / name / "generate_data.py", tmp_path], check=True, timeout=60)
    for file in GENERATED[name]:
        assert (tmp_path / file).read_bytes() == (EXAMPLES / name / file).read_bytes(), f"{file}: run generate_data.py"


def test_every_queue_has_tickets_and_no_ticket_is_in_both_files() -> None:
    def tickets(name: str) -> list[dict[str, str]]:
        with (EXAMPLES / "tickets" / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    train, evaluation = tickets("train.csv"), tickets("eval.csv")
    assert Counter(row["queue"] for row in evaluation) == dict.fromkeys({row["queue"] for row in train}, 18)
    assert not {row["ticket"] for row in train} & {row["ticket"] for row in evaluation}


def test_no_question_about_a_function_is_in_both_files_and_every_call_has_its_function() -> None:
    def questions(name: str) -> set[str]:
        rows = [json.loads(line) for line in (EXAMPLES / "functions" / name).read_text(encoding="utf-8").splitlines()]
        for row in rows:
            functions = {tool["function"]["name"] for tool in row["tools"]}
            assert {call["function"]["name"] for call in row["messages"][1]["tool_calls"]} <= functions
        return {row["messages"][0]["content"] for row in rows}

    assert not questions("train.jsonl") & questions("eval.jsonl")


def test_half_of_the_scored_answers_are_calls() -> None:
    rows = [
        json.loads(line) for line in (EXAMPLES / "functions" / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    ]

    assert Counter("tool_calls" in row["messages"][-1] for row in rows) == {True: 32, False: 32}
