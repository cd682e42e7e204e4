"""`kubectl edgetune` without a cluster: kubectl is a script that prints an object and records its arguments."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgetune_cli.kubectl.__main__ import app
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.profiles.gpu_use import Prices
from edgetune_operator.api.profiles.queue import Queue
from edgetune_operator.decisions.reporting.status import dump
from support.builders import lora_fine_tune
from support.scenario import PROFILE, Scenario


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


def with_pods(folder: Path, nodes: int, gpus: int, indexes: tuple[int, ...]) -> None:
    """Let kubectl print Pods of a training, oldest first, for get pods."""
    env = [{"name": "EDGETUNE_NODES", "value": str(nodes)}, {"name": "EDGETUNE_GPUS", "value": str(gpus)}]
    pods = [
        {
            "metadata": {
                "name": f"pod-{number}",
                "creationTimestamp": f"2026-11-24T08:00:0{number}Z",
                "labels": {"batch.kubernetes.io/job-completion-index": str(index)},
            },
            "spec": {"containers": [{"name": "stage", "env": env}]},
        }
        for number, index in enumerate(indexes)
    ]
    (folder / "pods.json").write_text(json.dumps({"items": pods}), encoding="utf-8")
    script = (folder / "kubectl").read_text(encoding="utf-8")
    of_pods = f'#!/bin/sh\n[ "$2" = pods ] && exec cat "{folder}/pods.json"'
    (folder / "kubectl").write_text(script.replace("#!/bin/sh", of_pods), encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--node", "0"], "logs pod-2"),
        (["--node", "1", "-f"], "logs pod-1 --follow"),
        (["--rank", "1"], "logs pod-2"),
        (["--rank", "2"], "logs pod-1"),
        (["--rank", "3", "--node", "1"], "logs pod-1"),
    ],
)
def test_logs_of_a_training_on_several_nodes_are_those_of_the_newest_pod_of_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario, options: list[str], expected: str
) -> None:
    scenario.advance_to(Stage.TRAIN)
    shown(tmp_path, monkeypatch, scenario, dump(scenario.status), "get", "sensor-faults")
    with_pods(tmp_path, 2, 2, (0, 1, 0))

    result = CliRunner().invoke(app, ["logs", "sensor-faults", *options])

    assert result.exit_code == 0, result.output
    assert (tmp_path / "arguments").read_text(encoding="utf-8").strip() == expected


@pytest.mark.parametrize(
    ("options", "indexes", "complaint"),
    [
        (["--node", "2"], (0, 1), "has no Pod on node 2; it has Pods on 0, 1"),
        (["--rank", "4"], (0, 1), "--rank 4: the stage has 4 processes, from 0 to 3"),
        (["--rank", "3", "--node", "0"], (0, 1), "--node 0: process 3 is on node 1; leave out one of the two"),
        (["--rank", "0"], (), "has no Pod left, and with it no log"),
    ],
)
def test_logs_of_a_node_that_is_not_there_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scenario: Scenario,
    options: list[str],
    indexes: tuple[int, ...],
    complaint: str,
) -> None:
    scenario.advance_to(Stage.TRAIN)
    shown(tmp_path, monkeypatch, scenario, dump(scenario.status), "get", "sensor-faults")
    with_pods(tmp_path, 2, 2, indexes)

    result = CliRunner().invoke(app, ["logs", "sensor-faults", *options])

    assert result.exit_code == 1
    assert complaint in result.stderr


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


def test_describe_shows_gpu_time_waste_and_cost_of_the_object_and_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = Scenario(lora_fine_tune(), PROFILE.model_copy(update={"prices": Prices(currency="EUR", gpu_hour=2)}))
    scenario.advance_to(Stage.TRAIN)
    scenario.let_pass(timedelta(hours=1))
    scenario.end_pod(lambda pod: pod.failed(Stage.TRAIN, "d" * 64, ExitCode.TRANSIENT, "the store did not answer"))
    scenario.reconcile()
    scenario.cluster.start_pod(scenario.live_job)
    scenario.let_pass(timedelta(hours=2))
    scenario.finish_all()

    result, _ = shown(tmp_path, monkeypatch, scenario, dump(scenario.status), "describe", "sensor-faults")

    lines = [line.split() for line in result.stdout.splitlines()]
    hours = ["3.00", "h", "1.00", "h", *["0.00", "h"] * 5, "6.01", "EUR"]
    assert ["this", "run", *hours] in lines
    assert ["train,", "profile", "default", *hours] in lines
    assert any(line[-4:] == ["3.00", "h", "6.01", "EUR"] and "Succeeded" in line for line in lines)


@pytest.mark.parametrize("command", [("get",), ("get", "sensor-faults"), ("describe", "sensor-faults")])
@pytest.mark.parametrize("output", ["json", "yaml"])
def test_an_object_is_printed_whole_as_json_and_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario, command: tuple[str, ...], output: str
) -> None:
    scenario.finish_all()

    result, _ = shown(tmp_path, monkeypatch, scenario, dump(scenario.status), *command, "-o", output)

    assert yaml.safe_load(result.stdout) == json.loads((tmp_path / "object.json").read_text(encoding="utf-8"))


def test_with_verbose_the_calls_of_kubectl_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario
) -> None:
    result, _ = shown(tmp_path, monkeypatch, scenario, dump(scenario.status), "get", "-n", "team-a", "-v")

    assert result.stderr == "kubectl get lorafinetunes.edgetune.dev --namespace=team-a -o json\n"


def test_a_watch_prints_a_line_for_each_change_of_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario
) -> None:
    scenario.advance_to(Stage.TRAIN)
    states = [scenario.builder.with_status(dump(scenario.status)).build()]
    scenario.reconcile()
    states += [states[0], scenario.builder.with_status(dump(scenario.status)).build()]
    scenario.finish_all()
    states.append(scenario.builder.with_status(dump(scenario.status)).build())
    (tmp_path / "changes").write_text("\n".join(json.dumps(each, indent=4) for each in states), encoding="utf-8")
    (tmp_path / "list.json").write_text(json.dumps({"items": states[:1]}), encoding="utf-8")
    kubectl = tmp_path / "kubectl"
    # After the changes, the API server ends the watch, and then the object is gone.
    kubectl.write_text(
        f'#!/bin/sh\ncase "$*" in *--watch*) cat "{tmp_path}/changes"; rm "{tmp_path}/list.json";; '
        f'*) cat "{tmp_path}/list.json";; esac\n',
        encoding="utf-8",
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    result = CliRunner().invoke(app, ["get", "--watch"])

    lines = result.stdout.splitlines()
    assert len(lines) == len(set(lines)) >= 2
    assert lines[0].startswith("team-a/sensor-faults: Training: ")
    assert lines[-1].startswith("team-a/sensor-faults: Succeeded: ")


PENDING = {
    "items": [
        {"metadata": {"ownerReferences": [{"name": "other"}]}, "positionInLocalQueue": 0, "positionInClusterQueue": 0},
        {"metadata": {"ownerReferences": [{"name": "JOB"}]}, "positionInLocalQueue": 1, "positionInClusterQueue": 4},
    ]
}


@pytest.mark.parametrize(
    ("answer", "position"),
    [
        (f"echo '{json.dumps(PENDING)}'", "2 in queue gpu, 5 in its ClusterQueue"),
        ("echo '{\"items\": []}'", "train does not wait in queue gpu at the moment"),
        ("echo 'Error: forbidden' >&2; exit 1", "not visible: Error: forbidden"),
    ],
)
def test_the_position_of_a_waiting_stage_is_asked_with_the_users_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario, answer: str, position: str
) -> None:
    scenario.profiles = {"default": PROFILE.model_copy(update={"queue": Queue(name="gpu")})}
    scenario.advance_to(Stage.TRAIN)
    job = scenario.live_job
    (tmp_path / "object.json").write_text(json.dumps(scenario.builder.build()), encoding="utf-8")
    (tmp_path / "job.json").write_text(json.dumps(scenario.cluster.jobs[job]), encoding="utf-8")
    (tmp_path / "raw").write_text(answer.replace("JOB", job), encoding="utf-8")
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!/bin/sh\necho "$@" >> "{tmp_path}/arguments"\ncase "$2" in\n'
        f'job) cat "{tmp_path}/job.json";;\n--raw) . "{tmp_path}/raw";;\n*) cat "{tmp_path}/object.json";;\nesac\n',
        encoding="utf-8",
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    result = CliRunner().invoke(app, ["describe", "sensor-faults", "-n", "team-a", "--context", "mine"])

    assert result.exit_code == 0
    assert f"Position in the queue: {position}" in result.stdout
    asked = (tmp_path / "arguments").read_text(encoding="utf-8")
    path = "/apis/visibility.kueue.x-k8s.io/v1beta2/namespaces/team-a/localqueues/gpu/pendingworkloads"
    assert f"get --raw {path} --context=mine\n" in asked


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
