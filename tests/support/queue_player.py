"""Queues of a real Kueue for tests, and objects whose trainings wait in them."""

from collections.abc import Mapping
from typing import Any

from cluster.kueue import API_VERSION
from cluster.node import GPU
from cluster.processes import wait_for
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from support.builders import failed_result
from support.kube import LIMIT_SECONDS, Kube, pod_ended, pod_running
from support.scenario import request_of
from support.stage_player import STORE, StagePlayer

QUEUE = "gpu"
PRIORITIES = ("low", "high")
RACK = "cloud.provider.com/topology-rack"
_ON_TWO_NODES = {"train": {"limits": {GPU: 1}, "nodes": 2}}
QUEUED_PROFILES = {
    "default": {"store": STORE, "queue": {"name": QUEUE, "priorities": [*PRIORITIES, "unknown"]}},
    "nodes": {"store": STORE, "queue": {"name": QUEUE}, "resources": _ON_TWO_NODES},
    "rack": {"store": STORE, "queue": {"name": QUEUE, "topology": {"required": RACK}}, "resources": _ON_TWO_NODES},
}


def add_flavor(kube: Kube) -> None:
    """A flavor of GPUs, and priorities."""
    kube.apply({"apiVersion": API_VERSION, "kind": "ResourceFlavor", "metadata": {"name": "l4"}})
    for value, name in enumerate(PRIORITIES):
        manifest = {"apiVersion": API_VERSION, "kind": "WorkloadPriorityClass", "metadata": {"name": name}}
        kube.apply({**manifest, "value": 100 * value, "description": name})


def add_racks(kube: Kube, flavor: str, racks: Mapping[str, int]) -> None:
    """A flavor of GPUs whose nodes, with one GPU each, are in racks.

    Args:
        kube: the administrator.
        flavor: its name, which its Topology has too.
        racks: number of nodes by rack.
    """
    levels = [{"nodeLabel": RACK}, {"nodeLabel": "kubernetes.io/hostname"}]
    topology = {"apiVersion": API_VERSION, "kind": "Topology", "metadata": {"name": flavor}}
    kube.apply({**topology, "spec": {"levels": levels}})
    manifest = {"apiVersion": API_VERSION, "kind": "ResourceFlavor", "metadata": {"name": flavor}}
    kube.apply({**manifest, "spec": {"nodeLabels": {"flavor": flavor}, "topologyName": flavor}})
    for name, rack in ((f"{rack}-{number}", rack) for rack, count in racks.items() for number in range(count)):
        labels = {"flavor": flavor, RACK: rack, "kubernetes.io/hostname": name}
        kube.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
        room = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "512Gi", "pods": "100", GPU: "1"}
        ready = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
        kube.set_status("v1", "Node", None, name, {"capacity": room, "allocatable": room, "conditions": ready})
        # The API server gives each new node the taint not-ready.
        kube.merge("v1", "Node", None, name, {"spec": {"taints": []}})


def add_cluster_queue(kube: Kube, name: str, gpus: int = 1, flavor: str = "l4", **spec: Any) -> None:
    """A ClusterQueue with some GPUs, in which a higher priority preempts a lower one."""
    resources = [{"name": GPU, "nominalQuota": str(gpus)}]
    group = {"coveredResources": [GPU], "flavors": [{"name": flavor, "resources": resources}]}
    default = {
        "namespaceSelector": {},
        "queueingStrategy": "BestEffortFIFO",
        "resourceGroups": [group],
        "preemption": {"withinClusterQueue": "LowerPriority", "reclaimWithinCohort": "Any"},
    }
    metadata = {"name": name}
    kube.apply({"apiVersion": API_VERSION, "kind": "ClusterQueue", "metadata": metadata, "spec": {**default, **spec}})


def add_local_queue(kube: Kube, namespace: str, cluster_queue: str) -> None:
    """A team's LocalQueue, in front of a ClusterQueue."""
    metadata = {"name": QUEUE, "namespace": namespace}
    manifest = {"apiVersion": API_VERSION, "kind": "LocalQueue", "metadata": metadata}
    kube.apply({**manifest, "spec": {"clusterQueue": cluster_queue}})


