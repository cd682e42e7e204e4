"""`edgetune validate`: every problem of every LoraFineTune in files, folders and standard input."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgetune_cli.__main__ import app

VALID = """apiVersion: edgetune.dev/v1alpha1
kind: LoraFineTune
metadata: {name: good}
spec:
  baseModel: {uri: ./base}
  dataset: {train: {uri: ./train.jsonl}}
"""
INVALID = VALID.replace("name: good", "name: bad, namespace: team-a") + "  lora:\n    alpha: 2\n    rank: 0\n"
SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n"
RANK = "spec.lora.rank: input should be greater than or equal to 1, is 0"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def validate(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(app, ["validate", *arguments], input=given, catch_exceptions=False)


def write(path: str, *documents: str) -> None:
    """Write a file, and beside it the base and the data that its objects name."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).with_name("base").mkdir(exist_ok=True)
    Path(path).with_name("train.jsonl").touch()
    Path(path).write_text("---\n".join(documents))


def test_each_of_several_files_is_checked() -> None:
    """An invalid file before a valid one was not read at all."""
    write("bad.yaml", INVALID)
    write("good.yaml", VALID)

    done = validate("-f", "bad.yaml", "-f", "good.yaml")

    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        f"bad.yaml:9: team-a/bad: {RANK}",
        "good.yaml:1: LoraFineTune good is valid",
        "1 valid, 1 invalid",
    ]


def test_all_documents_of_a_folder_and_its_folders_are_checked_and_other_kinds_are_counted() -> None:
    write("recipes/a.yaml", SERVICE, VALID, "# only a comment\n", INVALID)
    write("recipes/deeper/b.yml", VALID.replace("good", "deep"))
    write("recipes/deeper/c.json", json.dumps({"kind": "Service"}))
    write("recipes/.hidden/d.yaml", INVALID)
    write("recipes/notes.txt", "LoraFineTune")

    done = validate("-f", "recipes")

    assert done.stdout.splitlines() == [
        "recipes/a.yaml:5: LoraFineTune good is valid",
        f"recipes/a.yaml:22: team-a/bad: {RANK}",
        "recipes/deeper/b.yml:1: LoraFineTune deep is valid",
        "2 valid, 1 invalid, 2 documents of other kinds skipped",
    ]


def test_standard_input_and_lists_are_read() -> None:
    write("other.yaml", SERVICE)
    items = "apiVersion: v1\nkind: List\nitems:\n- " + INVALID.replace("\n", "\n  ").strip() + "\n- {kind: Service}\n"

    done = validate("-f", "-", given=items)

    assert done.stdout.splitlines() == [
        f"stdin:12: team-a/bad: {RANK}",
        "0 valid, 1 invalid, 1 document of other kinds skipped",
    ]


@pytest.mark.parametrize(
    ("edit", "line", "message"),
    [
        (("kind: LoraFineTune", "kind: LoraFinetune"), 2, "kind: must be LoraFineTune, is 'LoraFinetune'"),
        (("edgetune.dev/v1alpha1", "edgetune/v1"), 1, "apiVersion: must be edgetune.dev/v1alpha1, is 'edgetune/v1'"),
        (
            ("{name: good}", "\n  name: good\n  annotations:\n    edgetune.dev/retry-requested: 3"),
            6,
            "metadata.annotations.edgetune.dev/retry-requested: must be a string, is 3: put it in quotes",
        ),
        (("{name: good}", "{name: good, labels: {a: yes}}"), 3, "metadata.labels.a: must be a string, is True"),
        (("  baseModel: {uri: ./base}\n", ""), 4, "spec.baseModel: is required"),
    ],
)
def test_a_problem_has_the_line_of_its_field(edit: tuple[str, str], line: int, message: str) -> None:
    write("a.yaml", VALID.replace(*edit))

    done = validate("-f", "a.yaml")

    assert done.exit_code == 1
    assert done.stdout.startswith(f"a.yaml:{line}: good: {message}")


def test_yaml_that_cannot_be_read_is_a_problem_of_its_line_and_the_other_documents_are_checked() -> None:
    write("a.yaml", VALID, "kind: LoraFineTune\nspec: {\n", VALID + "  retryLimit: 1\n  retryLimit: 2\n")

    done = validate("-f", "a.yaml")

    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "a.yaml:1: LoraFineTune good is valid"
    assert lines[1].startswith("a.yaml:10: is not valid YAML: ")
    assert lines[2] == "a.yaml:18: is not valid YAML: duplicate key 'retryLimit'"
    assert lines[3] == "1 valid, 0 invalid, 2 unreadable"


def test_templates_of_other_kinds_are_skipped_without_being_parsed() -> None:
    write("a.yaml", VALID, "kind: Service\n{{- if .Values.x }}\n")

    done = validate("-f", "a.yaml")

    assert (done.exit_code, "1 document of other kinds skipped" in done.stdout) == (0, True)


