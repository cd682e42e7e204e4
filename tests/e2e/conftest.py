"""A real cluster for the tests of this folder: `make e2e` starts it and runs them in its network."""

import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import object_store, playground
from cluster.folders import RunFolder
from edgetune_jobs.s3_client import Credentials
from support.kube import Kube
from support.versitygw import S3Server

_durations = pytest.StashKey[list[tuple[str, float]]]()


class Durations:
    """How long the parts of a test took; shown when all tests are done."""

    def __init__(self, entries: list[tuple[str, float]]) -> None:
        self._entries = entries

    def add(self, what: str, seconds: float) -> None:
        self._entries.append((what, seconds))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_durations] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_durations]:
        terminalreporter.section("how long it took")
    for what, seconds in config.stash[_durations]:
        terminalreporter.write_line(f"{seconds:8.1f} s  {what}")


@pytest.fixture(scope="session")
def durations(pytestconfig: pytest.Config) -> Durations:
    return Durations(pytestconfig.stash[_durations])


@pytest.fixture(scope="session")
def run_folder() -> RunFolder:
    """The folder of the cluster whose network this process is in."""
    folder = os.environ.get("EDGETUNE_CLUSTER")
    if folder is None:
        pytest.fail("these tests run in a cluster's network: use `make e2e`")
    return RunFolder(Path(folder))


@pytest.fixture(scope="session")
def kube(run_folder: RunFolder) -> Kube:
    """The cluster as its administrator sees it."""
    return Kube.from_kubeconfig(run_folder.kubeconfig)


@pytest.fixture(scope="session")
def s3(run_folder: RunFolder) -> S3Server:
    """The cluster's S3 server; Pods reach it at the same address."""
    admin = Credentials(object_store.ACCESS_KEY_ID, object_store.SECRET_ACCESS_KEY)
    return S3Server(object_store.ENDPOINT, run_folder.buckets, object_store.BUCKET, admin, admin)


@pytest.fixture
def namespace(kube: Kube) -> Iterator[str]:
    """A team's namespace under Pod Security `restricted`, with a Secret that opens the store."""
    name = f"team-{secrets.token_hex(3)}"
    for manifest in playground.team_manifests(name):
        kube.apply(manifest)
    yield name
    kube.delete("v1", "Namespace", None, name)


@dataclass(frozen=True)
class InstalledOperator:
    """The operator as the chart has installed it."""

    kube: Kube

    def log(self) -> str:
        """What its Pods have printed."""
        namespace = playground.RELEASE_NAMESPACE
        pods = self.kube.list("v1", "Pod", namespace, f"app.kubernetes.io/name={playground.RELEASE}")
        return "\n".join(self.kube.logs(namespace, pod["metadata"]["name"]) for pod in pods)


@pytest.fixture(scope="session")
def operator(run_folder: RunFolder, kube: Kube, durations: Durations) -> InstalledOperator:
    """The chart, installed from the built images, with one profile that fits the node."""
    begun = time.monotonic()
    playground.install_chart(run_folder.kubeconfig, playground.chart_values())
    durations.add("helm install", time.monotonic() - begun)
    return InstalledOperator(kube)
