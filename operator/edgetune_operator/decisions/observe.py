"""Observe: convert Kubernetes objects, as plain dicts, to the values on which plan decides."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from edgetune_contract.request import MAX_REVISION, Result
from edgetune_contract.stages import ExitCode, Stage
from edgetune_contract.values.times import seconds_between
from edgetune_operator.api import names
from edgetune_operator.api.profiles.gpu_use import Prices
from edgetune_operator.api.profiles.resources import CLAIMED_GPU, count_gpus
from edgetune_operator.api.reasons import BLOCKING
from edgetune_operator.api.spec import MAX_RETRY_TOKEN
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import ProgressStatus
from edgetune_operator.decisions.causes.queueing import NO_QUEUE, Queueing
from edgetune_operator.decisions.pods import (
    MAX_MESSAGE,
    MAX_REASON,
    PodObservation,
    controller_uid,
    creation_order,
    observe_pods,
)


class JobState(StrEnum):
    """State of a Job."""

    LIVE = "Live"
    COMPLETE = "Complete"
    FAILED = "Failed"


_JOB_CONTROLLER = "kubernetes.io/job-controller"
MAX_DIGEST = 64
MAX_PROFILE = 63
"""Longest name of a profile that is taken from a Job."""


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
    """Hash of its settings from profile and spec; see `stage_resources.job_settings`."""

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
    """Started attempts by the Job's status, without those that its failure policy ignores."""

    active: int
    """Pending and running Pods in the Job's status."""

    started_at: str | None
    finished_at: str | None
    pods: tuple[PodObservation, ...]
    """Oldest first."""

    stopped_at: str | None = None
    """When it was suspended or its deletion began; None if it is neither suspended nor being deleted."""

    profile: str = ""
    """Name of the profile with which it was created; empty for a Job of an older release."""

    prices: Prices | None = None
    """Prices of that profile when it was created."""
    queue: str = ""
    """LocalQueue in which the Job waits or waited; empty without one."""

    priority: str = ""
    """WorkloadPriorityClass of the Job; empty for the queue's default."""

    fixed_settings: str = ""
    """Hash of the settings that the Job keeps while it waits in a queue."""

    runs_elsewhere: bool = False
    """Whether another controller runs it, such as MultiKueue in another cluster: it has no Pods here."""

    looked_for: str = ""
    """Of prepare: digest of the part of the spec for whose later stages it looks in the store."""

    nodes: int = 1
    """Number of its Pods that run at the same time."""

    past_deadline: bool = False
    """Whether its deadline ends the Job: its Pods are stopped, and it fails once they have ended."""

    @property
    def runs(self) -> bool:
        """Whether an attempt runs or may run: one that the Job counts may run even if no watch has shown it."""
        if self.nodes > 1 and any(not pod.ended and pod.phase != "Pending" for pod in self.every_pod):
            return True
        newest = self.pods[-1] if self.pods else None
        if newest is None or newest.ended:
            return self.active > 0 or (newest is not None and newest.exit_code == ExitCode.DONE)
        return newest.phase != "Pending"

    @property
    def every_pod(self) -> tuple[PodObservation, ...]:
        """The Pods of all nodes and attempts."""
        return tuple(pod for attempt in self.pods for pod in attempt.together)

    @property
    def retry_limit(self) -> int:
        """How many attempts may fail and be followed by another one; see `job_manifests.backoff_limit`."""
        return (self.backoff_limit or 0) // self.nodes

    @property
    def gpus(self) -> int:
        """GPUs of each of its Pods."""
        return count_gpus(self.resources)

    @property
    def needs_service(self) -> bool:
        """Whether its Pods look for each other, or will, by the host names that a Service gives them."""
        is_live = self.state is JobState.LIVE and not self.deleting
        return self.nodes > 1 and is_live and not self.suspended and not self.runs_elsewhere

    @property
    def waits_in_queue(self) -> bool:
        """Whether it waits in a queue, where its place would be lost with it."""
        return self.suspended and bool(self.queue)

    @property
    def is_blocked(self) -> bool:
        """Whether its newest attempt waits until somebody acts, such as for an image that cannot be pulled."""
        newest = self.pods[-1] if self.pods else None
        return newest is not None and not newest.ended and newest.phase == "Pending" and newest.reason in BLOCKING

    def stopped_by_deadline(self, pod: PodObservation) -> bool:
        """Whether one of its attempts was stopped by the Job's deadline, which the Job may not say yet."""
        seconds = seconds_between(self.started_at, pod.finished_at)
        is_late = seconds is not None and self.deadline_seconds is not None and seconds >= self.deadline_seconds
        return self.past_deadline or is_late

    @property
    def result(self) -> Result | None:
        """Result of the attempt that finished the stage."""
        pod = self.finisher
        return pod.result if pod is not None else None

    @property
    def finisher(self) -> PodObservation | None:
        """The Pod that finished the stage, of the first node, and says so; None if there is none."""
        done = (pod for pod in reversed(self.every_pod) if pod.exit_code == ExitCode.DONE and not pod.index)
        return next((pod for pod in done if pod.result is not None and pod.result.failure is None), None)

    @property
    def outlived(self) -> PodObservation | None:
        """The last attempt of a live Job, if its stage's container has ended and its Pod lives on.

        Of several nodes, the Pod that lives on: the Job starts the Pods of the others again, which wait for it.
        """
        if self.state is not JobState.LIVE or self.deleting:
            return None
        attempts = self.pods if self.nodes == 1 else [attempt for attempt in self.pods if attempt.ended]
        last = attempts[-1].together if attempts else ()
        return next((pod for pod in last if pod.exit_code is not None and pod.is_alive), None)


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
    retries: tuple[str, ...]
    """Retry tokens that the object has now: in spec.retry and in the annotation."""

    source_revision: str
    """The Git commit that the object comes from, as its annotation says; empty without one."""

    previous: LoraFineTuneStatus
    jobs: tuple[JobObservation, ...]
    progress: ProgressStatus | None
    queueing: Queueing = NO_QUEUE
    served: frozenset[str] = frozenset()
    """UIDs of the Jobs that have the Service they need."""

    events: tuple[EventObservation, ...] = ()
    """Warnings about the Job or Pod whose status does not say why it waits, oldest first; empty if there is none."""

    @property
    def handled_retries(self) -> tuple[str, ...]:
        """Retry tokens that earlier passes handled, newest first."""
        return self.previous.handled_retries

    @property
    def new_retries(self) -> tuple[str, ...]:
        """Retry tokens that this pass or an earlier one has seen, and that are not handled; oldest first."""
        seen = dict.fromkeys((*self.previous.pending_retries, *self.retries))
        return tuple(token for token in seen if token not in self.handled_retries)

    @property
    def new_retry(self) -> str:
        """The newest of them; empty if there is none."""
        return next(iter(self.new_retries[::-1]), "")

    @property
    def present_retry(self) -> str:
        """The newest retry token, whether it is handled or not; empty if there was none."""
        return self.new_retry or next(iter(self.handled_retries), "")


