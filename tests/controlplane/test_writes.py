"""Number of the operator's writes, counted in the audit log of a real API server, for several objects at once."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import ControlPlane, running_control_plane
from edgetune_contract.request import Request
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.generate.crd import custom_resource_definition
from support.apiserver import BINARIES, BINARIES_VARIABLE, binaries_are_there
from support.audit import AuditLog, writes
from support.builders import lora_fine_tune
from support.kube import Kube, install_crd, pod_ended
from support.operator_process import free_ports, running_operator, service_account_kubeconfig
from support.scenario import Scenario

pytestmark = pytest.mark.slow

NAMESPACE = "many"
ACCOUNT = "operator"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
OBJECTS = [f"model-{number:02d}" for number in range(10)]
_KIND = (names.API_VERSION, names.KIND)
_LIMIT_SECONDS = 60
# The operator's start, and all stages of all objects.
_FLEET_LIMIT_SECONDS = 180


class Fleet:
    """Some objects, and a client that plays kubelet and stages for them."""

    def __init__(self, plane: ControlPlane) -> None:
        self.kube = Kube.from_kubeconfig(plane.kubeconfig())
        self.audit = AuditLog(plane.audit_log)
        self._stages = {name: Scenario(lora_fine_tune(name)) for name in OBJECTS}

    def apply(self, *objects: str, **annotations: str) -> None:
        """Apply the smallest manifest under these names."""
        spec = lora_fine_tune().build()["spec"]
        for name in objects:
            metadata = {"name": name, "namespace": NAMESPACE, "annotations": annotations}
            self.kube.apply({"apiVersion": _KIND[0], "kind": _KIND[1], "metadata": metadata, "spec": spec})

    def finish_all(self) -> None:
        """End the Pod of every stage with a simulated result until all objects have succeeded."""
        waiting = f"{self.kube.path('v1', 'Pod', NAMESPACE)}?fieldSelector=status.phase%3DPending"
        deadline = time.monotonic() + _FLEET_LIMIT_SECONDS
        with ThreadPoolExecutor(max_workers=8) as threads:
            while (phases := self._phases()) != {"Succeeded": len(OBJECTS)}:
                assert time.monotonic() < deadline, phases
                pods = self.kube.request("GET", waiting).body["items"]
                list(threads.map(self._finish, pods))
                time.sleep(0.05)

    def _finish(self, pod: dict[str, Any]) -> None:
        environment = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
        request = Request.decode(environment["EDGETUNE_REQUEST"])
        result = self._stages[request.name].simulated_result(request)
        self.kube.set_status("v1", "Pod", NAMESPACE, pod["metadata"]["name"], pod_ended(0, result.encode().decode()))

    def _phases(self) -> Counter[str]:
        found = self.kube.list(*_KIND, NAMESPACE)
        return Counter((each.get("status") or {}).get("phase", "") for each in found)

    def writes(self) -> Counter[str]:
        """The operator's writes since the last call."""
        return writes(self.audit.read(), USER)

    def writes_with_events(self, events: int) -> Counter[str]:
        """The same, once they include this number of Events, which are posted after the status write."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        counts = self.writes()
        while counts["create events"] < events:
            assert time.monotonic() < deadline, counts
            time.sleep(0.1)
            counts += self.writes()
        return counts

    def wait_for_first_job(self, name: str) -> None:
        """Wait until the operator has observed the object, and with it everything that happened before."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        seen: set[str] = set()
        while name not in seen:
            assert time.monotonic() < deadline, f"no Job of {name}"
            time.sleep(0.1)
            jobs = self.kube.list("batch/v1", "Job", NAMESPACE, f"{names.OWNER_LABEL}={name}")
            seen = {job["metadata"]["labels"][names.OWNER_LABEL] for job in jobs}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with an account for the operator, so that the audit log separates it from the tests."""
    if not binaries_are_there():
        pytest.skip(f"no {' and '.join(BINARIES)} in ${BINARIES_VARIABLE} or the cache: the operator cannot run")
    with running_control_plane(tmp_path_factory.mktemp("controlplane")) as plane:
        kube = Kube.from_kubeconfig(plane.kubeconfig())
        install_crd(kube, custom_resource_definition())
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        account = {"name": ACCOUNT, "namespace": NAMESPACE}
        kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        kube.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": ACCOUNT},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
                "subjects": [{"kind": "ServiceAccount", **account}],
            }
        )
        kube.wait("v1", "ServiceAccount", NAMESPACE, "default", lambda _: True, "Pods have a service account")
        yield plane


@contextmanager
def operator(plane: ControlPlane, folder: Path) -> Iterator[None]:
    """The operator, as its own user."""
    own = service_account_kubeconfig(Kube.from_kubeconfig(plane.kubeconfig()), plane.kubeconfig(), NAMESPACE, ACCOUNT)
    ports = [f"--{use}-port={port}" for use, port in zip(("health", "metrics"), free_ports(2), strict=True)]
    with running_operator(folder, own, {"default": {"store": {"uri": "s3://artifacts/edgetune"}}}, *ports):
        yield


def test_a_run_takes_few_writes_and_an_unchanged_object_none(plane: ControlPlane, tmp_path: Path) -> None:
    fleet = Fleet(plane)
    # One Event for the first Job, one for the end of each stage with the next Job, and the outcome is that of the last.
    events = (len(Stage) + 1) * len(OBJECTS)
    with operator(plane, tmp_path):
        fleet.apply(*OBJECTS)
        fleet.finish_all()
        first = fleet.writes_with_events(events)
        fleet.apply(*OBJECTS, commit="2")
        fleet.apply("witness")
        fleet.wait_for_first_job("witness")
        repeated = fleet.writes_with_events(1)
    with operator(plane, tmp_path):
        fleet.apply("witness-of-the-restart")
        fleet.wait_for_first_job("witness-of-the-restart")
        restarted = fleet.writes_with_events(1)

    # One status write when a stage starts, one at the end, and one more if the operator observed a Pod in between.
    assert first.pop("patch lorafinetunes/status") <= (len(Stage) + 2) * len(OBJECTS)
    assert first == {"create jobs": len(Stage) * len(OBJECTS), "create events": events}
    of_one_witness = {"create jobs": 1, "patch lorafinetunes/status": 1, "create events": 1}
    assert (repeated, restarted) == (of_one_witness, of_one_witness)