class QueuePlayer(StagePlayer):
    """Plays kubelet and stages for one team's object, whose training waits in a queue."""

    def add_queue(self, cluster_queue: str) -> None:
        """The team's LocalQueue, in front of a ClusterQueue."""
        add_local_queue(self.kube, self.namespace, cluster_queue)

    def submit(self, **spec: Any) -> dict[str, Any]:
        """Apply the object, and let it come to its training; returns the training's Job."""
        self.apply(**spec)
        self.finish(Stage.PREPARE)
        if not wait_for(lambda: bool(self.jobs(Stage.TRAIN)), LIMIT_SECONDS):
            raise TimeoutError(f"no Job of train within {LIMIT_SECONDS:.0f} s; status: {self.object.get('status')}")
        return self.training

    @property
    def training(self) -> dict[str, Any]:
        """The training's Job."""
        return self.jobs(Stage.TRAIN)[-1]

    @property
    def job_name(self) -> str:
        """Name of the training's Job."""
        return str(self.training["metadata"]["name"])

    @property
    def workload(self) -> dict[str, Any]:
        """The Workload of the training's Job, once Kueue has made it."""
        selector = f"kueue.x-k8s.io/job-uid={self.training['metadata']['uid']}"
        found: list[dict[str, Any]] = []

        def is_made() -> bool:
            found[:] = self.kube.list(API_VERSION, "Workload", self.namespace, selector)
            return bool(found)

        assert wait_for(is_made, 30), "no Workload within 30 s"
        return found[0]

    def set_active(self, active: bool) -> None:
        """Activate or deactivate the Workload, as an administrator."""
        name = self.workload["metadata"]["name"]
        self.kube.merge(API_VERSION, "Workload", self.namespace, name, {"spec": {"active": active}})

    def run(self) -> dict[str, Any]:
        """The training's Pod runs on a node; returns it."""
        _, pod = self.live_pod(Stage.TRAIN)
        self.bind(pod)
        self.end_pod(pod, pod_running())
        self.wait_for_phase("Training")
        return pod

    def run_on_nodes(self, nodes: int) -> list[dict[str, Any]]:
        """The training's Pods run, one for each node; returns them."""
        selector = f"{names.STAGE_LABEL}={Stage.TRAIN}"
        found: list[dict[str, Any]] = []

        def are_there() -> bool:
            pods = self.kube.list("v1", "Pod", self.namespace, selector)
            found[:] = [pod for pod in pods if pod["status"]["phase"] == "Pending" and not _is_deleted(pod)]
            return len(found) == nodes

        assert wait_for(are_there, LIMIT_SECONDS), f"{len(found)} Pods; status: {self.object.get('status')}"
        for pod in found:
            self.bind(pod)
            self.end_pod(pod, pod_running())
        self.wait_for_phase("Training")
        return found

    def stop(self, pod: dict[str, Any], step: int = 40) -> None:
        """The training's Pod, which is being deleted, writes its checkpoint and ends."""
        name = pod["metadata"]["name"]
        self.kube.wait("v1", "Pod", self.namespace, name, _is_deleted, "the Pod is stopped")
        digest = request_of(self.training).digest
        stopped = failed_result(Stage.TRAIN, digest, ExitCode.INTERRUPTED, "Interrupted", "stopped", step=step)
        self.end_pod(pod, pod_ended(ExitCode.INTERRUPTED, stopped.encode().decode()))
        self.remove_pod(pod)

    def wait_for_words(self, condition_type: str, reason: str, words: str) -> str:
        """The message of a condition, once it has this reason and these words."""

        def holds(document: dict[str, Any]) -> bool:
            found = _conditions(document).get(condition_type, {})
            return found.get("reason") == reason and words in found["message"]

        document = self.wait(holds, f"{condition_type} {reason} with {words!r}")
        message: str = _conditions(document)[condition_type]["message"]
        return message

    def events(self, stage: Stage = Stage.TRAIN) -> list[str]:
        """Reasons of the object's Events about a stage, oldest first."""
        title = stage.value.capitalize()
        found = [event for event in self.kube.list("v1", "Event", self.namespace) if event["reason"].startswith(title)]
        about = (event for event in found if event["involvedObject"]["kind"] == names.KIND)
        return [each["reason"] for each in sorted(about, key=lambda event: int(event["metadata"]["resourceVersion"]))]


def _is_deleted(item: Mapping[str, Any]) -> bool:
    return item["metadata"].get("deletionTimestamp") is not None


def _conditions(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["type"]: each for each in (document.get("status") or {}).get("conditions") or ()}
