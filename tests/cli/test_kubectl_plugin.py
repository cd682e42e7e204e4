"""`kubectl edgetune` where no cluster is needed: kubectl is a script that prints an object and keeps its arguments."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from edgetune_cli.kubectl import app
from edgetune_contract.stages import Stage
from edgetune_operator.decisions.status import dump
from support.builders import lora_fine_tune
from support.scenario import Scenario


@pytest.fixture
def scenario() -> Scenario:
    return Scenario(lora_fine_tune())


def shown(
    folder: Path, patch: pytest.MonkeyPatch, scenario: Scenario, status: dict[str, Any], *arguments: str
) -> tuple[Result, str]:
    """What the plugin prints for the scenario's object with this status, and kubectl's last arguments."""
    (folder / "object.json").write_text(json.dumps(scenario.builder.with_status(status).build()), encoding="utf-8")
    kubectl = folder / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" > "{folder}/arguments"\ncat "{folder}/object.json"\n', encoding="utf-8")
    kubectl.chmod(0o755)
    patch.setenv("COLUMNS", "250")
    patch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    result = CliRunner().invoke(app, list(arguments))
    return result, (folder / "arguments").read_text(encoding="utf-8").strip()


def test_logs_are_those_of_the_stage_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario
) -> None:
    scenario.finish_all()
    scenario.change(scenario.builder.with_retry_requested("look"))
    scenario.reconcile()
    scenario.reconcile()

    _, arguments = shown(tmp_path, monkeypatch, scenario, dump(scenario.status), "logs", "sensor-faults", "-f")

    assert arguments == f"logs job/{scenario.live_job} --follow"


def test_logs_are_those_of_the_stage_that_was_started_last(
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


def test_a_status_of_another_version_is_shown_as_far_as_it_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario
) -> None:
    scenario.finish_all()
    status = dump(scenario.status) | {"energy": {"joules": 5}}
    status["scores"] = {**status["scores"], "fluency": 0.9}

    result, _ = shown(tmp_path, monkeypatch, scenario, status, "get", "sensor-faults")

    assert result.exit_code == 0
    assert "Succeeded" in result.stdout
    assert result.stderr.strip() == (
        "team-a/sensor-faults: another version of the operator wrote this status; left out is what this plugin cannot "
        "read: energy, scores"
    )
