"""A real cluster for the tests of this folder: `make e2e` starts it and runs them in its network."""

import copy
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from cluster import object_store, playground
from cluster.choice import AnyCluster, cluster_of
from cluster.object_store import Gateway
from edgetune_jobs.store.s3.client import Credentials
from edgetune_operator.api import names
from support.chart import helm
from support.kube import Document, Kube
from support.live_object import LiveObject
from support.outages import OutageInEachStage
from support.tiny_inputs import tiny_fine_tune, upload_tiny_inputs
from support.versitygw import S3Server

# One cluster for all: what takes parts of it away comes after what needs them, what looks back comes last.
_ORDER = (
    "test_disruptions",
    "test_missing_secret",
    "test_finished_object",
    "test_deletion",
    "test_outages",
    "test_node",
    "test_release",
    "test_rights",
)
_durations = pytest.StashKey[list[tuple[str, float]]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _ORDER.index(item.path.stem))


class Durations:
    """How long the parts of the tests took; shown when all tests are done."""

    def __init__(self, entries: list[tuple[str, float]]) -> None:
        self._entries = entries

    def add(self, what: str, seconds: float) -> None:
        self._entries.append((what, seconds))

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time that a block takes."""
        begun = time.monotonic()
        yield
        self.add(what, time.monotonic() - begun)


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
def cluster() -> AnyCluster:
    """The cluster whose network this process is in."""
    found = cluster_of(os.environ)
    if found is None:
        pytest.fail("these tests run in a cluster's network: use `make e2e`")
    return found


@pytest.fixture(scope="session")
def kube(cluster: AnyCluster) -> Kube:
    """The cluster as its administrator sees it."""
    return Kube.from_kubeconfig(cluster.run.kubeconfig)


@pytest.fixture(scope="session")
def s3(cluster: AnyCluster, tmp_path_factory: pytest.TempPathFactory) -> S3Server:
    """The cluster's S3 server, with the tiny model and its data; Pods reach it at the same address."""
    admin = Credentials(object_store.ACCESS_KEY_ID, object_store.SECRET_ACCESS_KEY)
    server = S3Server(cluster.object_store.endpoint, cluster.run.buckets, object_store.BUCKET, admin, admin)
    upload_tiny_inputs(server, tmp_path_factory.mktemp("inputs"))
    return server


@pytest.fixture(scope="session")
def unsteady_gateway(cluster: AnyCluster) -> Iterator[Gateway]:
    """A second server before the same buckets, which tests may stop without harm to other runs."""
    steady = cluster.object_store
    gateway = replace(steady, name=f"{steady.name}-unsteady", port=steady.port + 1)
    gateway.start()
    yield gateway
    gateway.stop()


@contextmanager
def team(kube: Kube) -> Iterator[str]:
    """A namespace under Pod Security `restricted`, with a Secret that opens the store; it is deleted afterwards."""
    name = f"team-{secrets.token_hex(3)}"
    for manifest in playground.team_manifests(name):
        kube.apply(manifest)
    yield name
    kube.delete("v1", "Namespace", None, name)


@pytest.fixture(scope="session")
def namespace(kube: Kube) -> Iterator[str]:
    """The namespace of most objects: they share what their stages have made."""
    with team(kube) as name:
        yield name


@dataclass(frozen=True)
class InstalledOperator:
    """The operator as the chart has installed it."""

    cluster: AnyCluster
    kube: Kube
    values: Document

    def pods(self) -> list[Document]:
        """Its Pods that are not about to go away."""
        pods = self.kube.list("v1", "Pod", playground.RELEASE_NAMESPACE, f"app.kubernetes.io/name={playground.RELEASE}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def log(self) -> str:
        """What its Pods have printed."""
        logs = (self.kube.logs(playground.RELEASE_NAMESPACE, pod["metadata"]["name"]) for pod in self.pods())
        return "\n".join(logs)

    def kill(self) -> None:
        """End its Pod at once, without a signal that it could answer."""
        for pod in self.pods():
            self.kube.delete("v1", "Pod", playground.RELEASE_NAMESPACE, pod["metadata"]["name"], grace_seconds=0)

    def wait_until_ready(self, limit_seconds: float = 90) -> None:
        """Wait until its Deployment has all the replicas that it asks for."""
        self.kube.wait(
            "apps/v1",
            "Deployment",
            playground.RELEASE_NAMESPACE,
            playground.RELEASE,
            lambda found: (
                found["status"].get("readyReplicas") == 1
                and found["status"].get("observedGeneration") == found["metadata"]["generation"]
            ),
            "the operator is ready",
            limit_seconds,
        )

    def helm(self, *arguments: str, values: Document | None = None) -> str:
        """What helm prints about the release's namespace."""
        namespace = ("--namespace", playground.RELEASE_NAMESPACE)
        return helm(*arguments, *namespace, values=values, environment={"KUBECONFIG": str(self.cluster.run.kubeconfig)})


@pytest.fixture(scope="session")
def operator(cluster: AnyCluster, kube: Kube, unsteady_gateway: Gateway, durations: Durations) -> InstalledOperator:
    """The chart, installed from the built images for all namespaces."""
    profile = playground.profile(cluster.object_store.endpoint)
    slow = copy.deepcopy(profile)
    # Half a core: on fast machines, too, training is still at it after a node is lost.
    slow["resources"]["train"]["limits"]["cpu"] = "500m"
    unsteady = playground.profile(unsteady_gateway.endpoint)
    values = playground.chart_values(cluster, {"default": profile, "slow": slow, "unsteady": unsteady})
    values["operator"]["pollSeconds"] = 1
    with durations.timed("helm install"):
        playground.install_chart(cluster.run.kubeconfig, values)
    return InstalledOperator(cluster, kube, values)


@pytest.fixture(scope="session")
def unsteady_run(
    kube: Kube, s3: S3Server, operator: InstalledOperator, unsteady_gateway: Gateway
) -> Iterator[OutageInEachStage]:
    """An object whose S3 server goes down in each stage. It runs beside other tests, as most of its time is waiting."""
    del operator  # it only has to be there
    with team(kube) as namespace:
        run = LiveObject.apply(kube, tiny_fine_tune(s3, namespace, profile="unsteady"))
        outages = OutageInEachStage(run, unsteady_gateway)
        outages.start()
        yield outages
        outages.cancel()


@pytest.fixture(autouse=True)
def _operator_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """The operator's log, and how its objects stand, beside each test that fails."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed and "operator" in request.fixturenames:
        installed: InstalledOperator = request.getfixturevalue("operator")
        print(installed.log())
        for found in installed.kube.list(names.API_VERSION, names.KIND):
            status = found.get("status") or {}
            rows = [(row["name"], row["state"], row["attempts"], row["reason"]) for row in status.get("stages", ())]
            print(found["metadata"]["namespace"], found["metadata"]["name"], status.get("phase"), rows)
