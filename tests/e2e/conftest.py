"""A real cluster for the tests in this folder: `make e2e` starts it and runs them in its network."""

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

# The tests share one cluster: tests that remove parts of it run after those that need them, and tests that read the
# audit log run last.
_ORDER = (
    "test_images",
    "test_disruptions",
    "test_nodes",
    "test_missing_secret",
    "test_finished_object",
    "test_deletion",
    "test_outages",
    "test_queues",
    "test_node",
    "test_release",
    "test_rights",
)
_durations = pytest.StashKey[list[tuple[str, float]]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _ORDER.index(item.path.stem))


class Durations:
    """Durations of parts of the tests; shown at the end."""

    def __init__(self, entries: list[tuple[str, float]]) -> None:
        self._entries = entries

    def add(self, what: str, seconds: float) -> None:
        self._entries.append((what, seconds))

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the duration of a block."""
        start = time.monotonic()
        yield
        self.add(what, time.monotonic() - start)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_durations] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_durations]:
        terminalreporter.section("durations")
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
    """The cluster, with its administrator's access."""
    return Kube.from_kubeconfig(cluster.run.kubeconfig)


@pytest.fixture(scope="session")
def s3(cluster: AnyCluster, tmp_path_factory: pytest.TempPathFactory) -> S3Server:
    """The cluster's S3 server, with the tiny model and its data; Pods use the same address."""
    admin = Credentials(object_store.ACCESS_KEY_ID, object_store.SECRET_ACCESS_KEY)
    server = S3Server(cluster.object_store.endpoint, cluster.run.buckets, object_store.BUCKET, admin, admin)
    upload_tiny_inputs(server, tmp_path_factory.mktemp("inputs"))
    return server


@pytest.fixture(scope="session")
def unsteady_gateway(cluster: AnyCluster) -> Iterator[Gateway]:
    """A second server for the same buckets, which tests can stop without affecting other runs."""
    steady = cluster.object_store
    gateway = replace(steady, name=f"{steady.name}-unsteady", port=steady.port + 1)
    gateway.start()
    yield gateway
    gateway.stop()


@contextmanager
def team(kube: Kube) -> Iterator[str]:
    """A namespace with Pod Security `restricted` and the store's Secret; it is deleted afterwards."""
    name = f"team-{secrets.token_hex(3)}"
    for manifest in playground.team_manifests(name):
        kube.apply(manifest)
    yield name
    kube.delete("v1", "Namespace", None, name)


@pytest.fixture(scope="session")
def namespace(kube: Kube) -> Iterator[str]:
    """The namespace of most objects: they share the outputs of their stages."""
    with team(kube) as name:
        yield name


@dataclass(frozen=True)
class InstalledOperator:
    """The operator that the chart has installed."""

    cluster: AnyCluster
    kube: Kube
    values: Document

    def pods(self) -> list[Document]:
        """Its Pods that are not being deleted."""
        pods = self.kube.list("v1", "Pod", playground.RELEASE_NAMESPACE, f"app.kubernetes.io/name={playground.RELEASE}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def log(self) -> str:
        """Logs of its Pods."""
        logs = (self.kube.logs(playground.RELEASE_NAMESPACE, pod["metadata"]["name"]) for pod in self.pods())
        return "\n".join(logs)

    def kill(self) -> None:
        """Kill its Pod immediately, without a grace period."""
        for pod in self.pods():
            self.kube.delete("v1", "Pod", playground.RELEASE_NAMESPACE, pod["metadata"]["name"], grace_seconds=0)

    def wait_until_ready(self, limit_seconds: float = 90) -> None:
        """Wait until its Deployment has all its replicas."""
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

    def add_profile(self, name: str, profile: Document) -> None:
        """Upgrade the release with one more profile."""
        self.values["profiles"][name] = profile
        playground.install_chart(self.cluster, self.values)

    def helm(self, *arguments: str, values: Document | None = None) -> str:
        """Output of a helm command in the release's namespace."""
        namespace = ("--namespace", playground.RELEASE_NAMESPACE)
        return helm(*arguments, *namespace, values=values, environment={"KUBECONFIG": str(self.cluster.run.kubeconfig)})


@pytest.fixture(scope="session")
def operator(cluster: AnyCluster, kube: Kube, unsteady_gateway: Gateway, durations: Durations) -> InstalledOperator:
    """The chart, installed from the built images for all namespaces."""
    profile = playground.profile(cluster.object_store.endpoint)
    slow = copy.deepcopy(profile)
    # Half a core: even on fast machines, the training is still running when the node is given up.
    slow["resources"]["train"]["limits"]["cpu"] = "500m"
    unsteady = playground.profile(unsteady_gateway.endpoint)
    values = playground.chart_values(cluster, {"default": profile, "slow": slow, "unsteady": unsteady})
    values["operator"]["pollSeconds"] = 1
    with durations.timed("helm install"):
        playground.install_chart(cluster, values)
    return InstalledOperator(cluster, kube, values)


@pytest.fixture(scope="session")
def unsteady_run(
    kube: Kube, s3: S3Server, operator: InstalledOperator, unsteady_gateway: Gateway
) -> Iterator[OutageInEachStage]:
    """An object whose S3 server goes down in each stage. It mostly waits, so it runs in parallel with other tests."""
    del operator  # only required to be installed
    with team(kube) as namespace:
        run = LiveObject.apply(kube, tiny_fine_tune(s3, namespace, profile="unsteady"))
        outages = OutageInEachStage(run, unsteady_gateway)
        outages.start()
        yield outages
        outages.cancel()


@pytest.fixture(autouse=True)
def _operator_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the operator's log and the state of its objects for each failed test."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed and "operator" in request.fixturenames:
        installed: InstalledOperator = request.getfixturevalue("operator")
        print(installed.log())
        for found in installed.kube.list(names.API_VERSION, names.KIND):
            status = found.get("status") or {}
            rows = [(row["name"], row["state"], row["attempts"], row["reason"]) for row in status.get("stages", ())]
            print(found["metadata"]["namespace"], found["metadata"]["name"], status.get("phase"), rows)
