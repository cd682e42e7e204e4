"""Deletion: the second, smaller state machine, of an object that is deleted with its artifacts.

        deletionTimestamp, and our finalizer holds the object
                 │
        let go?  ├── the namespace is being deleted as well ────────► finalizer goes, Warning
                 ├── policy is Retain by now ────────────────────► finalizer goes
                 ├── spec invalid, profile not found ────────────► finalizer goes, Warning
                 ▼
     clean-up    ├── complete ───────────────────────────────────► finalizer goes
          Job    ├── failed ─────────────────────────────────────► finalizer goes, Warning
                 ▼
        too long since it began? ── its Jobs are deleted ────────► finalizer goes, Warning
                 ▼
     stage Jobs  ├── there ── delete them ── wait
                 ▼
     clean-up    ├── live ─── wait
          Job    └── none ─── create it, once no Pod of the object runs ── wait

Nothing that is out of order holds an object for ever: every path ends within a bound, and a Warning then says what
stays behind, and where.

The clean-up Job has no owner reference: a deletion in the foreground deletes all dependents first, and would take the
Job away before it has done anything. Its label tells whose it is, and its time to live removes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from edgetune_contract.clean_up import CleanUpRequest, CleanUpResult
from edgetune_operator.api import names
from edgetune_operator.api.objects import DeletionPolicy, LoraFineTuneSpec
from edgetune_operator.api.profiles import Profile
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.spec_check import InvalidSpec
from edgetune_operator.decisions.events import EventDraft
from edgetune_operator.decisions.observe import (
    POD_STATUS_DELAY,
    JobState,
    PodObservation,
    Snapshot,
    ending,
    observe_pods,
)
from edgetune_operator.decisions.plan import DeleteJob

CLEAN_UP_SECONDS = 600
"""Longest time of the clean-up Job, in seconds."""

CLEAN_UP_RETRIES = 3
"""Failed attempts of the clean-up Job before it has failed."""

CLEANED_UP = "CleanedUp"
"""Condition whose time says when the deletion began, also to an operator that was down meanwhile."""

# What a deletion waits for may pass without anything that the watches see, and it has a limit of its own.
_LOOK_AGAIN = timedelta(seconds=10)
# For what lies around the Job: its creation, the scheduler, images.
_MARGIN_SECONDS = 60


@dataclass(frozen=True)
class CleanUpObservation:
    """The Job that removes the object's artifacts."""

    state: JobState
    deleting: bool
    ended_at: datetime | None
    message: str
    """The Job controller's sentence about its end."""

    pods: tuple[PodObservation, ...]
    """Oldest first."""

    @property
    def results(self) -> tuple[CleanUpResult, ...]:
        """What its attempts said, oldest first."""
        return tuple(result for pod in self.pods if (result := _result(pod)) is not None)


@dataclass(frozen=True)
class CreateCleanUp:
    """Create the clean-up Job, unless a Pod of the object may still write."""

    request: CleanUpRequest


@dataclass(frozen=True)
class DeletionPlan:
    """What to do now, and what to say."""

    actions: tuple[DeleteJob | CreateCleanUp, ...]
    reason: str
    message: str
    final_event: EventDraft | None = None
    """Set when the finalizer is removed, and with it the object: the last Event of the object."""

    @property
    def look_again(self) -> timedelta | None:
        """When to make the next pass even if no watch asks for one; None: never, the object is gone."""
        return _LOOK_AGAIN if self.final_event is None else None


def finalizers_wanted(spec: LoraFineTuneSpec | InvalidSpec, present: Sequence[str]) -> list[str]:
    """Finalizers of an object that is not deleted. A spec that cannot be read changes nothing."""
    if isinstance(spec, InvalidSpec):
        return list(present)
    others = [each for each in present if each != names.FINALIZER]
    if spec.deletion_policy is DeletionPolicy.RETAIN:
        return others
    return list(present) if names.FINALIZER in present else [*others, names.FINALIZER]


def observe_clean_up(
    snapshot: Snapshot, jobs: Sequence[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]]
) -> CleanUpObservation | None:
    """The object's clean-up Job; None if there is none."""
    name = names.clean_up_job_name(snapshot.name, snapshot.uid)
    job = next((job for job in jobs if job["metadata"]["name"] == name), None)
    if job is None:
        return None
    state, end = ending(job)
    return CleanUpObservation(
        state=state,
        deleting=job["metadata"].get("deletionTimestamp") is not None,
        ended_at=datetime.fromisoformat(end["lastTransitionTime"]) if end.get("lastTransitionTime") else None,
        message=end.get("message") or "",
        pods=observe_pods(job, pods),
    )


