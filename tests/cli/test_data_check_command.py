"""`edgetune data check`: what prepare says about the same data, and an example as it is learned."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgetune_cli.__main__ import app
from support.apiserver import REPOSITORY
from support.base_folder import make_base
from support.data_rows import instruction_rows, jsonl
from support.tiny_tokenizer import CHAT_TEMPLATE
from support.workplace import make_workplace

TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", "check", *arguments], catch_exceptions=False)


def found(*arguments: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(check(*arguments, "-o", "json").stdout)
    return value


def write_object(**dataset: Any) -> None:
    spec = {"baseModel": {"uri": "./base"}, "dataset": {"train": {"uri": "./train.jsonl"}, **dataset}}
    document = {"apiVersion": "edgetune.dev/v1alpha1", "kind": "LoraFineTune", "metadata": {"name": "x"}, "spec": spec}
    Path("object.yaml").write_text(yaml.safe_dump(document | {"spec": {**spec, "training": {"maxLength": 256}}}))


def test_it_says_what_prepare_says_of_the_same_rows(folder: Path) -> None:
    place = make_workplace(folder)
    rows = [*instruction_rows(60), *instruction_rows(2)]
    place.write("train.jsonl", [{**row, "site": "hall 1"} for row in rows])
    prepared, _ = place.run()
    write_object()

    with_tokenizer, without = found("-f", "object.yaml"), found("train.jsonl")

    assert set(with_tokenizer["warnings"]) <= set(prepared.warnings)
    assert any("62 rows" in warning and "'site'" in warning for warning in with_tokenizer["warnings"])
    assert any("2 rows duplicate an earlier row" in warning for warning in without["warnings"])
    assert with_tokenizer["trainRows"] == without["trainRows"] == prepared.metrics["trainExamples"]
    assert with_tokenizer["evalRows"] == without["evalRows"] == prepared.metrics["evalExamples"]
    assert with_tokenizer["tokens"]["total"] == prepared.metrics["trainTokens"]
    assert "tokens" not in without


def test_an_invalid_row_is_reported_as_by_prepare_and_the_exit_code_is_1(folder: Path) -> None:
    place = make_workplace(folder)
    place.write("train.jsonl", [*instruction_rows(3), {"prompt": "Why?", "response": "Because."}])
    refusal = place.refusal()

    done = check("train.jsonl")

    assert (done.exit_code, done.stderr.strip()) == (1, refusal)
    assert "did you mean 'prompt'?" in done.stderr


def test_other_evaluation_data_takes_the_place_of_that_of_the_object(folder: Path) -> None:
    for name, count in (("train", 20), ("eval", 4), ("other", 7)):
        (folder / f"{name}.jsonl").write_text(jsonl(instruction_rows(count)))
    write_object(eval={"uri": "./eval.jsonl"})

    assert found("-f", "object.yaml")["evalRows"] == 4
    assert found("-f", "object.yaml", "--eval", "other.jsonl")["evalRows"] == 7
    assert check("-f", "object.yaml", "--eval", "missing.jsonl").exit_code != 0


def test_a_wrong_path_of_the_base_is_a_warning_and_one_of_the_data_an_error_with_all_that_is_missing(
    folder: Path,
) -> None:
    make_base(folder / "base")
    (folder / "train.jsonl").write_text(jsonl(instruction_rows(20)))
    write_object()
    Path("object.yaml").write_text(Path("object.yaml").read_text().replace("./base", "./bas"))

    without_base = check("-f", "object.yaml")
    as_json = found("-f", "object.yaml")
    Path("object.yaml").write_text(Path("object.yaml").read_text().replace("train.jsonl", "trian.jsonl"))
    without_both = check("-f", "object.yaml")

    no_base = f"spec.baseModel.uri: {folder}/bas does not exist; did you mean 'base'?"
    no_data = f"spec.dataset.train.uri: {folder}/trian.jsonl does not exist; did you mean 'train.jsonl'?"
    assert without_base.exit_code == 0
    assert f"Warning: {no_base}: a run fails here\n" in without_base.stdout
    assert as_json["warnings"][-1] == f"{no_base}: a run fails here"
    assert (without_both.exit_code, without_both.stderr.splitlines()) == (2, [no_base, no_data])


def test_the_example_shows_the_prompt_and_what_is_learned() -> None:
    Path("train.jsonl").write_text(jsonl(instruction_rows(4)))

    done = check("train.jsonl")
    spans = found("train.jsonl")["example"]["spans"]

    assert done.exit_code == 0
    assert spans[0] == {"text": TEMPLATE.format(instruction=instruction_rows(4)[0]["instruction"]), "learned": False}
    assert spans[1] == {"text": instruction_rows(4)[0]["response"], "learned": True}
    assert "\nprompt   ### Instruction:\n" in done.stdout
    assert "\nlearned  Fault: bearing wear 0.\n" in done.stdout


def test_the_tokenizer_of_the_base_adds_what_the_model_really_learns(folder: Path) -> None:
    make_base(folder / "base", chat_template=CHAT_TEMPLATE)
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Then."},
    ]
    Path("train.jsonl").write_text(jsonl([{"messages": messages}, {"messages": messages[:2]}]))
    write_object(format="Chat")

    rendered, plain = found("-f", "object.yaml"), found("train.jsonl", "--format", "Chat")

    learned = [span["text"] for span in rendered["example"]["spans"] if span["learned"]]
    assert [text.split("<")[0].strip() for text in learned] == ["Because.", "Then."]
    assert [span["text"].strip() for span in plain["example"]["spans"] if span["learned"]] == [
        "assistant: Because.",
        "assistant: Then.",
    ]
    assert "without the base model's chat template" in check("train.jsonl", "--format", "Chat").stdout


def test_calls_of_functions_are_shown_without_a_chat_template() -> None:
    call = {"type": "function", "function": {"name": "read_sensor", "arguments": {"machine": "F-41"}}}
    messages = [
        {"role": "user", "content": "Is F-41 too hot?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "108"},
        {"role": "assistant", "content": "Yes."},
    ]
    other = [{"role": "user", "content": "Is F-42 too hot?"}, *messages[1:]]
    Path("train.jsonl").write_text(jsonl([{"messages": messages}, {"messages": other}]))

    shown = check("train.jsonl", "--format", "Chat").stdout

    assert 'learned  assistant: {"name": "read_sensor", "arguments": {"machine": "F-41"}}\n' in shown
    assert "prompt   tool: 108\n" in shown
    assert "learned  assistant: Yes.\n" in shown


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_are_for_terminals_that_want_them(no_color: str, coloured: bool) -> None:
    Path("train.jsonl").write_text(jsonl(instruction_rows(4)))
    command = f"{sys.executable} -m edgetune_cli data check train.jsonl"
    environment = {**os.environ, "TERM": "xterm"} | ({"NO_COLOR": no_color} if no_color else {})

    on_terminal = subprocess.run(
        ["script", "-qec", command, "/dev/null"], env=environment, check=True, capture_output=True, text=True
    )

    failing = subprocess.run(
        ["script", "-qec", f"{command.replace('train', 'missing')}", "/dev/null"],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )

    assert ("\x1b[32m" in on_terminal.stdout) is coloured
    assert ("\x1b[31m" in failing.stdout) is coloured
    assert "\x1b" not in check("train.jsonl").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either FILE (a path or an s3:// URI) or -f FILE.yaml"),
        (("missing.jsonl",), "missing.jsonl does not exist; correct the URI or add the files"),
        (("object.yaml",), "object.yaml is not data; did you mean -f object.yaml?"),
        (("http://host/train.jsonl",), "http://host/train.jsonl is not the address of data"),
        (("train.jsonl", "--model", "missing"), "--model missing: has none of tokenizer.json"),
    ],
)
def test_what_cannot_be_read_is_refused(arguments: tuple[str, ...], message: str) -> None:
    done = check(*arguments)

    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_the_page_shows_what_is_printed_for_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    page = (REPOSITORY / "docs" / "command-line.md").read_text(encoding="utf-8")
    command, _, shown = page.partition("$ edgetune data check ")[2].partition("```")[0].partition("\n")

    assert check(*command.split()).stdout == shown
