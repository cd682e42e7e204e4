"""Plan: the whole state machine, in one function on values.

        spec, profile, snapshot
                 │
        refused? ├── InvalidSpec, ProfileNotFound ────────────────► Stalled
                 │
           rows: │  recorded by earlier passes, by digest
                 ▼
          ┌─► first unfinished stage ──none──► gates passed? ──yes──► Published, Pinned
          │      │  (publish, if pinned)                └──no───────► Refused
          │      ├── failed ─────────────────────────────────────► Failed
          │      ├── suspend ── delete its Job ──────────────────► Suspended
          │      ├── no Job ─── create one ──────────────────────► Running
          │      └── Job ended: record its result by digest
          └────────────┘

Only a row makes a stage complete, never the existence of a Job: a Job can be deleted at any time.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from edgetune_contract.measurement import EdgeMeasurement
from edgetune_contract.request import Request, Resolved, Scores
from edgetune_contract.stages import Stage
from edgetune_operator.api.objects import (
    SHORT_VERSION,
    ArtifactStatus,
    LoraFineTuneSpec,
    ProgressStatus,
    PublicationStatus,
    StageState,
    StageStatus,
)
from edgetune_operator.api.profiles import Profile
from edgetune_operator.api.reasons import BLOCKING, Reason
from edgetune_operator.api.spec_check import InvalidSpec
from edgetune_operator.api.spec_warnings import spec_warnings
from edgetune_operator.decisions.diagnosis import look_at_overdue, silent_wait, stuck_pod
from edgetune_operator.decisions.manifests.stage_resources import StageResources, resource_warnings
from edgetune_operator.decisions.observe import JobState, Snapshot
from edgetune_operator.decisions.reporting.score_warnings import score_warnings
from edgetune_operator.decisions.run_state import RunState

# The watches do not show when a quota or a policy changes.
_LOOK_AT_STALLED = timedelta(seconds=60)
_LOOK_AT_ENDED_JOB = timedelta(seconds=5)
# The Job of an earlier object with the same name is not in the cache.
_LOOK_AT_PENDING = timedelta(seconds=2)


_REASONS_OF_ANOTHER_JOB = (Reason.REPLACED, Reason.POD_OUTLIVED, Reason.MORE_MEMORY)


class Outcome(StrEnum):
    """State of the run after a pass."""

    RUNNING = "Running"
    BLOCKED = "Blocked"
    """The Job or Pod waits until somebody fixes something; the stage then continues by itself."""

    SUSPENDED = "Suspended"
    PUBLISHED = "Published"
    REFUSED = "Refused"
    FAILED = "Failed"
    STALLED = "Stalled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens until somebody changes something."""
        return self not in (Outcome.RUNNING, Outcome.BLOCKED, Outcome.SUSPENDED)


@dataclass(frozen=True)
class CreateJob:
    """Create the Job of a stage."""

    request: Request
    retry: str
    resources: StageResources
    failed_before: int = 0
    """Failed attempts of the Jobs that this one replaces; they count towards the retry limit."""


@dataclass(frozen=True)
class DeleteJob:
    """Delete a Job and its Pods; a running stage gets SIGTERM first."""

    name: str
    reason: str


Action = CreateJob | DeleteJob


@dataclass(frozen=True)
class View:
    """Content of the status."""

    outcome: Outcome
    reason: str
    message: str
    stage: Stage | None
    """The first unfinished stage; None if there is none."""

    rows: tuple[StageStatus, ...]
    store: str
    resolved: Resolved | None
    artifacts: tuple[ArtifactStatus, ...]
    scores: Scores | None
    edge: EdgeMeasurement | None
    publication: PublicationStatus | None
    progress: ProgressStatus | None
    handled_retry: str
    warnings: tuple[str, ...] = ()
    """Warnings about the whole run; those of stages are in the rows."""


@dataclass(frozen=True)
class Plan:
    """What to do now, what to report, and when to make the next pass."""

    actions: tuple[Action, ...]
    view: View
    look_again: timedelta | None = None
    """Time until the next pass even if no watch triggers one; None: no pass until something changes."""