def plan_deletion(
    spec: LoraFineTuneSpec | InvalidSpec,
    profile: Profile | None,
    snapshot: Snapshot,
    clean_up: CleanUpObservation | None,
    namespace_is_going: bool,
    now: datetime,
) -> DeletionPlan:
    """Decide what one pass does for an object that is deleted and has our finalizer.

    Args:
        spec: the parsed spec, or why it cannot be parsed.
        profile: the profile that the spec names; None if there is none of that name.
        snapshot: what was observed.
        clean_up: the clean-up Job, if there is one.
        namespace_is_going: whether the namespace is being deleted: it takes no Job any more, and the operator's Role in
            it may be gone already.
        now: the pass's one clock, with a time zone.
    """
    is_done = clean_up is not None and clean_up.state is JobState.COMPLETE
    if namespace_is_going and not is_done:
        return _cut_off(snapshot, profile, clean_up)
    if isinstance(spec, InvalidSpec):
        return _skipped(snapshot, profile, f"the spec is invalid: {spec}")
    if spec.deletion_policy is DeletionPolicy.RETAIN:
        left = f"{_place(snapshot, profile)}. spec.deletionPolicy is Retain by now"
        return _end(EventDraft("Normal", Reason.ARTIFACTS_RETAINED, left), _stop_clean_up(snapshot, clean_up))
    if profile is None:
        return _skipped(snapshot, profile, f"spec.profile: there is no profile {spec.profile!r}")
    if clean_up is not None and _awaits_pod_status(clean_up, now):
        name = names.clean_up_job_name(snapshot.name, snapshot.uid)
        return DeletionPlan((), Reason.CLEANING_UP, f"Job {name} has ended; waits for what its Pod says")
    if clean_up is not None and clean_up.state is JobState.COMPLETE:
        return _cleaned_up(snapshot, profile, clean_up)
    if clean_up is not None and clean_up.state is JobState.FAILED:
        return _failed(snapshot, profile, _why_failed(clean_up))
    if now - _began(snapshot, now) > _limit(profile):
        so_far = f"not done after {_limit(profile).total_seconds():.0f} s: {_condition_message(snapshot)}"
        return _failed(snapshot, profile, so_far, _stop_clean_up(snapshot, clean_up))
    return _proceed(profile, snapshot, clean_up)


def _proceed(profile: Profile, snapshot: Snapshot, clean_up: CleanUpObservation | None) -> DeletionPlan:
    name = names.clean_up_job_name(snapshot.name, snapshot.uid)
    if snapshot.jobs:
        running = ", ".join(job.name for job in snapshot.jobs)
        stops = tuple(DeleteJob(job.name, "the object is deleted") for job in snapshot.jobs if not job.deleting)
        return DeletionPlan(stops, Reason.CLEANING_UP, f"waits until the stages' Jobs are gone: {running}")
    if clean_up is not None:
        return DeletionPlan((), Reason.CLEANING_UP, f"Job {name} removes the artifacts{_waits_for(clean_up)}")
    request = CleanUpRequest(
        namespace=snapshot.namespace, name=snapshot.name, store=profile.store.for_namespace(snapshot.namespace)
    )
    return DeletionPlan((CreateCleanUp(request),), Reason.CLEANING_UP, f"Job {name} removes the artifacts")


def waiting_for_pods(decided: DeletionPlan) -> DeletionPlan:
    """A plan whose Job was not created, since a Pod of the object may still write."""
    return replace(decided, actions=(), message="waits until the stages' Pods have ended")


def refused_clean_up(decided: DeletionPlan, reason: str, why: str) -> DeletionPlan:
    """A plan whose Job the cluster did not take: it is tried again."""
    return replace(decided, actions=(), reason=reason, message=why)


def _began(snapshot: Snapshot, now: datetime) -> datetime:
    """When the deletion was first seen. Not when it was asked for: the operator may have been down since then."""
    conditions = (each for each in snapshot.previous.conditions if each.type == CLEANED_UP)
    return next((datetime.fromisoformat(each.last_transition_time) for each in conditions), now)


def _condition_message(snapshot: Snapshot) -> str:
    return next((each.message for each in snapshot.previous.conditions if each.type == CLEANED_UP), "")


def _limit(profile: Profile) -> timedelta:
    """Longest time of a deletion: what stops first has its grace period, then the Job has its time."""
    return timedelta(seconds=profile.termination_grace_period_seconds + CLEAN_UP_SECONDS + _MARGIN_SECONDS)


