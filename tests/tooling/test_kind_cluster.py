"""The kind cluster, with scripts instead of Docker and kind that only record their calls."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import binaries
from cluster.choice import TYPES, cluster_of, variables_of
from cluster.folders import REPOSITORY, RunFolder
from cluster.images import JOBS, OPERATOR
from cluster.kind import KindCluster
from cluster.requirements import NotPossibleHere

RECORDER = """#!/bin/sh
echo "$(basename "$0") $*" >> {calls}
case "$(basename "$0") $*" in
  "kind get clusters") echo other; echo {name} ;;
  "docker network inspect kind") echo '{networks}' ;;
  "docker image inspect"*) echo sha256:0123 ;;
  versitygw*) exec sleep 60 ;;
esac
"""
NETWORKS = [{"IPAM": {"Config": [{"Gateway": "fc00::1"}, {"Subnet": "10.0.0.0/8"}, {"Gateway": "127.0.0.1"}]}}]


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    # The path of tmp_path would be too long for the sockets of a cluster.
    return RunFolder(tmp_path_factory.mktemp("k") / "k")


@pytest.fixture
def cluster(run: RunFolder) -> KindCluster:
    return KindCluster(run, report=lambda _: None)


@pytest.fixture
def calls(cluster: KindCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """File with the recorded calls."""
    programs, log = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()
    log.touch()
    text = RECORDER.format(calls=log, name=cluster.run.name, networks=json.dumps(NETWORKS))
    for name in ("docker", "kind", "kubectl", "helm", "versitygw"):
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv(binaries.GIVEN_VARIABLE, str(programs))
    # No S3 server is started: these tests do not check its readiness.
    monkeypatch.setattr("cluster.object_store.Gateway._accepts", lambda _: True)
    yield log
    cluster.down()


def test_up_builds_creates_loads_and_offers_gpus(cluster: KindCluster, calls: Path) -> None:
    cluster.ensure_possible()
    cluster.up()

    name, folder = cluster.run.name, cluster.run.path
    expected = [
        "docker info",
        f"kind delete cluster --name {name}",
        f"docker build --quiet --tag {OPERATOR} --file {REPOSITORY}/operator/Dockerfile {REPOSITORY}",
        f"docker build --quiet --tag {JOBS} --file {REPOSITORY}/jobs/Dockerfile {REPOSITORY}",
        f"kind create cluster --name {name} --config {folder}/kind.json --kubeconfig {folder}/kubeconfig --wait 180s",
        "docker network inspect kind",
        f"kind load docker-image {OPERATOR} --name {name}",
        f"kind load docker-image {JOBS} --name {name}",
    ]
    recorded = [line for line in calls.read_text(encoding="utf-8").splitlines() if not line.startswith("versitygw")]
    assert recorded[: len(expected)] == expected
    patch = recorded[len(expected)]
    assert patch.startswith(
        f"kubectl --kubeconfig={folder}/kubeconfig patch node {name}-control-plane --subresource=status"
    )
    assert '"example.com/accelerator": "2"' in patch
    assert cluster.is_up()
    assert cluster.image_digest(OPERATOR) == "sha256:0123"
    assert cluster.object_store.endpoint == "http://127.0.0.1:7070"


def test_the_node_writes_an_audit_log(cluster: KindCluster, calls: Path) -> None:
    cluster.up()

    (node,) = json.loads((cluster.run.path / "kind.json").read_text(encoding="utf-8"))["nodes"]
    server = json.loads(node["kubeadmConfigPatches"][0])["apiServer"]
    assert server["extraArgs"]["audit-policy-file"] == node["extraMounts"][0]["containerPath"]
    assert json.loads(Path(node["extraMounts"][0]["hostPath"]).read_text(encoding="utf-8"))["kind"] == "Policy"
    log = server["extraArgs"]["audit-log-path"]
    assert cluster.audit_log() == cluster.run.audit_log
    copied = f"docker cp {cluster.run.name}-control-plane:{log} {cluster.run.audit_log}"
    assert calls.read_text(encoding="utf-8").splitlines()[-1] == copied


def test_down_leaves_nothing(cluster: KindCluster, calls: Path) -> None:
    cluster.up()
    cluster.down()

    assert not cluster.run.path.exists()
    assert calls.read_text(encoding="utf-8").splitlines()[-1] == f"kind delete cluster --name {cluster.run.name}"


def test_without_kind_the_machine_is_refused(
    cluster: KindCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotPossibleHere, match="there is no kind on the PATH"):
        cluster.ensure_possible()


@pytest.mark.parametrize("cluster_type", TYPES)
def test_a_command_in_the_clusters_network_finds_its_cluster_by_the_environment(
    cluster_type: str, run: RunFolder
) -> None:
    cluster = TYPES[cluster_type](run)

    assert cluster_of(variables_of(cluster)) == cluster
    assert cluster_of({}) is None
