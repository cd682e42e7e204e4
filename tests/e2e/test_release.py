"""The chart's life: its test, an upgrade while a stage runs, an uninstall, and an install for one namespace only."""

from collections.abc import Iterator

import pytest

from cluster import playground
from cluster.choice import AnyCluster
from cluster.processes import wait_for
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from support.chart import Manifest, parse
from support.kube import Document, Kube
from support.live_object import LiveObject
from support.tiny_inputs import tiny_fine_tune
from support.versitygw import S3Server

from .conftest import InstalledOperator, team

pytestmark = pytest.mark.e2e
RELEASE = playground.RELEASE


@pytest.fixture(scope="module")
def run(kube: Kube, s3: S3Server, namespace: str) -> Iterator[LiveObject]:
    """An object whose model an earlier test has trained: only evaluate and publish remain."""
    applied = LiveObject.apply(kube, tiny_fine_tune(s3, namespace, "released", evaluation={"maxNewTokens": 16}))
    yield applied
    applied.delete()


def test_the_charts_test_passes(operator: InstalledOperator) -> None:
    assert "Phase:          Succeeded" in operator.helm("test", RELEASE)


def test_an_upgrade_does_not_stop_a_running_stage(operator: InstalledOperator, run: LiveObject) -> None:
    before = [pod["metadata"]["uid"] for pod in operator.pods()]
    job = run.wait_for_job(Stage.EVALUATE)["metadata"]["uid"]
    values = {**operator.values, "operator": {"pollSeconds": 2}}
    operator.helm("upgrade", RELEASE, str(playground.chart_package(operator.cluster)), "--wait", values=values)
    assert not {pod["metadata"]["uid"] for pod in operator.pods()} & set(before)

    status = run.wait_for_end()
    assert status["phase"] == "Succeeded", status
    assert [found["metadata"]["uid"] for found in run.jobs(Stage.EVALUATE)] == [job]
    assert "pollSeconds: 2" in operator.helm("get", "values", RELEASE)


def test_an_uninstall_leaves_only_the_crd_and_the_objects(
    kube: Kube, operator: InstalledOperator, run: LiveObject
) -> None:
    installed = list(parse(operator.helm("get", "manifest", RELEASE)))
    assert {_kind(manifest) for manifest in installed if _is_there(kube, manifest)} == set(map(_kind, installed))

    operator.helm("uninstall", RELEASE, "--wait")

    left = {_kind(manifest) for manifest in installed if _is_there(kube, manifest)}
    assert left == {("CustomResourceDefinition", f"{names.PLURAL}.{names.GROUP}")}
    # The garbage collector deletes the Deployment's ReplicaSet and Pod after it.
    assert wait_for(lambda: operator.pods() == [], 60)
    assert kube.list("v1", "Secret", playground.RELEASE_NAMESPACE, "owner=helm") == []
    assert run.status()["phase"] == "Succeeded"


def test_an_operator_for_one_namespace_continues_there_and_ignores_others(
    cluster: AnyCluster, kube: Kube, s3: S3Server, operator: InstalledOperator, run: LiveObject
) -> None:
    values = {**operator.values, "watchNamespaces": [run.namespace]}
    with team(kube) as other:
        foreign = LiveObject.apply(kube, tiny_fine_tune(s3, other))
        playground.install_chart(cluster, values)
        run.patch({"evaluation": {"maxNewTokens": 12}})
        assert run.wait_for_end()["phase"] == "Succeeded"
        assert foreign.status() == {"observedGeneration": -1}, "the API server's default"

    roles = [found for found in parse(operator.helm("get", "manifest", RELEASE)) if "rules" in found]
    assert {_kind(role) for role in roles if _lets_write(role)} == {
        ("Role", RELEASE),
        ("ClusterRole", playground.CLUSTER_NAME),
        ("ClusterRole", f"{playground.CLUSTER_NAME}-edit"),
    }


def _kind(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def _is_there(kube: Kube, manifest: Manifest) -> bool:
    metadata = manifest["metadata"]
    return kube.get(manifest["apiVersion"], manifest["kind"], metadata.get("namespace"), metadata["name"]) is not None


def _lets_write(role: Document) -> bool:
    return any(set(rule["verbs"]) - {"get", "list", "watch"} for rule in role["rules"])