def test_json_has_every_object_with_its_problems() -> None:
    write("a.yaml", SERVICE, VALID, INVALID)

    found = json.loads(validate("-f", "a.yaml", "-o", "json").stdout)

    assert [(each["namespace"], each["name"], each["valid"]) for each in found["objects"]] == [
        ("default", "good", True),
        ("team-a", "bad", False),
    ]
    assert found["objects"][1]["problems"] == [
        {"line": 20, "path": "spec.lora.rank", "message": "input should be greater than or equal to 1, is 0"}
    ]
    assert (found["unreadable"], found["skipped"]) == ([], 1)


def test_github_gets_an_annotation_for_each_problem() -> None:
    write("a,b.yaml", INVALID.replace("rank: 0", "50%: 1"))

    done = validate("-f", "a,b.yaml", "-o", "github")

    assert done.stdout.splitlines() == [
        "::error file=a%2Cb.yaml,line=9::team-a/bad: spec.lora.50%25: unknown field",
        "0 valid, 1 invalid",
    ]


def test_no_name_begins_a_line_which_a_workflow_would_obey() -> None:
    text = INVALID.replace("{name: bad, namespace: team-a}", '{name: "\\n::add-mask::x"}')
    write("a\n::b.yaml", text)

    for output in ("text", "github"):
        done = validate("-f", "a\n::b.yaml", "-o", output)
        *problems, summary = done.stdout.splitlines()
        begin = "a\\n::b.yaml:" if output == "text" else "::error file=a%0A%3A%3Ab.yaml,line="
        assert [line[: len(begin)] for line in problems] == [begin] * 2
        assert summary == "0 valid, 1 invalid"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-f", "missing.yaml"), "missing.yaml: No such file or directory"),
        (("-f", "service.yaml", "-f", "empty"), "service.yaml, empty: no LoraFineTune among 1 document"),
        (("-f", "latin.yaml"), "latin.yaml: is not valid UTF-8 at byte 6"),
    ],
)
def test_what_cannot_be_checked_is_no_success(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    write("service.yaml", SERVICE)
    (folder / "empty").mkdir()
    (folder / "latin.yaml").write_bytes(b"name: \xff")

    done = validate(*arguments)

    assert (done.exit_code, done.stderr.strip()) == (2, message)


def test_a_path_with_nothing_behind_it_is_a_warning_with_its_line() -> None:
    write("a.yaml", VALID.replace("train.jsonl", "trian.jsonl"))

    done = validate("-f", "a.yaml")
    as_json = json.loads(validate("-f", "a.yaml", "-o", "json").stdout)
    on_github = validate("-f", "a.yaml", "-o", "github").stdout

    message = f"{Path.cwd()}/trian.jsonl does not exist; did you mean 'train.jsonl'?"
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "a.yaml:1: LoraFineTune good is valid",
        f"a.yaml:6: warning: good: spec.dataset.train.uri: {message}",
        "1 valid, 0 invalid",
    ]
    assert as_json["objects"][0]["warnings"] == [{"line": 6, "path": "spec.dataset.train.uri", "message": message}]
    assert on_github.startswith("::warning file=a.yaml,line=6::good: spec.dataset.train.uri: ")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("  baseModel", "  epochs: 2\n  baseModel"), "spec.epochs: unknown field; did you mean spec.training.epochs?"),
        (("  baseModel", "  lora: {Rank: 4}\n  baseModel"), "spec.lora.Rank: unknown field; did you mean 'rank'?"),
        (
            ("  baseModel", "  training: {learning_rate: 1}\n  baseModel"),
            "spec.training.learning_rate: unknown field; did you mean 'learningRate'?",
        ),
        (("  baseModel", "  method: qlora\n  baseModel"), "is 'qlora'; did you mean 'QLoRA'?"),
        (("  baseModel", "  quantization: {formats: [GGUF-Q8]}\n  baseModel"), "did you mean 'GGUF-Q8_0'?"),
        (("  baseModel", "  lora: {targetModules: Standart}\n  baseModel"), "did you mean 'Standard'?"),
        (("metadata", "metdata"), "metdata: unknown field; did you mean 'metadata'?"),
        (("{name: good}", "{name: good, lables: {}}"), "metadata.lables: unknown field; did you mean 'labels'?"),
    ],
)
def test_an_unknown_field_or_value_has_the_one_that_was_probably_meant(edit: tuple[str, str], message: str) -> None:
    write("a.yaml", VALID.replace(*edit))

    assert message in validate("-f", "a.yaml").stdout


def test_a_model_of_the_hub_without_a_revision_is_explained_with_the_command_that_finds_it() -> None:
    write("a.yaml", VALID.replace("./base", "hf://organization/name"))

    assert "`edgetune digest URI` prints it" in validate("-f", "a.yaml").stdout


def test_yaml_has_the_same_as_json() -> None:
    write("a.yaml", VALID, INVALID)

    found = validate("-f", "a.yaml", "-o", "yaml").stdout

    assert yaml.safe_load(found) == json.loads(validate("-f", "a.yaml", "-o", "json").stdout)