def _awaits_pod_status(clean_up: CleanUpObservation, now: datetime) -> bool:
    """Whether the Job has just ended and its last attempt is not seen to have."""
    heard = clean_up.pods and clean_up.pods[-1].ended
    return not heard and clean_up.ended_at is not None and timedelta(0) <= now - clean_up.ended_at < POD_STATUS_DELAY


def _stop_clean_up(snapshot: Snapshot, clean_up: CleanUpObservation | None) -> tuple[DeleteJob, ...]:
    if clean_up is None or clean_up.deleting or clean_up.state is not JobState.LIVE:
        return ()
    return (DeleteJob(names.clean_up_job_name(snapshot.name, snapshot.uid), "the clean-up is given up"),)


def _end(event: EventDraft, actions: tuple[DeleteJob, ...] = ()) -> DeletionPlan:
    return DeletionPlan(actions, event.reason, event.message, event)


def _cleaned_up(snapshot: Snapshot, profile: Profile, clean_up: CleanUpObservation) -> DeletionPlan:
    """The Job has removed what the profile's store has: what the object made may lie in the one it had before."""
    store, made_in = profile.store.for_namespace(snapshot.namespace).display_uri, snapshot.previous.store
    if made_in in ("", store):
        return _end(EventDraft("Normal", Reason.CLEANED_UP, _told(clean_up)))
    message = f"{_left(snapshot, [made_in])} stay: the profile's store is {store} by now. There: {_told(clean_up)}"
    return _end(EventDraft("Warning", Reason.CLEAN_UP_FAILED, message))


def _cut_off(snapshot: Snapshot, profile: Profile | None, clean_up: CleanUpObservation | None) -> DeletionPlan:
    if clean_up is None or profile is None:
        return _skipped(snapshot, profile, "its namespace is being deleted, and takes no Job any more")
    return _failed(snapshot, profile, "its namespace is being deleted, and with it the Job that was at it")


def _skipped(snapshot: Snapshot, profile: Profile | None, why: str) -> DeletionPlan:
    message = f"{_place(snapshot, profile)}. Nothing was removed: {why}"
    return _end(EventDraft("Warning", Reason.CLEAN_UP_SKIPPED, message))


def _failed(snapshot: Snapshot, profile: Profile, why: str, actions: tuple[DeleteJob, ...] = ()) -> DeletionPlan:
    message = f"{_place(snapshot, profile)}. The clean-up was given up: {why}"
    return _end(EventDraft("Warning", Reason.CLEAN_UP_FAILED, message), actions)


def _place(snapshot: Snapshot, profile: Profile | None) -> str:
    """What stays behind, and where: the beginning of a message, whose end is cut if it is long."""
    if profile is not None:
        present = profile.store.for_namespace(snapshot.namespace).display_uri
        stores = sorted({present, snapshot.previous.store or present})
    else:
        stores = sorted({artifact.uri.partition("/stages/")[0] for artifact in snapshot.previous.artifacts})
    left = _left(snapshot, stores)
    return (
        f"{left} stay; the next object of this name that is deleted with Delete removes them"
        if left
        else ("as far as the status tells, no artifacts were made")
    )


def _left(snapshot: Snapshot, places: Sequence[str]) -> str:
    name, left = snapshot.name, []
    for place in places:
        uri, at, endpoint = place.partition(" at ")
        left.append(f"{uri}/models/{name}/ and what {uri}/uses/*/*/{name} names{at}{endpoint}")
    return " and ".join(left)


def _told(clean_up: CleanUpObservation) -> str:
    done = next((result for result in reversed(clean_up.results) if result.failure is None), None)
    if done is None:
        return "the artifacts are removed"
    removed = f"removed {done.removed_objects:,} objects ({done.removed_bytes:,} bytes)"
    if not done.shared_stages:
        return removed
    stages = "1 stage" if done.shared_stages == 1 else f"{done.shared_stages} stages"
    return f"{removed}; what {stages} made stays, since other objects use it"


def _why_failed(clean_up: CleanUpObservation) -> str:
    failures = [result.failure for result in clean_up.results if result.failure is not None]
    if failures:
        return f"{failures[-1].reason}: {failures[-1].message}"
    return (clean_up.message or "the Job failed and left no Pod that says why") + _waits_for(clean_up)


def _waits_for(clean_up: CleanUpObservation) -> str:
    newest = clean_up.pods[-1] if clean_up.pods else None
    if newest is None or newest.ended or not newest.reason:
        return ""
    return f"; its Pod waits: {newest.reason}: {newest.message}"


def _result(pod: PodObservation) -> CleanUpResult | None:
    try:
        return CleanUpResult.decode(pod.message) if pod.exit_code is not None else None
    except ValidationError:
        return None
