"""Pods, as values from plain dicts: each an attempt of a stage, or one node's part of an attempt of a training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from pydantic import ValidationError

from edgetune_contract.request import Result
from edgetune_contract.stages import ExitCode
from edgetune_contract.values.times import seconds_between
from edgetune_operator.api import names

POD_END_DELAY = timedelta(seconds=30)
"""Longest time between the end of the stage's container and the end of its Pod, if no other container keeps it alive.
"""

POD_STATUS_DELAY = timedelta(seconds=20)
"""Longest time between the end of a Job and the observation of its last Pod's end.

Jobs and Pods are watched separately. After a start, the first lists and the watches can miss the end of a Pod; this
time is long enough for the second lists to show it.
"""


MAX_REASON = 64
MAX_MESSAGE = 4096
"""Longest reason and message that are taken from others: the status is refused as a whole if one is too long."""

UNSPECIFIC = (None, "", "ContainerCreating", "PodInitializing")
"""Reasons that the kubelet reports for every new container, and nothing else while a volume is missing."""


@dataclass(frozen=True)
class PodObservation:
    """One attempt of a stage; of a training on several nodes, the Pod that decides what the attempt is."""

    name: str
    uid: str
    created_at: str | None
    phase: str
    exit_code: int | None
    """Exit code of the stage's container; None until it has ended."""

    reason: str
    """Kubernetes' reason why the container ended or waits, such as OOMKilled or Unschedulable."""

    message: str
    """Termination message; for a waiting container, the message of Kubernetes."""

    disruption: str
    """Reason of the DisruptionTarget condition, such as EvictionByEvictionAPI; empty if there is none."""

    pod_reason: str
    """The kubelet's reason for the whole Pod, such as Evicted or UnexpectedAdmissionError; empty if it has none."""

    pod_message: str
    """The kubelet's message for the whole Pod."""

    is_set_up: bool
    """Whether its sandbox, network and volumes are ready. Containers are created after that."""

    node: str
    """Name of its node; empty before it is scheduled."""

    gone_by: str | None
    """When it should be gone, with its grace period; None if it is not being deleted."""

    started_at: str | None
    """When the container started; None until it has."""

    finished_at: str | None
    """When the container ended; None until it has, or if its node never reported it."""

    deleting: bool = False
    scheduled_at: str | None = None
    """When it was bound to its node, from which on it holds what it requests; None before that."""

    beside: tuple[str, ...] = ()
    """Other containers that are running, such as a service mesh's; sidecars among the init containers too."""

    failed_init: str = ""
    """Which init container failed, and how; empty if none did."""

    suspended: bool = False
    """Whether it was deleted because its Job was suspended, as a queue does that takes the quota back."""

    index: int = 0
    """Number of its node, from 0. The Pod of node 0 commits the output and reports."""

    peers: tuple["PodObservation", ...] = ()
    """The Pods of the same attempt on other nodes."""

    @property
    def together(self) -> tuple["PodObservation", ...]:
        """The Pods of all nodes of the attempt."""
        return (self, *self.peers)

    @property
    def surplus(self) -> int:
        """Number of failed Pods that its Job counts beside the attempt: all but one, and all while it has not ended."""
        failed = sum(pod.failed for pod in self.together)
        return max(failed - self.ended, 0)

    @property
    def lost_peer(self) -> bool:
        """Whether the attempt ended because a peer was gone, of which nothing else is known."""
        return self.exit_code == ExitCode.PEER_LOST and self.interrupted and not self.disrupted and not self.suspended

    @property
    def is_left(self) -> bool:
        """Whether a container of the Pod may be running."""
        return self.phase not in ("Succeeded", "Failed")

    @property
    def is_alive(self) -> bool:
        """Whether the Pod has not ended and nothing ends it: its Job waits for it."""
        return self.is_left and not self.deleting

    @property
    def disrupted(self) -> bool:
        """Whether the Pod is or was stopped from outside: evicted, preempted, or its node is gone."""
        return self.disruption != ""

    @property
    def ended(self) -> bool:
        """Whether the attempt has ended. A Pod whose node is gone or did not admit it has no exit code."""
        return self.exit_code is not None or self.phase == "Failed"

    @property
    def failed(self) -> bool:
        """Whether the attempt ended by itself and without success."""
        return self.ended and self.exit_code != ExitCode.DONE and not self.interrupted

    @property
    def exceeded_storage(self) -> bool:
        """Whether the Pod used more of its node's disk than its limit; a retry would do the same."""
        return self.pod_reason == "Evicted" and not self.disrupted

    @property
    def exceeded_memory(self) -> bool:
        """Whether the kernel killed the container at its memory limit."""
        return self.exit_code is not None and self.reason == "OOMKilled" and not self.interrupted

    @property
    def result(self) -> Result | None:
        """Result in the termination message; None if there is no valid one."""
        try:
            return Result.decode(self.message)
        except ValidationError:
            return None

    @property
    def interrupted(self) -> bool:
        """Whether the attempt was stopped from outside and has ended; it does not count."""
        stopped = self.exit_code in (ExitCode.INTERRUPTED, ExitCode.PEER_LOST) and not self.exceeded_storage
        return self.ended and (self.disrupted or self.suspended or stopped)


