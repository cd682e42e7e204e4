"""Observe: from Kubernetes objects as plain dicts to the values that plan decides on."""

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

POD_STATUS_DELAY = timedelta(seconds=20)
"""Longest time between the end of a Job and the moment when the end of its last Pod is seen.

Jobs and Pods are watched separately. It is longer than it takes until the second lists after a start have shown what
the first ones and the watches did not.
"""


@dataclass(frozen=True)
class PodObservation:
    """One attempt of a stage."""

    name: str
    uid: str
    created_at: str | None
    phase: str
    exit_code: int | None
    """Exit code of the stage's container; None while it has not ended."""

    reason: str
    """The cluster's word for how the container ended or what it waits for, such as OOMKilled or Unschedulable."""

    message: str
    """Termination message; for a container that waits, the cluster's sentence."""

    disruption: str
    """Reason for which the Pod is ended from outside, such as EvictionByEvictionAPI; empty if it is not."""

    pod_reason: str
    """The kubelet's word for the whole Pod, such as Evicted, or UnexpectedAdmissionError; empty if it has none."""

    pod_message: str
    """Its sentence."""

    started_at: str | None
    """When the container started; None while it has not."""

    finished_at: str | None
    """When the container ended; None while it has not, or if its node never said."""

    @property
    def disrupted(self) -> bool:
        """Whether the Pod is ended from outside: evicted, preempted, or its node is gone."""
        return self.disruption != ""

    @property
    def ended(self) -> bool:
        """Whether the attempt is over; a Pod whose node is gone, or whose node never took it, has no exit code."""
        return self.exit_code is not None or self.phase == "Failed"

    @property
    def failed(self) -> bool:
        """Whether the attempt ended by itself without being done."""
        return self.ended and self.exit_code != ExitCode.DONE and not self.interrupted

    @property
    def exceeded_storage(self) -> bool:
        """Whether the Pod took more of its node's disk than it may; another attempt would do the same."""
        return self.pod_reason == "Evicted" and not self.disrupted

    @property
    def result(self) -> Result | None:
        """What the stage said when it ended; None if it said nothing that can be read."""
        try:
            return Result.decode(self.message)
        except ValidationError:
            return None

    @property
    def interrupted(self) -> bool:
        """Whether the attempt was stopped from outside, has ended, and does not count."""
        stopped = self.exit_code == ExitCode.INTERRUPTED and not self.exceeded_storage
        return self.ended and (self.disrupted or stopped)


class JobState(StrEnum):
    """Where a Job is."""

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
    """Retry token that was current when the Job was made."""

    settings: str
    """Hash of what profile and spec gave it; see `run.settings_digest`."""

    backoff_limit: int | None
    """Its own limit of retries: the spec may say another one by now."""

    deadline_seconds: int | None
    """Its own longest time, in seconds."""

    resources: Mapping[str, str | int]
    """What each of its attempts has, by the names of resources: the profile may say something else by now."""

    state: JobState
    deleting: bool
    suspended: bool
    """Whether a queue holds the Job back."""

    reason: str
    """Reason of the Failed condition, such as BackoffLimitExceeded, PodFailurePolicy or DeadlineExceeded."""

    message: str
    attempts: int
    """Pods that were started and count, by the Job controller: it leaves out those that its failure policy ignores."""

    active: int
    """Pods that are pending or run, by the Job controller."""

    started_at: str | None
    finished_at: str | None
    pods: tuple[PodObservation, ...]
    """Oldest first."""

    @property
    def runs(self) -> bool:
        """Whether an attempt runs, or may: one that the Job counts and that no watch has told of may be anywhere."""
        newest = self.pods[-1] if self.pods else None
        if newest is None or newest.ended:
            return self.active > 0 or (newest is not None and newest.exit_code == ExitCode.DONE)
        return newest.phase != "Pending"

    @property
    def result(self) -> Result | None:
        """Result of the attempt that finished the stage."""
        results = (pod.result for pod in reversed(self.pods) if pod.exit_code == ExitCode.DONE)
        return next((result for result in results if result is not None and result.failure is None), None)


@dataclass(frozen=True)
class EventObservation:
    """What a component of the cluster told of a Job or a Pod."""

    warning: bool
    reason: str
    message: str
    at: datetime
    """When it was told last: Events that repeat are counted, not added."""


@dataclass(frozen=True)
class Snapshot:
    """All that one pass knows."""

    namespace: str
    name: str
    uid: str
    generation: int
    retry_requested: str
    previous: LoraFineTuneStatus
    jobs: tuple[JobObservation, ...]
    progress: ProgressStatus | None
    events: tuple[EventObservation, ...] = ()
    """Events of the Job or Pod whose status does not say what it waits for, oldest first; else none."""

    @property
    def new_retry(self) -> str:
        """A retry token that is not answered yet; empty if there is none. A token that was taken away asks nothing."""
        return "" if self.retry_requested == self.previous.last_handled_retry else self.retry_requested


