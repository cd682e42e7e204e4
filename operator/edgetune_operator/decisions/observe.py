"""Observe: convert Kubernetes objects, as plain dicts, to the values on which plan decides."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from edgetune_contract.request import Result
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from edgetune_operator.api.objects import MAX_RETRY_TOKEN, LoraFineTuneStatus, ProgressStatus

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
    """One attempt of a stage."""

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
    beside: tuple[str, ...] = ()
    """Other containers that are running, such as a service mesh's; sidecars among the init containers too."""

    failed_init: str = ""
    """Which init container failed, and how; empty if none did."""

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
        stopped = self.exit_code == ExitCode.INTERRUPTED and not self.exceeded_storage
        return self.ended and (self.disrupted or stopped)


class JobState(StrEnum):
    """State of a Job."""

    LIVE = "Live"
    COMPLETE = "Complete"
    FAILED = "Failed"


@dataclass(frozen=True)
class JobObservation:
    """One Job of the object, with its Pods."""

    name: str
    uid: str
    created_at: str | None
    stage: Stage
    digest: str
    retry: str
    """The retry token when the Job was created."""

    settings: str
    """Hash of its settings from profile and spec; see `stage_resources.settings_digest`."""

    backoff_limit: int | None
    """The Job's own retry limit: that of the spec may have changed since."""

    deadline_seconds: int | None
    """The Job's own deadline, in seconds."""

    resources: Mapping[str, str | int]
    """What each attempt requests, by resource: the profile may have changed since."""

    state: JobState
    deleting: bool
    suspended: bool
    """Whether the Job waits for admission by a queue."""

    reason: str
    """Reason of the Failed condition, such as BackoffLimitExceeded, PodFailurePolicy or DeadlineExceeded."""

    message: str
    attempts: int
    """Started Pods in the Job's status, without those that its failure policy ignores."""

    active: int
    """Pending and running Pods in the Job's status."""

    started_at: str | None
    finished_at: str | None
    pods: tuple[PodObservation, ...]
    """Oldest first."""

    @property
    def runs(self) -> bool:
        """Whether an attempt runs or may run: one that the Job counts may run even if no watch has shown it."""
        newest = self.pods[-1] if self.pods else None
        if newest is None or newest.ended:
            return self.active > 0 or (newest is not None and newest.exit_code == ExitCode.DONE)
        return newest.phase != "Pending"

    @property
    def result(self) -> Result | None:
        """Result of the attempt that finished the stage."""
        results = (pod.result for pod in reversed(self.pods) if pod.exit_code == ExitCode.DONE)
        return next((result for result in results if result is not None and result.failure is None), None)

    @property
    def outlived(self) -> PodObservation | None:
        """The last attempt of a live Job, if its stage's container has ended and its Pod lives on."""
        newest = self.pods[-1] if self.pods else None
        is_outlived = newest is not None and newest.exit_code is not None and newest.is_alive
        return newest if is_outlived and self.state is JobState.LIVE and not self.deleting else None


@dataclass(frozen=True)
class EventObservation:
    """A warning about a Job or a Pod."""

    reason: str
    message: str
    at: datetime
    """Time of its last occurrence: Kubernetes counts repeated Events instead of adding new ones."""


@dataclass(frozen=True)
class Snapshot:
    """Everything that one pass knows."""

    namespace: str
    name: str
    uid: str
    generation: int
    retry_requested: str
    previous: LoraFineTuneStatus
    jobs: tuple[JobObservation, ...]
    progress: ProgressStatus | None
    events: tuple[EventObservation, ...] = ()
    """Warnings about the Job or Pod whose status does not say why it waits, oldest first; empty if there is none."""

    @property
    def new_retry(self) -> str:
        """The retry token if it has not been handled; otherwise empty, also if the token was removed."""
        return "" if self.retry_requested == self.previous.last_handled_retry else self.retry_requested


def observe(
    document: Mapping[str, Any],
    jobs: Sequence[Mapping[str, Any]],
    pods: Sequence[Mapping[str, Any]],
    progress: ProgressStatus | None,
) -> Snapshot:
    """Snapshot of the object, its Jobs, their Pods, and the progress that the running stage reports."""
    metadata = document["metadata"]
    annotations = metadata.get("annotations") or {}
    return Snapshot(
        namespace=metadata.get("namespace", "default"),
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 1),
        retry_requested=_retry_token(annotations.get(names.RETRY_REQUESTED_ANNOTATION, "")),
        previous=read_status(document),
        jobs=tuple(_job(job, pods) for job in sorted(jobs, key=_creation) if _is_ours(job, metadata.get("uid", ""))),
        progress=progress,
    )