def observe(
    document: Mapping[str, Any],
    jobs: Sequence[Mapping[str, Any]],
    pods: Sequence[Mapping[str, Any]],
    progress: ProgressStatus | None,
) -> Snapshot:
    """Snapshot of the object, its Jobs, their Pods, and the progress that the running stage reports."""
    metadata = document["metadata"]
    annotations, spec = metadata.get("annotations") or {}, document.get("spec")
    # Also of a spec that is invalid otherwise.
    in_spec = spec.get("retry") if isinstance(spec, Mapping) else None
    tokens = (in_spec, annotations.get(names.RETRY_REQUESTED_ANNOTATION))
    return Snapshot(
        namespace=metadata.get("namespace", "default"),
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 1),
        retries=tuple(_retry_token(token) for token in tokens if isinstance(token, str) and token),
        source_revision=_source_revision(annotations.get(names.SOURCE_REVISION_ANNOTATION)),
        previous=read_status(document),
        jobs=tuple(
            _job(job, pods) for job in sorted(jobs, key=creation_order) if _is_ours(job, metadata.get("uid", ""))
        ),
        progress=progress,
    )


def _source_revision(text: Any) -> str:
    """What the stage may get; a text that is too long for a commit says nothing."""
    return text if isinstance(text, str) and len(text) <= MAX_REVISION else ""


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


def _is_ours(job: Mapping[str, Any], uid: str) -> bool:
    stage = (job["metadata"].get("labels") or {}).get(names.STAGE_LABEL)
    return stage in set(Stage) and controller_uid(job, names.KIND) == uid


