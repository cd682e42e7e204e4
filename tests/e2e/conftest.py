"""A real cluster for the tests of this folder: `make e2e` starts it and runs them in its network."""

import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster import images, object_store
from cluster.folders import RunFolder
from edgetune_jobs.s3_client import Credentials
from edgetune_operator.crd import custom_resource_definition
from support.kube import Kube, condition
from support.operator_process import OperatorProcess, running_operator
from support.versitygw import S3Server

CREDENTIALS_SECRET = "edgetune-s3"
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


@pytest.fixture
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
    """The cluster as its administrator sees it, with LoraFineTunes in it."""
    kube = Kube.from_kubeconfig(run_folder.kubeconfig)
    crd = custom_resource_definition()
    kube.apply(crd)
    kube.wait(
        crd["apiVersion"],
        crd["kind"],
        None,
        crd["metadata"]["name"],
        lambda found: (condition(found, "Established") or {}).get("status") == "True",
        "the CRD is established",
    )
    return kube


@pytest.fixture(scope="session")
def s3(run_folder: RunFolder) -> S3Server:
    """The cluster's S3 server; Pods reach it at the same address."""
    admin = Credentials(object_store.ACCESS_KEY_ID, object_store.SECRET_ACCESS_KEY)
    return S3Server(object_store.ENDPOINT, run_folder.buckets, object_store.BUCKET, admin, admin)


@pytest.fixture
def namespace(kube: Kube, s3: S3Server) -> Iterator[str]:
    """A namespace of its own under Pod Security `restricted`, with a Secret that opens the store."""
    name = f"team-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": CREDENTIALS_SECRET, "namespace": name},
            "stringData": {
                "AWS_ACCESS_KEY_ID": s3.admin.access_key_id,
                "AWS_SECRET_ACCESS_KEY": s3.admin.secret_access_key,
            },
        }
    )
    yield name
    kube.delete("v1", "Namespace", None, name)


@pytest.fixture(scope="session")
def profiles(s3: S3Server) -> Mapping[str, Any]:
    """One profile with resources that fit the node: a GPU for the training only, which runs on the CPU all the same."""
    small = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}}
    gpu = {"nvidia.com/gpu": 1}
    stages = ("prepare", "merge", "quantize", "evaluate", "publish")
    return {
        "default": {
            "store": {
                "uri": f"s3://{s3.bucket}/artifacts",
                "endpoint": s3.endpoint,
                "region": "us-east-1",
                "pathStyle": True,
                "credentialsSecret": CREDENTIALS_SECRET,
            },
            "image": {"reference": images.JOBS, "pullPolicy": "Never"},
            "resources": {
                **dict.fromkeys(stages, small),
                "train": {kind: {**amounts, **gpu} for kind, amounts in small.items()},
            },
            "workVolumeSize": "4Gi",
        }
    }


@pytest.fixture(scope="session")
def operator(
    tmp_path_factory: pytest.TempPathFactory,
    run_folder: RunFolder,
    kube: Kube,  # noqa: ARG001 - the CRD must be there before the operator watches
    profiles: Mapping[str, Any],
) -> Iterator[OperatorProcess]:
    """The operator, watching all namespaces."""
    folder = tmp_path_factory.mktemp("operator")
    with running_operator(folder, run_folder.kubeconfig, profiles) as running:
        yield running
