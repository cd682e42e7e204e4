"""An operator for some namespaces, with the chart's permissions: a problem in one of them affects no other."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from cluster.controlplane import ControlPlane, running_control_plane
from cluster.processes import wait_for
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.generate.crd import custom_resource_definition
from support.apiserver import BINARIES, BINARIES_VARIABLE, binaries_are_there
from support.chart import PROFILE, RELEASE, RELEASE_NAMESPACE, Manifest, find_helm, one, render
from support.kube import Kube, install_crd
from support.operator_process import OperatorProcess, running_installed_operator, service_account_kubeconfig
from support.stage_player import StagePlayer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not binaries_are_there(), reason=f"no {' and '.join(BINARIES)} in ${BINARIES_VARIABLE}"),
    pytest.mark.skipif(find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH"),
]

KEPT, LOST, DELETED = NAMESPACES = ("team-kept", "team-lost", "team-deleted")
PERMISSIONS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the CRD and some teams' namespaces."""
    with running_control_plane(tmp_path_factory.mktemp("controlplane")) as plane:
        kube = Kube.from_kubeconfig(plane.kubeconfig())
        install_crd(kube, custom_resource_definition())
        for name in (RELEASE_NAMESPACE, *NAMESPACES):
            kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
            kube.wait("v1", "ServiceAccount", name, "default", lambda _: True, "Pods have a service account")
        yield plane


@pytest.fixture(scope="module")
def kube(plane: ControlPlane) -> Kube:
    """The administrator."""
    return Kube.from_kubeconfig(plane.kubeconfig())


@pytest.fixture(scope="module")
def manifests(kube: Kube) -> list[Manifest]:
    """The chart's manifests for these namespaces; its Roles are applied."""
    values = {"watchNamespaces": list(NAMESPACES), "crd": {"install": False}, "profiles": {"default": PROFILE}}
    rendered = render(values)
    for manifest in rendered:
        if manifest["kind"] in PERMISSIONS:
            kube.apply(manifest)
    return rendered


RunOperator = Callable[[], AbstractContextManager[OperatorProcess]]


@pytest.fixture
def run_operator(plane: ControlPlane, kube: Kube, manifests: list[Manifest], tmp_path: Path) -> RunOperator:
    """Runs the operator as its Deployment does, with its service account."""
    own = service_account_kubeconfig(kube, plane.kubeconfig(), RELEASE_NAMESPACE, RELEASE)
    profiles = one(manifests, "ConfigMap", f"{RELEASE}-profiles")["data"]["profiles.yaml"]
    return partial(running_installed_operator, tmp_path, own, one(manifests, "Deployment"), profiles)


def binding(manifests: list[Manifest], namespace: str) -> Manifest:
    """The operator's RoleBinding in a namespace."""
    bindings = (each for each in manifests if each["kind"] == "RoleBinding")
    return next(each for each in bindings if each["metadata"]["namespace"] == namespace)


def test_a_namespace_without_permissions_affects_no_other_and_recovers_when_they_are_granted(
    run_operator: RunOperator, kube: Kube, manifests: list[Manifest]
) -> None:
    kept, lost = StagePlayer(kube, KEPT), StagePlayer(kube, LOST)
    bound = binding(manifests, LOST)
    kube.delete(bound["apiVersion"], bound["kind"], LOST, bound["metadata"]["name"])
    lost.apply()

    with run_operator() as operator:
        kept.apply()
        kept.finish(Stage.PREPARE)
        kept.live_pod(Stage.TRAIN)
        message = f"namespace {LOST} is skipped: the operator is not allowed to list {names.PLURAL} in namespace {LOST}"
        assert message in operator.log.read_text(encoding="utf-8")
        assert lost.jobs() == []

        kube.apply(bound)
        lost.finish(Stage.PREPARE)
        lost.live_pod(Stage.TRAIN)


def test_a_namespace_with_the_operators_role_and_an_object_with_policy_delete_can_be_deleted(
    run_operator: RunOperator, kube: Kube
) -> None:
    """Roles are deleted in any order with the other objects. The Job is queued: its Pod would be deleted first."""
    player = StagePlayer(kube, DELETED)
    with run_operator() as operator:
        player.apply(deletionPolicy="Delete")
        job, _ = player.live_pod(Stage.PREPARE)
        kube.merge("batch/v1", "Job", DELETED, job["metadata"]["name"], {"spec": {"suspend": True}})
        kube.wait_until_gone("v1", "Pod", DELETED, "")
        player.wait_for_condition("Ready", "Queued")

        kube.delete("v1", "Namespace", None, DELETED)

        gone = wait_for(lambda: kube.get("v1", "Namespace", None, DELETED) is None, 60)
        assert gone, operator.log.read_text(encoding="utf-8")
        assert "CleanUpSkipped" in operator.log.read_text(encoding="utf-8")
