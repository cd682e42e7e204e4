"""A real kube-apiserver with its etcd on free loopback ports, for tests of its verdicts."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import binaries
from cluster.controlplane import running_control_plane
from edgetune_operator.generate.crd import custom_resource_definition
from support.kube import Kube

REPOSITORY = Path(__file__).parents[2]
BINARIES_VARIABLE = binaries.GIVEN_VARIABLE
BINARIES = ("etcd", "kube-apiserver", "kubectl")


def binaries_are_there() -> bool:
    """Whether the programs exist; building them takes minutes."""
    return all(binaries.find(name) is not None for name in BINARIES)


@dataclass
class ApiServer(Kube):
    """A running API server, with its administrator's access."""

    kubeconfig: Path = Path()

    def install_crd(self, crd: Mapping[str, Any]) -> None:
        """Create the CRD and wait until its objects are served.

        Raises:
            AssertionError: the server refuses it, or its schema is not structural.
        """
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        reply = self.request("POST", f"{crds}?fieldValidation=Strict", crd)
        assert reply.accepted, reply.message
        deadline = time.monotonic() + 30
        while True:
            conditions = self.request("GET", f"{crds}/{crd['metadata']['name']}").body["status"].get("conditions") or []
            truths = {condition["type"]: condition for condition in conditions}
            assert truths.get("NonStructuralSchema", {}).get("status") != "True", truths["NonStructuralSchema"][
                "message"
            ]
            spec = crd["spec"]
            served = self.request(
                "GET", f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
            )
            if truths.get("Established", {}).get("status") == "True" and served.accepted:
                return
            assert time.monotonic() < deadline, f"the CRD is not established: {conditions}"
            time.sleep(0.1)

    def write_kubeconfig(self, path: Path) -> None:
        """Write the administrator's kubeconfig for kubectl."""
        shutil.copy(self.kubeconfig, path)


@contextmanager
def running_apiserver(folder: Path, *, controllers: bool = False) -> Iterator[ApiServer]:
    """Run etcd and kube-apiserver in `folder` inside the context.

    Args:
        controllers: whether to run the controllers of Jobs, garbage collection, namespaces and service accounts.

    Raises:
        RuntimeError: a process ended, or the server was not ready in time; the message has the end of its log.
    """
    with running_control_plane(folder, controllers=controllers) as plane:
        server = ApiServer.from_kubeconfig(plane.kubeconfig())
        server.kubeconfig = plane.kubeconfig()
        yield server


@contextmanager
def running_with_crd(folder: Path) -> Iterator[ApiServer]:
    """Run an API server that serves LoraFineTunes, or skip the test if there are no programs for it."""
    if not binaries_are_there():
        pytest.skip(f"no {' and '.join(BINARIES)} in ${BINARIES_VARIABLE} or the cache: the API server cannot run")
    with running_apiserver(folder) as server:
        server.install_crd(custom_resource_definition())
        yield server
