"""Two operator processes over the same objects, on a real API server: one reconciles them, the other waits."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgetune_operator.api import names
from support.apiserver import ApiServer
from support.builders import lora_fine_tune
from support.kube import condition
from support.operator_process import OperatorProcess, free_ports, running_operator
from support.probes import ask
from support.stage_player import OBJECT, PROFILES

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

    def wait_for_log(self, text: str) -> None:
        """Wait until the log has a text."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while text not in self.log:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def metric(self, name: str) -> list[str]:
        """Lines of /metrics with a metric's values."""
        return [line for line in ask(self.metrics, "/metrics")[1].splitlines() if line.startswith(name)]


class Platform:
    """Starts operators on an API server without controllers, and applies objects in a namespace of the test's own."""

    def __init__(self, folder: Path, kube: ApiServer, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.kube = kube
        self.namespace = f"team-{secrets.token_hex(4)}"
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})

    def start(self, identity: str, profiles: Mapping[str, Any] = PROFILES, *arguments: str) -> Process:
        """An operator that runs until it is stopped or the test ends."""
        folder = self._folder / identity.replace("/", "-")
        folder.mkdir()
        health, metrics = free_ports(2)
        ports = f"--health-port={health}", f"--metrics-port={metrics}"
        lease = f"--identity={identity}", "--lease-seconds=3"
        running = running_operator(folder, self.kube.kubeconfig, profiles, *lease, *ports, *arguments)
        return Process(self._stack.enter_context(running), health, metrics)

    def apply(self, name: str, **spec: Any) -> None:
        document = lora_fine_tune().build()["spec"] | spec
        metadata = {"name": name, "namespace": self.namespace}
        self.kube.apply({"apiVersion": OBJECT[0], "kind": OBJECT[1], "metadata": metadata, "spec": document})

    def wait(self, name: str, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        return self.kube.wait(*OBJECT, self.namespace, name, holds, what, _LIMIT_SECONDS)

    def wait_until_reconciled(self, name: str) -> None:
        """Wait until an operator has created the object's first Job and reported it."""
        self.wait(name, lambda found: (found.get("status") or {}).get("phase") == "Preparing", "it has a Job")

    @property
    def holder(self) -> str:
        """Who holds the Lease of the whole cluster."""
        lease = self.kube.get(*LEASE)
        return str(lease["spec"].get("holderIdentity", "")) if lease is not None else ""


@pytest.fixture
def platform(apiserver: ApiServer, tmp_path: Path) -> Iterator[Platform]:
    """An API server without an operator."""
    with ExitStack() as stack:
        yield Platform(tmp_path, apiserver, stack)


def test_a_second_release_waits_and_says_so(platform: Platform) -> None:
    """It does not know the profile: it would remove the finalizer and stall the object, and the first one undo that."""
    first = platform.start("platform/edgetune/pod-1")
    first.wait_for_readyz("ready")
    second = platform.start("other/edgetune/pod-1", {})
    waiting = second.wait_for_readyz("not ready: waiting for the whole cluster")
    platform.apply("model", deletionPolicy="Delete")
    platform.wait_until_reconciled("model")
    platform.kube.delete(*OBJECT, platform.namespace, "model")
    deleted = platform.wait("model", lambda found: condition(found, "CleanedUp") is not None, "it is being deleted")

    assert (condition(deleted, "CleanedUp") or {})["reason"] == "CleaningUp"
    assert deleted["metadata"]["finalizers"] == [names.FINALIZER]
    assert "another release, platform/edgetune, reconciles it" in waiting
    assert waiting.removeprefix("not ready: ") in second.log
    assert second.metric("edgetune_scopes_of_others") == ["edgetune_scopes_of_others 1.0"]
    assert second.metric("edgetune_leases_held") == ["edgetune_leases_held 0.0"]
    assert second.metric("edgetune_api_writes_total") == []
    assert first.metric("edgetune_leases_held") == ["edgetune_leases_held 1.0"]


def test_a_standby_takes_over_from_a_killed_leader_and_at_once_from_one_that_stops(platform: Platform) -> None:
    first = platform.start("platform/edgetune/pod-1")
    first.wait_for_readyz("ready")
    second = platform.start("platform/edgetune/pod-2")
    second.wait_for_readyz("ready")
    platform.apply("one")
    platform.wait_until_reconciled("one")
    assert platform.holder == "platform/edgetune/pod-1"
    assert second.metric("edgetune_api_writes_total") == []

    first.running.process.kill()
    platform.apply("two")
    platform.wait_until_reconciled("two")
    assert platform.holder == "platform/edgetune/pod-2"

    third = platform.start("platform/edgetune/pod-3")
    third.wait_for_readyz("ready")
    second.running.process.terminate()
    second.running.process.wait()
    # A Lease that nobody released would have kept the name.
    assert platform.holder != "platform/edgetune/pod-2"
    platform.apply("three")
    platform.wait_until_reconciled("three")

    assert platform.holder == "platform/edgetune/pod-3"


def test_an_operator_of_all_namespaces_leaves_a_namespace_to_the_release_that_watches_only_this_one(
    platform: Platform,
) -> None:
    everywhere = platform.start("platform/edgetune/pod-1")
    everywhere.wait_for_readyz("ready")
    special = {"special": PROFILES["default"]}
    one = platform.start("team/edgetune/pod-1", special, f"--namespace={platform.namespace}")
    one.wait_for_readyz("ready")
    message = f"namespace {platform.namespace} is left to team/edgetune/pod-1"
    everywhere.wait_for_log(message)
    platform.apply("model", profile="special")
    platform.wait_until_reconciled("model")

    assert everywhere.metric("edgetune_scopes_of_others") == ["edgetune_scopes_of_others 1.0"]
    created = 'edgetune_api_writes_total{resource="jobs",verb="post"}'
    assert one.metric(created) == [f"{created} 1.0"]
