"""Queueing: why a Job waits in a Kueue queue, in Kueue's words, and whether somebody has to act.

Queued                 waits for quota, or for its turn
Preempted              lost its quota to another workload, and waits again
QueueOnHold            an administrator holds the queue, and releases it
KueueNotFound, QueueNotFound, QueueInactive, QueueRefuses, QueueTooSmall, PriorityClassNotFound, WorkloadDeactivated
                       never starts unless somebody acts
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from edgetune_operator.api.reasons import Reason

Diagnosis = tuple[str, str]
"""Reason and message."""

KUEUE_DELAY = timedelta(seconds=10)
"""Longest time that a running Kueue takes to make the Workload of a new Job."""

_STOPPED = "Stopped"
# "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor l4, 1 more needed"
_POD_SET = re.compile(r"couldn't assign flavors to pod set [^:]+: ")
_PREEMPTION = re.compile(r"JobUID: [^)]*\) due to (?P<why>.+?); preemptor path: (?P<path>[^;]*)")
# These also name the queue as inactive: the queue's own condition says why.
_INACTIVE = re.compile(r"Queue \S+ is (inactive|stopped)|ClusterQueue \S+ .*(doesn't exist|not found|or missing)")
_NO_LOCAL_QUEUE = re.compile(r"LocalQueue \S+ .*(doesn't exist|or missing)")
_REFUSED = "doesn't match ClusterQueue selector"
_NOT_COVERED = "unavailable in ClusterQueue"
_OCCUPIED_FLAVOR = re.compile(r"insufficient unused quota for \S+ in flavor (\S+),")
_SMALL_FLAVOR = re.compile(r"insufficient quota for \S+ in flavor (\S+), [^,]*> maximum capacity")


@dataclass(frozen=True)
class QueueCondition:
    """A condition of a Workload or a queue."""

    is_true: bool
    reason: str
    message: str
    since: str


@dataclass(frozen=True)
class WorkloadObservation:
    """Kueue's Workload of a Job."""

    name: str
    created_at: str
    queue: str
    is_active: bool
    conditions: Mapping[str, QueueCondition]
    checks: tuple[str, ...] = ()
    """Admission checks that are not ready, each with its state and message."""

    preemptor: str = ""
    """The LoraFineTune of the same namespace that preempted it; empty if that is another team's, or unknown."""

    @property
    def is_refused(self) -> bool:
        """Whether a queue does not consider it at all."""
        return bool(_INACTIVE.search(self.cause))

    @property
    def cause(self) -> str:
        """Why it has no quota, in Kueue's words; empty if Kueue has not said it."""
        reserved = self.conditions.get("QuotaReserved")
        return _POD_SET.sub("", reserved.message) if reserved is not None and not reserved.is_true else ""

    @property
    def eviction(self) -> QueueCondition | None:
        """Why it lost its quota; None unless it waits again because of that."""
        found = self.conditions.get("Evicted")
        return found if found is not None and found.is_true else None

    @property
    def since(self) -> str:
        """Since when it waits (RFC 3339)."""
        return self.eviction.since if self.eviction is not None else self.created_at


@dataclass(frozen=True)
class QueueState:
    """What is known about a queue beside its Workloads."""

    is_served: bool = True
    """Whether the cluster has Kueue."""

    cluster_queue: str = ""
    local: QueueCondition | None = None
    """The LocalQueue's condition Active; None if it has none."""

    cluster: QueueCondition | None = None
    """The ClusterQueue's condition Active; None if it has none, or cannot be read."""

    missing_priority: str = ""
    """The WorkloadPriorityClass of the Job, if there is none with that name."""

    @property
    def is_on_hold(self) -> bool:
        """Whether an administrator has stopped the queue, on purpose."""
        return any(each is not None and each.reason == _STOPPED for each in (self.local, self.cluster))


@dataclass(frozen=True)
class Queueing:
    """What a pass knows of the queues in which the object's Jobs wait."""

    workloads: Mapping[str, WorkloadObservation] = field(default_factory=dict)
    """By the UID of the Job."""

    state: QueueState | None = None
    """Of the queue of the Job that waits, if its Workload does not say enough."""


NO_QUEUE = Queueing()
"""For Jobs that do not wait in a queue."""


def observe_workloads(workloads: Sequence[Mapping[str, Any]]) -> dict[str, WorkloadObservation]:
    """Workloads, as `cluster.workloads` keeps them, by the UID of their Job."""
    return {workload["job"]: _workload(workload) for workload in workloads}


def _workload(workload: Mapping[str, Any]) -> WorkloadObservation:
    metadata, spec, status = workload["metadata"], workload.get("spec") or {}, workload.get("status") or {}
    return WorkloadObservation(
        name=metadata["name"],
        created_at=metadata.get("creationTimestamp") or "",
        queue=spec.get("queueName") or "",
        is_active=spec.get("active") is not False,
        conditions=_conditions(status),
        checks=tuple(_pending_checks(status)),
        preemptor=workload.get("preemptor") or "",
    )


def _conditions(status: Mapping[str, Any]) -> dict[str, QueueCondition]:
    return {
        each["type"]: QueueCondition(
            is_true=each.get("status") == "True",
            reason=each.get("reason") or "",
            message=each.get("message") or "",
            since=each.get("lastTransitionTime") or "",
        )
        for each in status.get("conditions") or ()
    }


def _pending_checks(status: Mapping[str, Any]) -> Iterator[str]:
    for check in status.get("admissionChecks") or ():
        if check.get("state") != "Ready":
            message = f": {check['message']}" if check.get("message") else ""
            yield f"{check.get('name')} is {check.get('state')}{message}"


