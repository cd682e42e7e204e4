"""A control plane for measurements, with the CRD, the chart's rights, and one node of unlimited size by kwok."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.binaries import binary
from cluster.controlplane import KWOK_STAGES, ControlPlane, running_control_plane
from edgetune_contract.stages import Stage
from edgetune_operator.generate.crd import custom_resource_definition
from support.audit import AuditLog
from support.chart import RELEASE, RELEASE_NAMESPACE, Manifest, one, render
from support.kube import Kube
from support.operator_process import OperatorProcess, running_installed_operator, service_account_kubeconfig

NAMESPACE = "bench"
_OF_THE_CHART = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
_PROFILES = {"default": {"store": {"uri": "s3://artifacts/edgetune"}}}
_NODE_READY_SECONDS = 30
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class BenchCluster:
    """A running control plane, its audit log, and the chart's manifests."""

    folder: Path
    plane: ControlPlane
    manifests: list[Manifest]
    audit: AuditLog

    @property
    def operator_user(self) -> str:
        """The operator's name in the audit log."""
        return f"system:serviceaccount:{RELEASE_NAMESPACE}:{self._account}"

    @property
    def _account(self) -> str:
        name: str = one(self.manifests, "ServiceAccount")["metadata"]["name"]
        return name

    @contextmanager
    def running_operator(self, python: Sequence[str] = ()) -> Iterator[OperatorProcess]:
        """The operator, run as in the chart's Deployment, with its service account."""
        kube = Kube.from_kubeconfig(self.plane.kubeconfig())
        own = service_account_kubeconfig(kube, self.plane.kubeconfig(), RELEASE_NAMESPACE, self._account)
        profiles = one(self.manifests, "ConfigMap", f"{RELEASE}-profiles")["data"]["profiles.yaml"]
        with running_installed_operator(
            self.folder, own, one(self.manifests, "Deployment"), profiles, python
        ) as operator:
            try:
                yield operator
            except TimeoutError as error:
                error.add_note(f"the operator's log ends with:\n{operator.log.read_text(encoding='utf-8')[-4000:]}")
                raise

    @contextmanager
    def running_bare_client(self) -> Iterator[None]:
        """The bare client, with the operator's user."""
        kube = Kube.from_kubeconfig(self.plane.kubeconfig())
        own = service_account_kubeconfig(kube, self.plane.kubeconfig(), RELEASE_NAMESPACE, self._account)
        script = Path(__file__).with_name("bare_client.py")
        process = subprocess.Popen([sys.executable, str(script), f"--kubeconfig={own}", f"--namespace={NAMESPACE}"])
        try:
            yield
        finally:
            process.terminate()
            process.wait()

    def wait_for_watch(self, user: str, limit_seconds: float = 60) -> None:
        """Wait until the newest process of a user watches the LoraFineTunes.

        Raises:
            TimeoutError: it does not watch within the limit.
        """
        deadline = time.monotonic() + limit_seconds
        while not any(each.user == user and each.kind == "list lorafinetunes" for each in self.audit.read()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{user} does not watch after {limit_seconds} s")
            time.sleep(_POLL_SECONDS)

    def wait_for_stage(self, stage: Stage, count: int, limit_seconds: float) -> None:
        """Wait until that many objects have a Job of a stage.

        Raises:
            TimeoutError: fewer objects have one within the limit.
        """
        deadline = time.monotonic() + limit_seconds
        while True:
            self.audit.read()
            jobs = (each.stage_of for each in self.audit.requests if each.kind == "create jobs")
            done = len({of[0] for of in jobs if of is not None and of[1] is stage})
            if done >= count:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{done} of {count} objects have a Job of stage {stage} after {limit_seconds} s")
            time.sleep(_POLL_SECONDS)

    def wait_for_rest(self, user: str, seconds: float, limit_seconds: float) -> None:
        """Wait until a user has written nothing for some seconds.

        Raises:
            TimeoutError: the user still writes at the limit.
        """
        deadline = time.monotonic() + limit_seconds
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < seconds:
            if any(each.user == user and each.is_write for each in self.audit.read()):
                quiet_since = time.monotonic()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{user} still writes after {limit_seconds} s")
            time.sleep(_POLL_SECONDS)


@contextmanager
def running_bench_cluster(stage_seconds: float) -> Iterator[BenchCluster]:
    """A fresh cluster, removed on exit.

    Args:
        stage_seconds: average run time of a stage's Pod, uniformly distributed from half to one and a half of it.
    """
    binary("helm")
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        running_control_plane(Path(name) / "plane") as plane,
    ):
        folder = Path(name)
        plane.start_kwok(_write_stages(folder / "stages.yaml", stage_seconds))
        cluster = BenchCluster(folder, plane, render({"profiles": _PROFILES}), AuditLog(plane.audit_log))
        _install(Kube.from_kubeconfig(plane.kubeconfig()), cluster.manifests)
        yield cluster


def _install(kube: Kube, manifests: list[Manifest]) -> None:
    kube.apply(custom_resource_definition())
    for namespace in (RELEASE_NAMESPACE, NAMESPACE):
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        kube.wait("v1", "ServiceAccount", namespace, "default", lambda _: True, "the default service account exists")
    for manifest in manifests:
        if manifest["kind"] in _OF_THE_CHART:
            kube.apply(manifest)
    name = "edge-node"
    metadata = {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}}
    kube.apply({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
    kube.wait(
        "v1",
        "Node",
        None,
        name,
        lambda node: node["status"].get("phase") == "Running" and not node["spec"].get("taints"),
        "the node of kwok is ready",
        _NODE_READY_SECONDS,
    )


def _write_stages(path: Path, seconds: float) -> Path:
    stages = list(yaml.safe_load_all(KWOK_STAGES.read_text(encoding="utf-8")))
    finish = next(stage for stage in stages if stage["metadata"]["name"] == "pod-finish")
    shortest, longest = int(seconds * 500), int(seconds * 1500)
    finish["spec"]["delay"] = {"durationMilliseconds": shortest, "jitterDurationMilliseconds": longest}
    path.write_text(yaml.safe_dump_all(stages), encoding="utf-8")
    return path
