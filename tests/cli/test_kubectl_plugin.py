"""`kubectl edgetune` without a cluster: kubectl is a script that prints an object and records its arguments."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from edgetune_cli.kubectl import app
from edgetune_contract.stages import Stage
from edgetune_operator.decisions.reporting.status import dump
from support.builders import lora_fine_tune
from support.scenario import Scenario


@pytest.fixture
def scenario() -> Scenario:
    return Scenario(lora_fine_tune())


def shown(
    folder: Path, patch: pytest.MonkeyPatch, scenario: Scenario, status: dict[str, Any], *arguments: str
) -> tuple[Result, str]:
    """The plugin's result for the scenario's object with this status, and the arguments of its last kubectl call."""
    (folder / "object.json").write_text(json.dumps(scenario.builder.with_status(status).build()), encoding="utf-8")
    kubectl = folder / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" > "{folder}/arguments"\ncat "{folder}/object.json"\n', encoding="utf-8")
    kubectl.chmod(0o755)
    patch.setenv("COLUMNS", "250")
    patch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    result = CliRunner().invoke(app, list(arguments))
    return result, (folder / "arguments").read_text(encoding="utf-8").strip()


def test_logs_are_those_of_the_running_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario
) -> None:
    scenario.finish_all()
    scenario.change(scenario.builder.with_retry_requested("look"))
    scenario.reconcile()
    scenario.reconcile()

    _, arguments = shown(tmp_path, monkeypatch, scenario, dump(scenario.status), "logs", "sensor-faults", "-f")

    assert arguments == f"logs job/{scenario.live_job} --follow"


def test_logs_are_those_of_the_stage_that_started_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario
) -> None:
    scenario.finish_all()
    scenario.change(scenario.builder.with_retry_requested("look"))
    scenario.reconcile()
    scenario.finish_all()
    prepare = scenario.row(Stage.PREPARE).job

    access = ("--context", "other", "--kubeconfig", "here", "-n", "team-a")
    _, arguments = shown(tmp_path, monkeypatch, scenario, dump(scenario.status), "logs", "sensor-faults", *access)

    assert arguments == f"logs job/{prepare} --namespace=team-a --context=other --kubeconfig=here"


def test_a_stage_that_has_not_run_has_no_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario
) -> None:
    status = dump(scenario.status)
    of_train, _ = shown(tmp_path, monkeypatch, scenario, status, "logs", "sensor-faults", "--stage", "train")
    of_any, _ = shown(tmp_path, monkeypatch, scenario, status, "logs", "sensor-faults")

    assert of_train.stderr.strip() == "sensor-faults: stage train has not run yet"
    assert of_any.stderr.strip() == "sensor-faults: no stage has run yet"
    assert (of_train.exit_code, of_any.exit_code) == (1, 1)


def test_a_status_of_another_version_is_shown_without_the_fields_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario
) -> None:
    scenario.finish_all()
    status = dump(scenario.status) | {"energy": {"joules": 5}}
    status["scores"] = {**status["scores"], "fluency": 0.9}

    result, _ = shown(tmp_path, monkeypatch, scenario, status, "get", "sensor-faults")

    assert result.exit_code == 0
    assert "Succeeded" in result.stdout
    assert result.stderr.strip() == (
        "team-a/sensor-faults: another version of the operator wrote this status; fields that this plugin cannot read "
        "are not shown: energy, scores"
    )


HOSTILE = "\x1b]0;title\x07\x9b31m\u202egnp.exe"
SHOWN = "\\u001b]0;title\\u0007\\u009b31m\\u202egnp.exe"


@pytest.mark.parametrize("command", [("get",), ("describe", "sensor-faults"), ("logs", "sensor-faults")])
def test_nothing_that_a_terminal_obeys_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario, command: tuple[str, ...]
) -> None:
    """Neither from a status that anyone may have written, nor from what kubectl prints: Events and logs."""
    scenario.finish_all()
    status = dump(scenario.status)
    status["warnings"] = [HOSTILE]
    for condition in status["conditions"]:
        condition["message"] = HOSTILE
    status["artifacts"][0]["uri"] = f"s3://models/{HOSTILE}"

    result, _ = shown(tmp_path, monkeypatch, scenario, status, *command)

    assert result.exit_code == 0
    assert not set(result.output) & set("\x1b\x07\x9b\u202e")
    assert SHOWN in result.output or command[0] == "logs"