def _job(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> JobObservation:
    metadata, spec, status = job["metadata"], job.get("spec") or {}, job.get("status") or {}
    annotations, labels = metadata.get("annotations") or {}, metadata["labels"]
    state, end = job_state(job)
    nodes, attempts = nodes_of(job), observe_pods(job, pods)
    return JobObservation(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        created_at=metadata.get("creationTimestamp"),
        stage=Stage(labels[names.STAGE_LABEL]),
        digest=annotations.get(names.DIGEST_ANNOTATION, ""),
        retry=annotations.get(names.RETRY_ANNOTATION, ""),
        looked_for=annotations.get(names.LOOKED_FOR_ANNOTATION, "")[:MAX_DIGEST],
        settings=annotations.get(names.SETTINGS_ANNOTATION, ""),
        backoff_limit=spec.get("backoffLimit"),
        deadline_seconds=spec.get("activeDeadlineSeconds"),
        resources=_resources(job),
        state=state,
        deleting=metadata.get("deletionTimestamp") is not None,
        suspended=bool(spec.get("suspend")),
        reason=(end.get("reason") or "")[:MAX_REASON],
        message=(end.get("message") or "")[:MAX_MESSAGE],
        attempts=_attempts(status, nodes, attempts),
        active=status.get("active") or 0,
        started_at=status.get("startTime"),
        finished_at=status.get("completionTime") or end.get("lastTransitionTime"),
        pods=attempts,
        stopped_at=metadata.get("deletionTimestamp") or _suspended_at(status),
        profile=annotations.get(names.PROFILE_ANNOTATION, "")[:MAX_PROFILE],
        prices=_prices(annotations.get(names.PRICES_ANNOTATION)),
        queue=labels.get(names.QUEUE_LABEL, ""),
        priority=labels.get(names.PRIORITY_LABEL, ""),
        fixed_settings=annotations.get(names.FIXED_SETTINGS_ANNOTATION, ""),
        runs_elsewhere=spec.get("managedBy", _JOB_CONTROLLER) != _JOB_CONTROLLER,
        nodes=nodes,
        past_deadline=any(_ends_by_deadline(each) for each in status.get("conditions") or ()),
    )


def nodes_of(job: Mapping[str, Any]) -> int:
    """Number of Pods of a Job that run at the same time."""
    spec = job.get("spec") or {}
    return (spec.get("completions") or 1) if spec.get("completionMode") == "Indexed" else 1


def _attempts(status: Mapping[str, Any], nodes: int, attempts: Sequence[PodObservation]) -> int:
    """Started attempts of a Job. Kubernetes counts its Pods, of which one attempt on several nodes has many."""
    failed, succeeded, active = (status.get(count) or 0 for count in ("failed", "succeeded", "active"))
    if nodes == 1:
        return failed + succeeded + active
    counted = failed - sum(attempt.surplus for attempt in attempts) + min(succeeded + active, 1)
    # Pods can be observed before the Job has counted them.
    continues = any(not attempt.failed and not attempt.interrupted for attempt in attempts)
    return max(counted, sum(attempt.failed for attempt in attempts) + continues)


def _suspended_at(status: Mapping[str, Any]) -> str | None:
    conditions = status.get("conditions") or []
    is_true = (each for each in conditions if each["type"] == "Suspended" and each.get("status") == "True")
    return next((each.get("lastTransitionTime") for each in is_true), None)


def _prices(text: str | None) -> Prices | None:
    try:
        return None if text is None else Prices.model_validate_json(text)
    except ValidationError:  # somebody edited it
        return None


def _ends_by_deadline(condition: Mapping[str, Any]) -> bool:
    # FailureTarget comes first, when the Job controller stops the Pods.
    is_end = condition["type"] in ("FailureTarget", "Failed") and condition.get("status") == "True"
    return is_end and condition.get("reason") == "DeadlineExceeded"


def containers_of(job: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Containers of a Job's Pod template."""
    template = (job.get("spec") or {}).get("template") or {}
    containers: Sequence[Mapping[str, Any]] = (template.get("spec") or {}).get("containers") or []
    return containers


def _resources(job: Mapping[str, Any]) -> Mapping[str, str | int]:
    found = next((each.get("resources") or {} for each in containers_of(job) if each["name"] == names.CONTAINER), {})
    claimed = {CLAIMED_GPU: len(found["claims"])} if found.get("claims") else {}
    # Without a request, the limit is requested.
    return {**(found.get("limits") or {}), **(found.get("requests") or {}), **claimed}


def job_state(job: Mapping[str, Any]) -> tuple[JobState, Mapping[str, Any]]:
    """State of a Job, and the condition that says how it ended; an empty one until it has."""
    found = (job.get("status") or {}).get("conditions") or []
    conditions = {condition["type"]: condition for condition in found if condition.get("status") == "True"}
    if "Failed" in conditions:
        return JobState.FAILED, conditions["Failed"]
    if "Complete" in conditions:
        return JobState.COMPLETE, conditions["Complete"]
    return JobState.LIVE, {}
