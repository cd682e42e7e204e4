"""What installers and tools see: readiness of the operator, columns, statuses to wait for."""

import time
from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import ControlPlane, Listeners, stop_control_plane
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.generate.crd import custom_resource_definition
from support.apiserver import BINARIES, BINARIES_VARIABLE, binaries_are_there
from support.kstatus import KStatus, kstatus
from support.kube import Kube
from support.operator_process import free_ports, running_operator
from support.probes import ask
from support.stage_player import OBJECT, Operator, StagePlayer

pytestmark = pytest.mark.slow

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


def wait_for_readyz(port: int, start: str, log: Path) -> None:
    """Wait until the response of /readyz starts with a text."""
    deadline = time.monotonic() + 90
    while not (text := ask(port, "/readyz")[1]).startswith(start):
        assert time.monotonic() < deadline, f"/readyz says {text!r}, not {start!r}; {log.read_text(encoding='utf-8')}"
        time.sleep(0.1)


def test_an_operator_is_ready_only_while_an_api_server_serves_the_crd(tmp_path: Path) -> None:
    """The operator watches one namespace: then Kopf itself does not discover a CRD that is installed later."""
    if not binaries_are_there():
        pytest.skip(f"no {' and '.join(BINARIES)} in ${BINARIES_VARIABLE} or the cache: the operator cannot run")
    plane = ControlPlane(tmp_path / "plane", Listeners.on_loopback())
    plane.prepare()
    health, metrics = free_ports(2)
    arguments = ("--namespace=default", "--health-port", str(health), "--metrics-port", str(metrics))
    profiles = {"default": {"store": {"uri": "s3://artifacts/edgetune"}}}
    try:
        with running_operator(tmp_path, plane.kubeconfig(), profiles, *arguments) as operator:
            wait_for_readyz(health, "not ready: the API server does not answer", operator.log)
            plane.start_api_server()
            wait_for_readyz(
                health,
                "not ready: the API server does not serve lorafinetunes.edgetune.dev; install the CRD: `helm upgrade` "
                "with crd.install=true, or `kubectl apply -f crds/lorafinetunes.edgetune.dev.yaml` from the operator's "
                "repository",
                operator.log,
            )
            assert ask(health, "/healthz")[0] == 200
            Kube.from_kubeconfig(plane.kubeconfig()).apply(custom_resource_definition())
            wait_for_readyz(health, "ready", operator.log)
            player = StagePlayer(Kube.from_kubeconfig(plane.kubeconfig()), "default")
            player.apply()
            player.wait_for_phase("Preparing")
            assert ask(health, "/readyz") == (200, "ready")
            plane.stop_api_server()
            wait_for_readyz(health, "not ready: the API server does not answer", operator.log)
            assert ask(health, "/healthz")[0] == 200
            plane.start_api_server()
            wait_for_readyz(health, "ready", operator.log)
    finally:
        stop_control_plane(plane.folder)


def columns(player: StagePlayer, *wanted: str) -> dict[str, Any]:
    """Cells of `kubectl get lft`."""
    table = player.kube.request("GET", player.kube.path(*OBJECT, player.namespace), accept=TABLE).body
    titles = [column["name"] for column in table["columnDefinitions"]]
    (row,) = table["rows"]
    cells = dict(zip(titles, row["cells"], strict=True))
    return {title: cells[title] for title in wanted}


def test_kubectl_get_shows_phase_progress_scores_and_sizes(player: StagePlayer) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    player.wait_for_phase("Training")
    training = columns(player, "Name", "Phase", "Base", "Edge-size")
    player.finish_from(Stage.TRAIN)
    player.wait_for_phase("Succeeded")

    assert training == {"Name": "sensor-faults", "Phase": "Training", "Base": "", "Edge-size": ""}
    assert columns(player, "Phase", "Progress", "Base", "Tuned", "Edge", "Adapter", "Edge-size") == {
        "Phase": "Succeeded",
        "Progress": "",
        "Base": "5.0%",
        "Tuned": "95.0%",
        "Edge": "94.0%",
        "Adapter": "500 B",
        "Edge-size": "500 B",
    }


def test_kubectl_get_says_why_a_run_has_failed(player: StagePlayer) -> None:
    player.apply()
    player.fail(Stage.PREPARE, ExitCode.INVALID, "line 7: no response")
    player.wait_for_phase("Failed")

    assert columns(player, "Phase", "Progress") == {"Phase": "Failed", "Progress": "InvalidInput"}


def test_kstatus_never_reads_an_object_as_current_before_its_run_has_ended(
    player: StagePlayer, operator: Operator
) -> None:
    operator.stop()
    player.apply()
    running = [kstatus(player.object)]
    operator.start()
    for stage in Stage:
        player.live_pod(stage)
        running.append(kstatus(player.object))
        player.finish(stage)
    player.wait_for_phase("Succeeded")
    ended = kstatus(player.object)

    player.apply(lora={"rank": 8})
    edited = kstatus(player.object)
    player.finish(Stage.PREPARE)
    player.fail(Stage.TRAIN, ExitCode.DIVERGED, "the loss is not finite")
    player.wait_for_phase("Failed")

    assert set(running) == {KStatus.IN_PROGRESS}
    assert (ended, edited, kstatus(player.object)) == (KStatus.CURRENT, KStatus.IN_PROGRESS, KStatus.FAILED)
    assert player.object["status"]["observedGeneration"] == 2