def plan(spec: LoraFineTuneSpec | InvalidSpec, profile: Profile | None, snapshot: Snapshot, now: datetime) -> Plan:
    """Decide what one pass does.

    Args:
        spec: the parsed spec, or why it cannot be parsed.
        profile: the profile that the spec names; None if there is none with that name.
        snapshot: what was observed.
        now: time of the pass, with a time zone.
    """
    if isinstance(spec, InvalidSpec):
        return stalled(snapshot, Reason.INVALID_SPEC, str(spec), now)
    if profile is None:
        return stalled(snapshot, Reason.PROFILE_NOT_FOUND, _profile_not_found(spec), now)
    if not profile.allow_file_uris and (paths := _file_uris(spec)):
        return stalled(
            snapshot, Reason.INVALID_SPEC, f"{', '.join(paths)}: file:// works only in local runs; use s3://", now
        )

    run = RunState.begin(spec, profile, snapshot)
    run.record_ended_jobs(now)
    run.handle_requests(now)
    stage = run.next_stage()
    if stage is None:
        return _plan(run, snapshot, now, _overdue(run, now), _view(run, snapshot, *_judge_gates(run)))
    row = run.rows[stage]
    if row.state is StageState.FAILED:
        view = _view(run, snapshot, Outcome.FAILED, row.reason, f"{stage}: {row.message}", stage)
        return _plan(run, snapshot, now, _deletions(run, now), view)
    if spec.suspend:
        message = f"spec.suspend is true; set it to false to continue with {stage}"
        view = _view(run, snapshot, Outcome.SUSPENDED, Reason.SUSPENDED, message, stage)
        return _plan(run, snapshot, now, _deletions(run, now), view)
    actions: tuple[Action, ...] = _deletions(run, now, keep=run.job_name(stage))
    jobs = run.jobs
    if stage not in jobs.current and not jobs.terminating and not actions and not run.deferred_request:
        actions = (CreateJob(run.request(stage), snapshot.retry_requested, run.resources(stage), row.failed_before),)
        run.start(stage, now)
    reason, message = _running_reason(run, run.rows[stage])
    stuck = stuck_pod(snapshot)
    if stuck is not None and stuck.is_due(now):
        reason, message = stuck.why[0], f"{stage}: {stuck.why[1]}"
    outcome = Outcome.BLOCKED if reason in BLOCKING else Outcome.RUNNING
    return _plan(run, snapshot, now, actions, _view(run, snapshot, outcome, reason, message, stage))


def _plan(run: RunState, snapshot: Snapshot, now: datetime, actions: tuple[Action, ...], view: View) -> Plan:
    look_again = _earliest(
        _look_at_silence(snapshot, now),
        _look_at_stuck_pod(snapshot, now),
        look_at_overdue(snapshot, now),
        _LOOK_AT_ENDED_JOB if run.awaits_pod_status else None,
        _look_at(view.outcome, view.reason),
    )
    return Plan(actions, view, look_again)


def _look_at_silence(snapshot: Snapshot, now: datetime) -> timedelta | None:
    """Time until the Events of a Job or Pod that waits without a stated reason are read."""
    wait = silent_wait(snapshot)
    return wait.next_look(now) if wait is not None else None


def _look_at_stuck_pod(snapshot: Snapshot, now: datetime) -> timedelta | None:
    stuck = stuck_pod(snapshot)
    return stuck.next_look(now) if stuck is not None else None


def _look_at(outcome: Outcome, reason: str) -> timedelta | None:
    if reason == Reason.PENDING:
        return _LOOK_AT_PENDING
    return _LOOK_AT_STALLED if outcome in (Outcome.STALLED, Outcome.BLOCKED) else None


def _earliest(*times: timedelta | None) -> timedelta | None:
    return min((time for time in times if time is not None), default=None)


def _profile_not_found(spec: LoraFineTuneSpec) -> str:
    return f"spec.profile: profile {spec.profile!r} not found; ask the platform team for the names of the profiles"


def _file_uris(spec: LoraFineTuneSpec) -> list[str]:
    uris = {"spec.baseModel.uri": spec.base_model.uri, "spec.dataset.train.uri": spec.dataset.train.uri}
    if spec.dataset.eval is not None:
        uris["spec.dataset.eval.uri"] = spec.dataset.eval.uri
    return [path for path, uri in uris.items() if uri.startswith("file://")]


def _overdue(run: RunState, now: datetime) -> tuple[DeleteJob, ...]:
    return tuple(DeleteJob(name, why) for name, why in run.note_overdue_jobs(now).items())


def _deletions(run: RunState, now: datetime, keep: str | None = None) -> tuple[DeleteJob, ...]:
    """Jobs to delete: live ones other than `keep`, those whose stage runs again, and those that wait for nothing.

    The latter must be deleted in this pass: the next one would take their end for the end of the stage's new attempt.
    """
    jobs = run.jobs
    recorded = {row.job for row in run.rows.values() if row.state is StageState.SUCCEEDED}
    live = (job for job in (*jobs.stale, *jobs.current.values()) if job.state is JobState.LIVE)
    unwanted = [job for job in live if job.name != keep and job.name not in recorded]
    return (
        *(DeleteJob(job.name, "it is not part of the current run") for job in unwanted),
        *(DeleteJob(job.name, "the stage runs again") for job in (*jobs.replaced, *jobs.spent)),
        *_overdue(run, now),
    )


