"""Deletion: the second, smaller state machine, for an object that is deleted with its artifacts.

        deletionTimestamp, and our finalizer is on the object
                 │
                 │                                  (without it: the stages' Jobs are deleted, and others waited for)
        release? ├── the namespace is being deleted too ─────────► finalizer removed, Warning
                 ├── policy is now Retain ───────────────────────► finalizer removed
                 ├── policy invalid ─────────────────────────────► finalizer removed, Warning
                 ├── profile not found for some minutes ─────────► finalizer removed, Warning
                 ▼
     clean-up    ├── complete ───────────────────────────────────► finalizer removed
          Job    ├── failed ─────────────────────────────────────► finalizer removed, Warning
                 ▼
        timed out? ── delete the clean-up Job ───────────────────► finalizer removed, Warning
                 ▼
     stage Jobs  ├── exist ── delete them ── wait
                 ▼
     clean-up    ├── live ─── wait
          Job    └── none ─── create it, once no Pod of the object is running ── wait

No failure blocks the deletion forever: every path ends within a time limit, and a Warning then says what is left and
where.

The clean-up Job has no owner reference: a foreground deletion deletes all dependents first and would remove the Job
before it has done anything. The status has its UID, and its time to live removes it. Anybody can create a Job with its
name and labels: one whose UID the status does not have is deleted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from edgetune_contract.clean_up import CleanUpRequest, CleanUpResult
from edgetune_contract.stages import ExitCode
from edgetune_contract.values.times import is_recent
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.spec import DeletionPolicy, DeletionTerms, LoraFineTuneSpec
from edgetune_operator.api.spec_check import InvalidSpec
from edgetune_operator.decisions.admission import Refusal
from edgetune_operator.decisions.causes.diagnosis import why_overdue
from edgetune_operator.decisions.observe import JobState, Snapshot, job_state
from edgetune_operator.decisions.plans import DeleteJob
from edgetune_operator.decisions.pods import POD_END_DELAY, POD_STATUS_DELAY, PodObservation, observe_pods
from edgetune_operator.decisions.reporting.events import EventDraft

CLEAN_UP_SECONDS = 600
"""Deadline of the clean-up Job, in seconds."""

CLEAN_UP_RETRIES = 3
"""Retries of the clean-up Job after failed attempts."""

PROFILE_GRACE = timedelta(minutes=5)
"""Time that a deletion waits for a profile that is not found: it may be missing by mistake."""

CLEANED_UP = "CleanedUp"
"""Condition whose transition time is the start of the deletion, also for an operator that was restarted since."""

_ORPHAN = "orphan"
# The watches do not show everything that a deletion waits for, and it has a time limit.
_LOOK_AGAIN = timedelta(seconds=10)
# Time for creating the Job, scheduling and pulling the image.
_MARGIN_SECONDS = 60


@dataclass(frozen=True)
class CleanUpObservation:
    """The Job that removes the object's artifacts."""

    state: JobState
    """COMPLETE as soon as an attempt has succeeded, whatever other containers make of its Pod and the Job."""

    is_ours: bool
    """Whether an earlier pass created it."""

    deleting: bool
    ended_at: datetime | None
    message: str
    """The Job controller's message about its end."""

    pods: tuple[PodObservation, ...]
    """Oldest first."""

    is_live: bool
    """Whether its Job has not ended."""

    @property
    def results(self) -> tuple[CleanUpResult, ...]:
        """Results of its attempts, oldest first."""
        return tuple(result for pod in self.pods if (result := _result(pod)) is not None)


@dataclass(frozen=True)
class CreateCleanUp:
    """Create the clean-up Job, unless a Pod of the object can still write."""

    request: CleanUpRequest


@dataclass(frozen=True)
class DeletionPlan:
    """What to do now and what to report."""

    actions: tuple[DeleteJob | CreateCleanUp, ...]
    reason: str
    message: str
    final_event: EventDraft | None = None
    """The object's last Event, if this pass removes the finalizer; otherwise None."""

    created: str = ""
    """UID of the clean-up Job that this pass created; empty if it created none."""

    @property
    def look_again(self) -> timedelta | None:
        """Time until the next pass even if no watch triggers one; None if the object is gone."""
        return _LOOK_AGAIN if self.final_event is None else None


def finalizers_wanted(spec: LoraFineTuneSpec | InvalidSpec, present: Sequence[str]) -> list[str]:
    """Finalizers of an object that is not being deleted. An invalid spec changes nothing."""
    if isinstance(spec, InvalidSpec):
        return list(present)
    others = [each for each in present if each != names.FINALIZER]
    if spec.deletion_policy is DeletionPolicy.RETAIN:
        return others
    return list(present) if names.FINALIZER in present else [*others, names.FINALIZER]