def observe(
    document: Mapping[str, Any],
    jobs: Sequence[Mapping[str, Any]],
    pods: Sequence[Mapping[str, Any]],
    progress: ProgressStatus | None,
) -> Snapshot:
    """Snapshot from the object, its Jobs, their Pods, and the running stage's own figures."""
    metadata = document["metadata"]
    annotations = metadata.get("annotations") or {}
    return Snapshot(
        namespace=metadata.get("namespace", "default"),
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 1),
        retry_requested=annotations.get(names.RETRY_REQUESTED_ANNOTATION, "")[:MAX_RETRY_TOKEN],
        previous=read_status(document),
        jobs=tuple(_job(job, pods) for job in sorted(jobs, key=_age) if _is_ours(job, metadata.get("uid", ""))),
        progress=progress,
    )


def read_status(document: Mapping[str, Any]) -> LoraFineTuneStatus:
    """Status that an object carries; an empty one if it has none or one that cannot be read."""
    try:
        return LoraFineTuneStatus.model_validate(document.get("status") or {})
    except ValidationError:
        # Status is a view: one that another version wrote is made anew, and every stage finds its manifest.
        return LoraFineTuneStatus()


def observe_events(events: Sequence[Mapping[str, Any]]) -> tuple[EventObservation, ...]:
    """Events, oldest first."""
    return tuple(sorted((_event(event) for event in events), key=lambda event: event.at))


def _event(event: Mapping[str, Any]) -> EventObservation:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    told_at = next(time for time in (*times, event["metadata"].get("creationTimestamp")) if time)
    return EventObservation(
        warning=event.get("type") == "Warning",
        reason=event.get("reason") or "",
        message=event.get("message") or "",
        at=datetime.fromisoformat(told_at),
    )


def controller_uid(body: Mapping[str, Any], kind: str) -> str | None:
    """UID of what controls a Job or a Pod; None if nothing of that kind does."""
    owners = body["metadata"].get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller") and owner["kind"] == kind), None)


def _is_ours(job: Mapping[str, Any], uid: str) -> bool:
    stage = (job["metadata"].get("labels") or {}).get(names.STAGE_LABEL)
    return stage in set(Stage) and controller_uid(job, names.KIND) == uid


def _age(item: Mapping[str, Any]) -> tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("creationTimestamp") or "", metadata["name"]


def _job(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> JobObservation:
    metadata, spec, status = job["metadata"], job.get("spec") or {}, job.get("status") or {}
    annotations = metadata.get("annotations") or {}
    state, end = ending(job)
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
        reason=end.get("reason") or "",
        message=end.get("message") or "",
        attempts=sum(status.get(count) or 0 for count in ("failed", "succeeded", "active")),
        active=status.get("active") or 0,
        started_at=status.get("startTime"),
        finished_at=status.get("completionTime") or end.get("lastTransitionTime"),
        pods=observe_pods(job, pods),
    )


def containers_of(job: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Containers of a Job's Pods."""
    template = (job.get("spec") or {}).get("template") or {}
    containers: Sequence[Mapping[str, Any]] = (template.get("spec") or {}).get("containers") or []
    return containers


def _resources(job: Mapping[str, Any]) -> Mapping[str, str | int]:
    asked = next((each.get("resources") or {} for each in containers_of(job) if each["name"] == names.CONTAINER), {})
    return {**(asked.get("requests") or {}), **(asked.get("limits") or {})}


def ending(job: Mapping[str, Any]) -> tuple[JobState, Mapping[str, Any]]:
    """Where a Job is, and the condition that says how it ended; an empty one while it has not."""
    found = (job.get("status") or {}).get("conditions") or []
    conditions = {condition["type"]: condition for condition in found if condition.get("status") == "True"}
    if "Failed" in conditions:
        return JobState.FAILED, conditions["Failed"]
    if "Complete" in conditions:
        return JobState.COMPLETE, conditions["Complete"]
    return JobState.LIVE, {}


def observe_pods(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> tuple[PodObservation, ...]:
    """A Job's attempts, oldest first. Labels and names are anybody's: the Job's UID tells which Pods it has made."""
    own = [pod for pod in pods if controller_uid(pod, "Job") == job["metadata"]["uid"]]
    return tuple(_pod(pod) for pod in sorted(own, key=_age))


def _pod(pod: Mapping[str, Any]) -> PodObservation:
    metadata, status = pod["metadata"], pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    state = next((c.get("state") or {} for c in containers if c.get("name") == names.CONTAINER), {})
    conditions = {(c.get("type"), c.get("status")): c for c in status.get("conditions") or []}
    ended, waiting = state.get("terminated") or {}, state.get("waiting") or {}
    told = ended or waiting or conditions.get(("PodScheduled", "False"), {})
    disruption = conditions.get(("DisruptionTarget", "True"), {})
    return PodObservation(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        created_at=metadata.get("creationTimestamp"),
        phase=status.get("phase", "Pending"),
        exit_code=ended.get("exitCode"),
        reason=told.get("reason") or "",
        message=told.get("message") or "",
        disruption=disruption.get("reason") or ("DisruptionTarget" if disruption else ""),
        pod_reason=status.get("reason") or "",
        pod_message=(status.get("message") or "").strip(),
        started_at=(ended or state.get("running") or {}).get("startedAt"),
        finished_at=ended.get("finishedAt") or disruption.get("lastTransitionTime"),
    )