def _retry_token(text: str) -> str:
    """The token as the status can have it: a long one is cut and gets a hash, so that different ones stay different."""
    if len(text) <= MAX_RETRY_TOKEN:
        return text
    mark = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return f"{text[: MAX_RETRY_TOKEN - len(mark) - 1]}-{mark}"


def read_status(document: Mapping[str, Any]) -> LoraFineTuneStatus:
    """The object's status; an empty one if it has none or an invalid one."""
    try:
        return LoraFineTuneStatus.model_validate(document.get("status") or {})
    except ValidationError:
        # Status is a view: one that another version wrote is rebuilt, and every stage finds its manifest.
        return LoraFineTuneStatus()


def observe_events(events: Sequence[Mapping[str, Any]]) -> tuple[EventObservation, ...]:
    """Events, oldest first."""
    return tuple(sorted((_event(event) for event in events), key=lambda event: event.at))


def _event(event: Mapping[str, Any]) -> EventObservation:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    last = next(time for time in (*times, event["metadata"].get("creationTimestamp")) if time)
    return EventObservation(
        reason=(event.get("reason") or "Unknown")[:MAX_REASON],
        message=(event.get("message") or "")[:MAX_MESSAGE],
        at=datetime.fromisoformat(last),
    )


def controller_uid(body: Mapping[str, Any], kind: str) -> str | None:
    """UID of a Job's or Pod's controller; None if no object of that kind controls it."""
    owners = body["metadata"].get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller") and owner["kind"] == kind), None)


def _is_ours(job: Mapping[str, Any], uid: str) -> bool:
    stage = (job["metadata"].get("labels") or {}).get(names.STAGE_LABEL)
    return stage in set(Stage) and controller_uid(job, names.KIND) == uid


def _creation(item: Mapping[str, Any]) -> tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("creationTimestamp") or "", metadata["name"]


def _job(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> JobObservation:
    metadata, spec, status = job["metadata"], job.get("spec") or {}, job.get("status") or {}
    annotations = metadata.get("annotations") or {}
    state, end = job_state(job)
    return JobObservation(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        created_at=metadata.get("creationTimestamp"),
        stage=Stage(metadata["labels"][names.STAGE_LABEL]),
        digest=annotations.get(names.DIGEST_ANNOTATION, ""),
        retry=annotations.get(names.RETRY_ANNOTATION, ""),
        settings=annotations.get(names.SETTINGS_ANNOTATION, ""),
        backoff_limit=spec.get("backoffLimit"),
        deadline_seconds=spec.get("activeDeadlineSeconds"),
        resources=_resources(job),
        state=state,
        deleting=metadata.get("deletionTimestamp") is not None,
        suspended=bool(spec.get("suspend")),
        reason=(end.get("reason") or "")[:MAX_REASON],
        message=(end.get("message") or "")[:MAX_MESSAGE],
        attempts=sum(status.get(count) or 0 for count in ("failed", "succeeded", "active")),
        active=status.get("active") or 0,
        started_at=status.get("startTime"),
        finished_at=status.get("completionTime") or end.get("lastTransitionTime"),
        pods=observe_pods(job, pods),
    )


def containers_of(job: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Containers of a Job's Pod template."""
    template = (job.get("spec") or {}).get("template") or {}
    containers: Sequence[Mapping[str, Any]] = (template.get("spec") or {}).get("containers") or []
    return containers


def _resources(job: Mapping[str, Any]) -> Mapping[str, str | int]:
    found = next((each.get("resources") or {} for each in containers_of(job) if each["name"] == names.CONTAINER), {})
    # Without a request, the limit is requested.
    return {**(found.get("limits") or {}), **(found.get("requests") or {})}


def job_state(job: Mapping[str, Any]) -> tuple[JobState, Mapping[str, Any]]:
    """State of a Job, and the condition that says how it ended; an empty one until it has."""
    found = (job.get("status") or {}).get("conditions") or []
    conditions = {condition["type"]: condition for condition in found if condition.get("status") == "True"}
    if "Failed" in conditions:
        return JobState.FAILED, conditions["Failed"]
    if "Complete" in conditions:
        return JobState.COMPLETE, conditions["Complete"]
    return JobState.LIVE, {}


def observe_pods(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> tuple[PodObservation, ...]:
    """A Job's attempts, oldest first, by owner reference: anybody can set labels and names."""
    own = [pod for pod in pods if controller_uid(pod, "Job") == job["metadata"]["uid"]]
    return tuple(_pod(pod) for pod in sorted(own, key=_creation))


def _pod(pod: Mapping[str, Any]) -> PodObservation:
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
        beside=tuple(
            each["name"]
            for each in (*containers, *init)
            if each["name"] != names.CONTAINER and "running" in (each.get("state") or {})
        ),
        failed_init=_failed_init(init),
    )


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