def plan_held_deletion(snapshot: Snapshot, finalizers: Sequence[str]) -> DeletionPlan:
    """Decide what one pass does for a deleted object that only others' finalizers hold.

    Kubernetes deletes its Jobs only when it is gone; until then they would run on, and hold their GPUs.

    Args:
        snapshot: what was observed.
        finalizers: the object's finalizers.
    """
    # `kubectl delete --cascade=orphan` asks for Jobs that outlive the object.
    unwanted = [job for job in snapshot.jobs if job.state is JobState.LIVE and not job.deleting]
    stops = [DeleteJob(job.name, "the object is deleted") for job in unwanted if _ORPHAN not in finalizers]
    message = f"deleted; the object is gone when its finalizers are removed: {', '.join(finalizers)}"
    return DeletionPlan(tuple(stops), Reason.DELETED, message)


def observe_clean_up(
    snapshot: Snapshot, jobs: Sequence[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]]
) -> CleanUpObservation | None:
    """The object's clean-up Job; None if there is none."""
    name = names.clean_up_job_name(snapshot.name, snapshot.uid)
    job = next((job for job in jobs if job["metadata"]["name"] == name), None)
    if job is None:
        return None
    state, end = job_state(job)
    found = observe_pods(job, pods)
    is_live = state is JobState.LIVE
    if any(pod.exit_code == ExitCode.DONE for pod in found):
        state = JobState.COMPLETE
    return CleanUpObservation(
        state=state,
        is_ours=job["metadata"].get("uid") == snapshot.previous.clean_up_job,
        deleting=job["metadata"].get("deletionTimestamp") is not None,
        ended_at=datetime.fromisoformat(end["lastTransitionTime"]) if end.get("lastTransitionTime") else None,
        message=end.get("message") or "",
        pods=found,
        is_live=is_live,
    )


def plan_deletion(
    terms: DeletionTerms | InvalidSpec,
    profile: Profile | Refusal,
    snapshot: Snapshot,
    clean_up: CleanUpObservation | None,
    is_namespace_terminating: bool,
    now: datetime,
    profile_grace: timedelta = PROFILE_GRACE,
) -> DeletionPlan:
    """Decide what one pass does for an object that is being deleted and has our finalizer.

    Args:
        terms: the fields of the spec that a deletion follows, or why they cannot be parsed.
        profile: the profile that the spec names, or why the namespace cannot use it.
        snapshot: what was observed.
        clean_up: the clean-up Job; None if there is none.
        is_namespace_terminating: whether the namespace is being deleted: it accepts no Job, and the operator's Role in
            it may already be gone.
        now: time of the pass, with a time zone.
        profile_grace: time that the deletion waits for a profile that is not found.
    """
    stranger = clean_up if clean_up is not None and not clean_up.is_ours else None
    clean_up = None if stranger is not None else clean_up
    is_done = clean_up is not None and clean_up.state is JobState.COMPLETE
    usable = profile if isinstance(profile, Profile) else None
    if is_namespace_terminating and not is_done:
        return _cut_off(snapshot, usable, clean_up)
    if isinstance(terms, InvalidSpec):
        return _skipped(snapshot, usable, f"the spec is invalid: {terms}")
    if terms.deletion_policy is DeletionPolicy.RETAIN:
        message = f"{_remaining(snapshot, usable)}. spec.deletionPolicy is now Retain"
        return _end(EventDraft("Normal", Reason.ARTIFACTS_RETAINED, message), _stop_clean_up(snapshot, clean_up))
    if isinstance(profile, Refusal):
        return _without_profile(profile, snapshot, now, profile_grace)
    if clean_up is not None and _awaits_pod_status(clean_up, now):
        name = names.clean_up_job_name(snapshot.name, snapshot.uid)
        return DeletionPlan((), Reason.CLEANING_UP, f"Job {name} has ended; waiting for the result of its Pod")
    if clean_up is not None and clean_up.state is JobState.COMPLETE:
        return _cleaned_up(snapshot, profile, clean_up)
    if clean_up is not None and clean_up.state is JobState.FAILED:
        return _failed(snapshot, profile, _why_failed(clean_up))
    if now - _started_at(snapshot, now) > _limit(profile):
        why = f"it timed out after {_limit(profile).total_seconds():.0f} s: {_condition_message(snapshot)}"
        return _failed(snapshot, profile, why, _stop_clean_up(snapshot, clean_up))
    return _proceed(profile, snapshot, clean_up or stranger, now)