def controller_uid(body: Mapping[str, Any], kind: str) -> str | None:
    """UID of a Job's or Pod's controller; None if no object of that kind controls it."""
    owners = body["metadata"].get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller") and owner["kind"] == kind), None)


def creation_order(item: Mapping[str, Any]) -> tuple[str, str]:
    """Key by which Jobs and Pods sort from the oldest to the newest."""
    metadata = item["metadata"]
    return metadata.get("creationTimestamp") or "", metadata["name"]


def observe_pods(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> tuple[PodObservation, ...]:
    """A Job's attempts, oldest first, by owner reference: anybody can set labels and names."""
    own = [pod for pod in pods if controller_uid(pod, "Job") == job["metadata"]["uid"]]
    found = [_pod(pod, job) for pod in sorted(own, key=creation_order)]
    if (job.get("spec") or {}).get("completionMode") != "Indexed":
        return tuple(found)
    return tuple(_deciding(attempt) for attempt in _attempts_of(found))


def _attempts_of(pods: Sequence[PodObservation]) -> Iterator[list[PodObservation]]:
    """The Pods of an Indexed Job by attempt: an attempt has at most one Pod of each node.

    A Pod that replaces one which no other Pod had met yet is an attempt of its own, beside the one that it joins.
    """
    attempt: list[PodObservation] = []
    for pod in pods:
        is_next = pod.index in {each.index for each in attempt}
        if attempt and (is_next or all(_ended_before(each, pod) for each in attempt)):
            yield attempt
            attempt = []
        attempt.append(pod)
    if attempt:
        yield attempt


def _ended_before(pod: PodObservation, other: PodObservation) -> bool:
    """Whether a Pod had ended when another one was created, also by how long it ran: its node's clock may differ."""
    if not pod.ended or pod.finished_at is None or pod.finished_at > (other.created_at or ""):
        return False
    ran, between = (
        seconds_between(*times) or 0.0
        for times in ((pod.started_at, pod.finished_at), (pod.created_at, other.created_at))
    )
    return ran <= between


def _deciding(attempt: Sequence[PodObservation]) -> PodObservation:
    """The Pod that says what an attempt is, with the others as its peers."""
    decides = min(attempt, key=_weight)
    return replace(decides, peers=tuple(pod for pod in attempt if pod is not decides))


def _weight(pod: PodObservation) -> tuple[int, str, int]:
    """Key of the Pods of an attempt: it waits for those that wait, and ends as the one does that ended it.

    An attempt lives while one of its Pods does. After that, a Pod that failed by itself says more than one that was
    stopped, and that more than one which only lost its peer.
    """
    return _rank(pod), pod.finished_at or "", pod.index


def _rank(pod: PodObservation) -> int:
    if not pod.ended:
        waits = (pod.disrupted, pod.phase == "Pending" and pod.reason not in UNSPECIFIC, pod.phase == "Pending", True)
        return waits.index(True)
    is_done = pod.exit_code == ExitCode.DONE
    fails_job = pod.exit_code in tuple(code for code in ExitCode if code.fails_job)
    ends = (is_done and not pod.index, pod.failed and fails_job, pod.failed, pod.interrupted and not pod.lost_peer)
    return 4 + (*ends, pod.lost_peer, True).index(True)


def _is_stopped_by_suspension(pod: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Whether a Pod was deleted by the suspension of its Job, which clears the Job's start time."""
    if not pod["metadata"].get("deletionTimestamp"):
        return False
    started_at = (job.get("status") or {}).get("startTime")
    is_earlier = started_at is not None and (pod["metadata"].get("creationTimestamp") or "") < started_at
    return is_earlier or bool((job.get("spec") or {}).get("suspend"))


def _pod(pod: Mapping[str, Any], job: Mapping[str, Any]) -> PodObservation:
    metadata, status = pod["metadata"], pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    state = next((c.get("state") or {} for c in containers if c.get("name") == names.CONTAINER), {})
    conditions = {(c.get("type"), c.get("status")): c for c in status.get("conditions") or []}
    ended, waiting = state.get("terminated") or {}, state.get("waiting") or {}
    init = status.get("initContainerStatuses") or []
    explained = ended or _waiting_init(init) or waiting or conditions.get(("PodScheduled", "False"), {})
    disruption = conditions.get(("DisruptionTarget", "True"), {})
    return PodObservation(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        created_at=metadata.get("creationTimestamp"),
        phase=status.get("phase", "Pending"),
        exit_code=ended.get("exitCode"),
        reason=(explained.get("reason") or "")[:MAX_REASON],
        message=(explained.get("message") or "")[:MAX_MESSAGE],
        disruption=(disruption.get("reason") or "")[:MAX_REASON] or ("DisruptionTarget" if disruption else ""),
        pod_reason=(status.get("reason") or "")[:MAX_REASON],
        pod_message=(status.get("message") or "")[:MAX_MESSAGE].strip(),
        is_set_up=("PodReadyToStartContainers", "True") in conditions,
        node=(pod.get("spec") or {}).get("nodeName") or "",
        gone_by=metadata.get("deletionTimestamp"),
        started_at=(ended or state.get("running") or {}).get("startedAt"),
        finished_at=ended.get("finishedAt") or disruption.get("lastTransitionTime"),
        deleting=metadata.get("deletionTimestamp") is not None,
        scheduled_at=conditions.get(("PodScheduled", "True"), {}).get("lastTransitionTime"),
        beside=tuple(
            each["name"]
            for each in (*containers, *init)
            if each["name"] != names.CONTAINER and "running" in (each.get("state") or {})
        ),
        failed_init=_failed_init(init),
        suspended=_is_stopped_by_suspension(pod, job),
        index=index_of(pod),
    )


def index_of(pod: Mapping[str, Any]) -> int:
    """Number of a Pod's node, from 0; also for a Pod that has none."""
    index = (pod["metadata"].get("labels") or {}).get(names.INDEX_LABEL, "")
    return int(index) if index.isdecimal() else 0


def _waiting_init(containers: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Why an init container does not start; empty if none says so. The stage's container only says that it waits."""
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in UNSPECIFIC:
            return {**waiting, "message": f"container {container['name']}: {waiting.get('message') or ''}"}
    return {}


def _failed_init(containers: Sequence[Mapping[str, Any]]) -> str:
    for container in containers:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            details = f": {ended['message']}" if ended.get("message") else ""
            return f"container {container['name']} ended with exit code {ended['exitCode']}{details}"
    return ""
