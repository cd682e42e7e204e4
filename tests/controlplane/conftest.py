"""One API server, and one control plane with the operator as a process, for all tests in this folder."""

import secrets
from collections.abc import Iterator

import pytest

from cluster.controlplane import ControlPlane, running_control_plane
from edgetune_operator.generate.crd import custom_resource_definition
from support.apiserver import BINARIES, BINARIES_VARIABLE, ApiServer, binaries_are_there, running_with_crd
from support.kube import Kube, install_crd
from support.stage_player import Operator, StagePlayer


@pytest.fixture(scope="package")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A running API server that serves LoraFineTunes."""
    with running_with_crd(tmp_path_factory.mktemp("apiserver")) as server:
        yield server


@pytest.fixture(scope="package")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane with the light controllers, which serves LoraFineTunes."""
    if not binaries_are_there():
        pytest.skip(f"no {' and '.join(BINARIES)} in ${BINARIES_VARIABLE} or the cache: the operator cannot run")
    with running_control_plane(tmp_path_factory.mktemp("controlplane")) as plane:
        kube = Kube.from_kubeconfig(plane.kubeconfig())
        install_crd(kube, custom_resource_definition())
        yield plane


@pytest.fixture(scope="package")
def operator(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator; the fixture `player` starts it."""
    operator = Operator(tmp_path_factory.mktemp("operator"), control_plane)
    yield operator
    operator.stop()


@pytest.fixture
def player(control_plane: ControlPlane, operator: Operator) -> StagePlayer:
    """Plays the kubelet in the test's own namespace; the operator is running."""
    operator.ensure()
    kube = Kube.from_kubeconfig(control_plane.kubeconfig())
    namespace = f"team-{secrets.token_hex(4)}"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    kube.wait("v1", "ServiceAccount", namespace, "default", lambda _: True, "the namespace has its service account")
    return StagePlayer(kube, namespace)