def _without_profile(refusal: Refusal, snapshot: Snapshot, now: datetime, profile_grace: timedelta) -> DeletionPlan:
    """Stop the stages and wait for the profile, unless there is nothing to remove."""
    has_run = bool(snapshot.jobs or snapshot.previous.store or snapshot.previous.artifacts)
    if not has_run or now - _started_at(snapshot, now) >= profile_grace:
        return _skipped(snapshot, None, refusal.message)
    message = (
        f"{refusal.message}. The deletion waits {profile_grace.total_seconds():.0f} s for the profile; then the "
        "artifacts are kept and the object is released"
    )
    return DeletionPlan(_stops(snapshot), refusal.reason, message)


def _stops(snapshot: Snapshot) -> tuple[DeleteJob, ...]:
    return tuple(DeleteJob(job.name, "the object is deleted") for job in snapshot.jobs if not job.deleting)


def _proceed(profile: Profile, snapshot: Snapshot, clean_up: CleanUpObservation | None, now: datetime) -> DeletionPlan:
    name = names.clean_up_job_name(snapshot.name, snapshot.uid)
    if snapshot.jobs:
        running = ", ".join(job.name for job in snapshot.jobs)
        return DeletionPlan(_stops(snapshot), Reason.CLEANING_UP, f"waiting until the stages' Jobs are gone: {running}")
    if clean_up is not None and (why := _why_replaced(clean_up, now)):
        message = f"Job {name} is created again: {why}"
        return DeletionPlan(() if clean_up.deleting else (DeleteJob(name, why),), Reason.CLEANING_UP, message)
    if clean_up is not None:
        return DeletionPlan((), Reason.CLEANING_UP, f"Job {name} is removing the artifacts{_why_waiting(clean_up)}")
    request = CleanUpRequest(
        namespace=snapshot.namespace, name=snapshot.name, store=profile.store.for_namespace(snapshot.namespace)
    )
    return DeletionPlan((CreateCleanUp(request),), Reason.CLEANING_UP, f"Job {name} is removing the artifacts")


def waiting_for_pods(decided: DeletionPlan) -> DeletionPlan:
    """The plan if the Job was not created because a Pod of the object can still write."""
    return replace(decided, actions=(), message="waiting until the stages' Pods have ended")


def refused_clean_up(decided: DeletionPlan, reason: str, why: str) -> DeletionPlan:
    """The plan after the cluster refused its Job; the next pass retries."""
    return replace(decided, actions=(), reason=reason, message=why)


def _started_at(snapshot: Snapshot, now: datetime) -> datetime:
    """When a pass first saw the deletion, not when it was requested: the operator may have been down since then."""
    conditions = (each for each in snapshot.previous.conditions if each.type == CLEANED_UP)
    return next((datetime.fromisoformat(each.last_transition_time) for each in conditions), now)


def _condition_message(snapshot: Snapshot) -> str:
    return next((each.message for each in snapshot.previous.conditions if each.type == CLEANED_UP), "")


def _why_replaced(clean_up: CleanUpObservation, now: datetime) -> str:
    """Why a clean-up Job does not count; empty if it does."""
    if not clean_up.is_ours:
        return "the one with its name is not known to be this object's"
    newest = clean_up.pods[-1] if clean_up.pods else None
    if newest is None or newest.exit_code is None or not newest.is_alive or not clean_up.is_live:
        return ""
    if newest.finished_at is not None and is_recent(newest.finished_at, POD_END_DELAY, now):
        return ""
    return f"an attempt failed and {why_overdue(newest)}"


def _limit(profile: Profile) -> timedelta:
    """Time limit of a deletion: the grace period of running stages, then the deadline of the Job."""
    return timedelta(seconds=profile.termination_grace_period_seconds + CLEAN_UP_SECONDS + _MARGIN_SECONDS)


def _awaits_pod_status(clean_up: CleanUpObservation, now: datetime) -> bool:
    """Whether the Job has just ended and its last Pod's end is not observed yet."""
    if clean_up.ended_at is None or (clean_up.pods and clean_up.pods[-1].ended):
        return False
    return abs(now - clean_up.ended_at) < POD_STATUS_DELAY


def _stop_clean_up(snapshot: Snapshot, clean_up: CleanUpObservation | None) -> tuple[DeleteJob, ...]:
    if clean_up is None or clean_up.deleting or not clean_up.is_live:
        return ()
    return (DeleteJob(names.clean_up_job_name(snapshot.name, snapshot.uid), "the clean-up has ended"),)