def observe_queue(found: Mapping[str, Any]) -> QueueState:
    """A queue: its LocalQueue and ClusterQueue as the API server returns them, and the missing priority class."""
    local, cluster = found.get("localQueue") or {}, found.get("clusterQueue") or {}
    return QueueState(
        is_served=found["isServed"],
        cluster_queue=(local.get("spec") or {}).get("clusterQueue") or "",
        local=_conditions(local.get("status") or {}).get("Active"),
        cluster=_conditions(cluster.get("status") or {}).get("Active"),
        missing_priority=found.get("missingPriority") or "",
    )


def is_unseen(created_at: str | None, workload: WorkloadObservation | None, now: datetime) -> bool:
    """Whether a suspended Job has had no Workload for longer than a running Kueue takes."""
    return workload is None and created_at is not None and now - datetime.fromisoformat(created_at) >= KUEUE_DELAY


def why_queued(queue: str, namespace: str, workload: WorkloadObservation | None, state: QueueState | None) -> Diagnosis:
    """Why a suspended Job waits.

    Args:
        queue: the LocalQueue.
        namespace: the object's.
        workload: of the Job; None if there is none, or Workloads are not watched.
        state: of the queue; None if the Workload says enough.
    """
    if workload is None:
        return _without_workload(queue, state)
    named = f"LocalQueue {queue} of namespace {namespace}"
    if not workload.is_active:
        why = f": {workload.eviction.message}" if workload.eviction is not None else ""
        return Reason.WORKLOAD_DEACTIVATED, (
            f"its Workload {workload.name} is deactivated{why}; set spec.active of the Workload to true, and the stage "
            "continues by itself"
        )
    cause = workload.cause
    if _NO_LOCAL_QUEUE.search(cause):
        return Reason.QUEUE_NOT_FOUND, f"{named} not found; create it, or correct queue.name in the profile"
    if workload.is_refused:
        return _inactive(named, workload, state)
    if _REFUSED in cause:
        return Reason.QUEUE_REFUSES, f"{named}: its ClusterQueue does not admit this namespace: {cause}"
    if _is_too_small(cause):
        return Reason.QUEUE_TOO_SMALL, (
            f"{named} can never admit this stage: {cause}; request less in the profile, or raise the queue's quota"
        )
    return _waiting(queue, workload)


def _is_too_small(cause: str) -> bool:
    """Whether the queue can never admit it: no flavor that Kueue names has enough quota, used or unused."""
    small = set(_SMALL_FLAVOR.findall(cause))
    return _NOT_COVERED in cause or (bool(small) and small >= set(_OCCUPIED_FLAVOR.findall(cause)))


def _without_workload(queue: str, state: QueueState | None) -> Diagnosis:
    if state is None:
        return Reason.QUEUED, f"the Job is suspended until {f'queue {queue}' if queue else 'a queue'} admits it"
    if not state.is_served:
        return Reason.KUEUE_NOT_FOUND, (
            f"the Job is suspended until queue {queue} admits it, and the API server does not serve "
            "kueue.x-k8s.io/v1beta2: install Kueue, or remove queue and requireQueue from the profile"
        )
    if state.missing_priority:
        return Reason.PRIORITY_CLASS_NOT_FOUND, (
            f"WorkloadPriorityClass {state.missing_priority} not found; create it, or correct spec.priority or "
            "queue.priorities in the profile"
        )
    return Reason.QUEUED, (
        f"the Job is suspended until queue {queue} admits it, and Kueue has made no Workload of it: check that Kueue "
        "runs and manages Jobs of this namespace"
    )


def _inactive(named: str, workload: WorkloadObservation, state: QueueState | None) -> Diagnosis:
    """The queue admits nothing: it is held on purpose, or its configuration is incomplete."""
    if state is not None and state.is_on_hold:
        is_local = state.local is not None and state.local.reason == _STOPPED
        held = named if is_local else f"ClusterQueue {state.cluster_queue}"
        return Reason.QUEUE_ON_HOLD, f"an administrator holds {held}; waits in it since {workload.since}"
    known = state.cluster.message if state is not None and state.cluster is not None else ""
    return Reason.QUEUE_INACTIVE, f"{named} admits nothing: {known or workload.cause}; ask the platform team"


def _waiting(queue: str, workload: WorkloadObservation) -> Diagnosis:
    eviction = workload.eviction
    cause = workload.cause
    if eviction is not None and cause == eviction.message:
        cause = ""  # Kueue repeats the reason of the eviction until it has considered the Workload again
    if workload.checks:
        cause = f"quota is reserved; {'; '.join(workload.checks)}"
    elif not cause and "QuotaReserved" not in workload.conditions:
        cause = "not considered yet, others are ahead of it"
    waits = f"waits in queue {queue} since {workload.since}" + (f": {cause}" if cause else "")
    if eviction is None:
        return Reason.QUEUED, waits
    preempted = _PREEMPTION.search(eviction.message)
    if preempted is None:
        return Reason.EVICTED, f"evicted by Kueue: {eviction.message}; {waits}"
    who = f"{workload.preemptor}" if workload.preemptor else f"a workload of {_queue_of(preempted['path'])}"
    return Reason.PREEMPTED, f"preempted by {who}: {preempted['why']}; {waits}"


def _queue_of(path: str) -> str:
    """The ClusterQueue at the end of a path of cohorts, such as /research/team-a."""
    return f"ClusterQueue {path.rpartition('/')[2]}"
