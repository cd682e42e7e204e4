"""Two operator processes over the same objects, on a real API server: one reconciles them, the other waits."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import ControlPlane
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from support.kube import Kube
from support.operator_process import OperatorProcess, free_ports, running_operator
from support.probes import ask
from support.stage_player import PROFILES, Operator, StagePlayer

pytestmark = pytest.mark.slow

LEASE = ("coordination.k8s.io/v1", "Lease", "kube-system", names.CLUSTER_LEASE)
_LIMIT_SECONDS = 60


@dataclass(frozen=True)
class Process:
    """An operator, with its ports."""

    running: OperatorProcess
    health: int
    metrics: int

    @property
    def log(self) -> str:
        return self.running.log.read_text(encoding="utf-8")

    def wait_for_readyz(self, start: str) -> str:
        """The response of /readyz, once it starts with a text."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not (text := ask(self.health, "/readyz")[1]).startswith(start):
            assert time.monotonic() < deadline, f"/readyz says {text!r}, not {start!r}; {self.log}"
            time.sleep(0.1)
        return text

    def metric(self, name: str) -> list[str]:
        """Lines of /metrics with a metric's values."""
        return [line for line in ask(self.metrics, "/metrics")[1].splitlines() if line.startswith(name)]


class Platform:
    """Starts operators on a control plane."""

    def __init__(self, folder: Path, plane: ControlPlane, stack: ExitStack) -> None:
        self._folder = folder
        self._plane = plane
        self._stack = stack

    def start(self, identity: str, profiles: Mapping[str, Any] = PROFILES) -> Process:
        """An operator that runs until it is stopped or the test ends."""
        folder = self._folder / identity.replace("/", "-")
        folder.mkdir()
        health, metrics = free_ports(2)
        ports = f"--health-port={health}", f"--metrics-port={metrics}"
        arguments = f"--identity={identity}", "--lease-seconds=3", *ports
        running = running_operator(folder, self._plane.kubeconfig(), profiles, *arguments)
        return Process(self._stack.enter_context(running), health, metrics)


@pytest.fixture
def platform(
    player: StagePlayer, control_plane: ControlPlane, operator: Operator, tmp_path: Path
) -> Iterator[Platform]:
    """The control plane of `player`, without the operator of the other tests."""
    assert player.namespace
    operator.stop()
    with ExitStack() as stack:
        yield Platform(tmp_path, control_plane, stack)


def holder(kube: Kube) -> str:
    """Who holds the Lease of the whole cluster."""
    lease = kube.get(*LEASE)
    return str(lease["spec"].get("holderIdentity", "")) if lease is not None else ""


def test_a_second_release_waits_and_says_so(platform: Platform, player: StagePlayer) -> None:
    """It does not know the profile: it would remove the finalizer and stall the object, and the first one undo that."""
    first = platform.start("platform/edgetune/pod-1")
    first.wait_for_readyz("ready")
    second = platform.start("other/edgetune/pod-1", {})
    waiting = second.wait_for_readyz("not ready: waiting for the whole cluster")
    player.apply(deletionPolicy="Delete")
    player.finish(Stage.PREPARE)
    player.live_pod(Stage.TRAIN)
    player.kube.delete(names.API_VERSION, names.KIND, player.namespace, "sensor-faults")
    player.wait_for_condition("CleanedUp", "CleaningUp")

    assert "another release, platform/edgetune, reconciles it" in waiting
    assert waiting.removeprefix("not ready: ") in second.log
    assert second.metric("edgetune_scopes_of_others") == ["edgetune_scopes_of_others 1.0"]
    assert second.metric("edgetune_leases_held") == ["edgetune_leases_held 0.0"]
    assert second.metric("edgetune_api_writes_total") == []
    assert first.metric("edgetune_leases_held") == ["edgetune_leases_held 1.0"]
    assert player.object["metadata"]["finalizers"] == [names.FINALIZER]


def test_a_standby_takes_over_from_a_killed_leader_and_at_once_from_one_that_stops(
    platform: Platform, player: StagePlayer
) -> None:
    first = platform.start("platform/edgetune/pod-1")
    first.wait_for_readyz("ready")
    second = platform.start("platform/edgetune/pod-2")
    second.wait_for_readyz("ready")
    player.apply()
    player.finish(Stage.PREPARE)
    player.live_pod(Stage.TRAIN)
    assert holder(player.kube) == "platform/edgetune/pod-1"
    assert second.metric("edgetune_api_writes_total") == []

    first.running.process.kill()
    player.finish(Stage.TRAIN)
    player.live_pod(Stage.MERGE)
    assert holder(player.kube) == "platform/edgetune/pod-2"

    third = platform.start("platform/edgetune/pod-3")
    third.wait_for_readyz("ready")
    second.running.process.terminate()
    second.running.process.wait()
    # A Lease that nobody released would have kept the name.
    assert holder(player.kube) != "platform/edgetune/pod-2"
    player.finish(Stage.MERGE)
    player.live_pod(Stage.QUANTIZE)

    assert holder(player.kube) == "platform/edgetune/pod-3"