def _view(
    run: RunState, snapshot: Snapshot, outcome: Outcome, reason: str, message: str, stage: Stage | None = None
) -> View:
    """Content of the status: only the outputs of stages that are done."""
    done = {name for name, row in run.rows.items() if row.state is StageState.SUCCEEDED}
    previous_retry = snapshot.previous.last_handled_retry
    scores = run.scores if Stage.EVALUATE in done else None
    return View(
        outcome=outcome,
        reason=reason,
        message=message,
        stage=stage,
        rows=tuple(run.rows[name] for name in Stage),
        store=run.store,
        resolved=run.resolved,
        artifacts=tuple(artifact for artifact in run.artifacts if artifact.stage in done),
        scores=scores,
        edge=run.edge if Stage.EVALUATE in done else None,
        publication=run.publication if Stage.PUBLISH in done else None,
        progress=run.progress(stage) if stage is not None else None,
        handled_retry=previous_retry if run.deferred_request else snapshot.new_retry or previous_retry,
        warnings=(
            *score_warnings(run.spec, scores),
            *resource_warnings(run.profile, run.needs),
            *spec_warnings(run.spec, run.rows[Stage.PREPARE].metrics if Stage.PREPARE in done else {}),
        ),
    )


def _judge_gates(run: RunState) -> tuple[Outcome, str, str]:
    publication = run.publication
    if publication is None:
        return (
            Outcome.FAILED,
            Reason.RESULT_LOST,
            "publish ended without reporting the outcome of the gates; request a retry",
        )
    if publication.pinned:
        return Outcome.PUBLISHED, Reason.PINNED, f"{_named(publication)}, as set by spec.publish.pin"
    if publication.published:
        return Outcome.PUBLISHED, Reason.PUBLISHED, _named(publication)
    return Outcome.REFUSED, Reason.GATES_REFUSED, "; ".join(publication.refusals)


def _named(publication: PublicationStatus) -> str:
    return f"{publication.pointer} names version {publication.version[:SHORT_VERSION]}"


def _running_reason(run: RunState, row: StageStatus) -> tuple[str, str]:
    if row.state is StageState.PENDING and row.reason in _REASONS_OF_ANOTHER_JOB:
        return row.reason, f"{row.name}: {row.message}"
    if row.state is StageState.PENDING:
        return Reason.PENDING, f"{row.name}: waiting until an older Job of this object is gone"
    deferred = f"; {run.deferred_request}" if run.deferred_request else ""
    return row.reason, f"{row.name}: {row.message or 'running'}{deferred}"


def refused(decided: Plan, reason: str, message: str) -> Plan:
    """The plan after the cluster refused its Job: the stage waits; everything else that it recorded is kept."""
    waiting = {
        "state": StageState.PENDING,
        "job": "",
        "started_at": None,
        "reason": reason,
        "message": message,
    }
    view = decided.view
    rows = tuple(
        row.model_copy(update={**waiting, "attempts": row.failed_before}) if row.name is view.stage else row
        for row in view.rows
    )
    outcome = Outcome.RUNNING if reason == Reason.PENDING else Outcome.BLOCKED
    message = f"{view.stage}: {message}"
    view = replace(view, outcome=outcome, reason=reason, message=message, rows=rows, progress=None)
    return Plan((), view, _earliest(decided.look_again, _look_at(outcome, reason)))


def stalled(snapshot: Snapshot, reason: str, message: str, now: datetime) -> Plan:
    """Nothing can be done until somebody changes something; what earlier passes recorded is kept."""
    previous = snapshot.previous
    recorded = {row.name: row for row in previous.stages}
    view = View(
        outcome=Outcome.STALLED,
        reason=reason,
        message=message,
        stage=None,
        rows=tuple(recorded.get(stage, StageStatus(name=stage)) for stage in Stage),
        store=previous.store,
        resolved=previous.resolved,
        artifacts=previous.artifacts,
        scores=previous.scores,
        edge=previous.edge,
        publication=previous.publication,
        progress=None,
        handled_retry=previous.last_handled_retry,
    )
    return Plan((), view, _earliest(_look_at_silence(snapshot, now), _LOOK_AT_STALLED))