def _end(event: EventDraft, actions: tuple[DeleteJob, ...] = ()) -> DeletionPlan:
    return DeletionPlan(actions, event.reason, event.message, event)


def _cleaned_up(snapshot: Snapshot, profile: Profile, clean_up: CleanUpObservation) -> DeletionPlan:
    """The Job has cleaned up the profile's store; the artifacts may be in the store that the profile had before."""
    store, previous = profile.store.for_namespace(snapshot.namespace).display_uri, snapshot.previous.store
    # The Job controller may not have seen the end of a Pod that succeeded yet; the Job then ends by itself.
    ends_itself = bool(clean_up.pods) and clean_up.pods[-1].phase == "Succeeded"
    stop = () if ends_itself else _stop_clean_up(snapshot, clean_up)
    if previous in ("", store):
        return _end(EventDraft("Normal", Reason.CLEANED_UP, _removed(clean_up)), stop)
    left = _artifacts_in(snapshot, [previous])
    message = f"{left} are left: the profile's store is now {store}. In that store: {_removed(clean_up)}"
    return _end(EventDraft("Warning", Reason.CLEAN_UP_FAILED, message), stop)


def _cut_off(snapshot: Snapshot, profile: Profile | None, clean_up: CleanUpObservation | None) -> DeletionPlan:
    if clean_up is None or profile is None:
        return _skipped(snapshot, profile, "its namespace is being deleted and accepts no new Jobs")
    return _failed(snapshot, profile, "its namespace is being deleted, and the clean-up Job with it")


def _skipped(snapshot: Snapshot, profile: Profile | None, why: str) -> DeletionPlan:
    message = f"{_remaining(snapshot, profile)}. Nothing was removed: {why}"
    return _end(EventDraft("Warning", Reason.CLEAN_UP_SKIPPED, message))


def _failed(snapshot: Snapshot, profile: Profile, why: str, actions: tuple[DeleteJob, ...] = ()) -> DeletionPlan:
    message = f"{_remaining(snapshot, profile)}. The clean-up failed: {why}"
    return _end(EventDraft("Warning", Reason.CLEAN_UP_FAILED, message), actions)


def _remaining(snapshot: Snapshot, profile: Profile | None) -> str:
    """Which artifacts are left and where. It comes first in a message, because a long message is cut at its end."""
    if profile is not None:
        present = profile.store.for_namespace(snapshot.namespace).display_uri
        stores = sorted({present, snapshot.previous.store or present})
    else:
        stores = sorted({artifact.uri.rpartition("/stages/")[0] for artifact in snapshot.previous.artifacts})
    left = _artifacts_in(snapshot, stores)
    if not left:
        return "the status lists no artifacts"
    return f"{left} are left; the next object of this name that is deleted with Delete removes them"


def _artifacts_in(snapshot: Snapshot, stores: Sequence[str]) -> str:
    name, found = snapshot.name, []
    for store in stores:
        uri, at, endpoint = store.partition(" at ")
        found.append(f"{uri}/models/{name}/ and the stage outputs marked in {uri}/uses/*/*/{name}{at}{endpoint}")
    return " and ".join(found)


def _removed(clean_up: CleanUpObservation) -> str:
    done = next((result for result in reversed(clean_up.results) if result.failure is None), None)
    if done is None:
        return "removed the artifacts"
    removed = f"removed {done.removed_objects:,} objects ({done.removed_bytes:,} bytes)"
    if not done.shared_stages:
        return removed
    stages = "1 stage" if done.shared_stages == 1 else f"{done.shared_stages} stages"
    return f"{removed}; kept the output of {stages}, which other objects use"


def _why_failed(clean_up: CleanUpObservation) -> str:
    failures = [result.failure for result in clean_up.results if result.failure is not None]
    if failures:
        return f"{failures[-1].reason}: {failures[-1].message}"
    return (clean_up.message or "the Job failed and no Pod is left that says why") + _why_waiting(clean_up)


def _why_waiting(clean_up: CleanUpObservation) -> str:
    newest = clean_up.pods[-1] if clean_up.pods else None
    if newest is None or newest.ended or not newest.reason:
        return ""
    return f"; its Pod is waiting: {newest.reason}: {newest.message}"


def _result(pod: PodObservation) -> CleanUpResult | None:
    try:
        return CleanUpResult.decode(pod.message) if pod.exit_code is not None else None
    except ValidationError:
        return None
