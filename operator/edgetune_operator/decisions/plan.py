"""Plan: the whole state machine, in one function of values.

        spec, profile, snapshot
                 │
        refused? ├── InvalidSpec, ProfileNotFound ────────────────► Stalled
                 │
           rows: │  what earlier passes recorded, by digest
                 ▼
          ┌─► first stage that is not done ──none──► gates held? ──► Published, Pinned
          │      │  (publish, if there is a pin)         └──no─────► Refused
          │      ├── failed ─────────────────────────────────────► Failed
          │      ├── suspend ── delete its Job ──────────────────► Suspended
          │      ├── no Job ─── create it ───────────────────────► Running
          │      └── Job ended: record its result by digest
          └────────────┘

Completion is what a row says, never what a Job's existence says: Jobs may be deleted at any time.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from edgetune_contract.measurement import EdgeMeasurement
from edgetune_contract.request import Request, Resolved, Scores
from edgetune_contract.stages import Stage
from edgetune_operator.api.objects import (
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
from edgetune_operator.decisions.observe import JobState, Snapshot
from edgetune_operator.decisions.run import Run


class Outcome(StrEnum):
    """What stands after a pass."""

    RUNNING = "Running"
    BLOCKED = "Blocked"
    """Job or Pod waits for something that somebody has to mend; the stage goes on by itself afterwards."""

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


@dataclass(frozen=True)
class DeleteJob:
    """Delete a Job and its Pods; a running stage gets SIGTERM first."""

    name: str
    reason: str


Action = CreateJob | DeleteJob


@dataclass(frozen=True)
class View:
    """What the status will say."""

    outcome: Outcome
    reason: str
    message: str
    stage: Stage | None
    """The first stage that is not done."""

    rows: tuple[StageStatus, ...]
    store: str
    resolved: Resolved | None
    artifacts: tuple[ArtifactStatus, ...]
    scores: Scores | None
    edge: EdgeMeasurement | None
    publication: PublicationStatus | None
    progress: ProgressStatus | None
    handled_retry: str


@dataclass(frozen=True)
class Plan:
    """What to do now, and what to say."""

    actions: tuple[Action, ...]
    view: View
    unheard: bool = False
    """Whether the end of an attempt is awaited that no watch may tell."""


def plan(spec: LoraFineTuneSpec | InvalidSpec, profile: Profile | None, snapshot: Snapshot, now: datetime) -> Plan:
    """Decide what one pass does.

    Args:
        spec: the parsed spec, or why it cannot be parsed.
        profile: the profile that the spec names; None if there is none of that name.
        snapshot: what was observed.
        now: the pass's one clock, with a time zone.
    """
    if isinstance(spec, InvalidSpec):
        return _stalled(snapshot, Reason.INVALID_SPEC, str(spec))
    if profile is None:
        return _stalled(snapshot, Reason.PROFILE_NOT_FOUND, _profile_not_found(spec))
    if not profile.allow_file_uris and (paths := _file_uris(spec)):
        return _stalled(
            snapshot, Reason.INVALID_SPEC, f"{', '.join(paths)}: file:// works in a local run only; use s3://"
        )

    run = Run.begin(spec, profile, snapshot)
    run.record_ended_jobs(now)
    run.answer_requests(now)
    stage = run.next_stage()
    if stage is None:
        return Plan((), _view(run, snapshot, *_judge_gates(run)))
    row = run.rows[stage]
    if row.state is StageState.FAILED:
        view = _view(run, snapshot, Outcome.FAILED, row.reason, f"{stage}: {row.message}", stage)
        return Plan(_deletions(run, snapshot, keep=None), view)
    if spec.suspend:
        message = f"spec.suspend is true; {stage} goes on when it is set to false"
        view = _view(run, snapshot, Outcome.SUSPENDED, Reason.SUSPENDED, message, stage)
        return Plan(_deletions(run, snapshot, keep=None), view)
    actions: tuple[Action, ...] = _deletions(run, snapshot, keep=run.job_name(stage))
    going_away = actions or any(job.deleting for job in snapshot.jobs)
    if run.job_of(stage) is None and not going_away and not run.waits:
        actions = (CreateJob(run.request(stage), snapshot.retry_requested),)
        run.start(stage, now)
    reason, message = _running_reason(run, run.rows[stage])
    outcome = Outcome.BLOCKED if reason in BLOCKING else Outcome.RUNNING
    return Plan(actions, _view(run, snapshot, outcome, reason, message, stage), run.unheard)


def _profile_not_found(spec: LoraFineTuneSpec) -> str:
    return f"spec.profile: there is no profile {spec.profile!r}; ask the platform team for the names of the profiles"


def _file_uris(spec: LoraFineTuneSpec) -> list[str]:
    uris = {"spec.baseModel.uri": spec.base_model.uri, "spec.dataset.train.uri": spec.dataset.train.uri}
    if spec.dataset.eval is not None:
        uris["spec.dataset.eval.uri"] = spec.dataset.eval.uri
    return [path for path, uri in uris.items() if uri.startswith("file://")]


def _deletions(run: Run, snapshot: Snapshot, keep: str | None) -> tuple[DeleteJob, ...]:
    """Jobs that must go: live ones that are not `keep`, and ended ones of stages that run again.

    The latter go in this very pass: the next one would take them for the end of the stage's new attempt.
    """
    recorded = {row.job for row in run.rows.values() if row.state is StageState.SUCCEEDED}
    deletions = []
    for job in snapshot.jobs:
        if job.deleting:
            continue
        if job.state is JobState.LIVE and job.name != keep and job.name not in recorded:
            deletions.append(DeleteJob(job.name, "it is not part of the current run"))
        elif job.name == run.job_name(job.stage) and not run.answers(job):
            deletions.append(DeleteJob(job.name, "the stage runs again"))
    return tuple(deletions)


def _view(
    run: Run, snapshot: Snapshot, outcome: Outcome, reason: str, message: str, stage: Stage | None = None
) -> View:
    """What the status will say: only what the rows that are done stand for."""
    done = {name for name, row in run.rows.items() if row.state is StageState.SUCCEEDED}
    previous_retry = snapshot.previous.last_handled_retry
    return View(
        outcome=outcome,
        reason=reason,
        message=message,
        stage=stage,
        rows=tuple(run.rows[name] for name in Stage),
        store=run.store,
        resolved=run.resolved,
        artifacts=tuple(artifact for artifact in run.artifacts if artifact.stage in done),
        scores=run.scores if Stage.EVALUATE in done else None,
        edge=run.edge if Stage.EVALUATE in done else None,
        publication=run.publication if Stage.PUBLISH in done else None,
        progress=run.progress(stage) if stage is not None else None,
        handled_retry=previous_retry if run.waits else snapshot.new_retry or previous_retry,
    )


def _judge_gates(run: Run) -> tuple[Outcome, str, str]:
    publication = run.publication
    if publication is None:
        return (
            Outcome.FAILED,
            Reason.RESULT_LOST,
            "publish ended without saying whether the gates held; ask for a retry",
        )
    if publication.pinned:
        return Outcome.PUBLISHED, Reason.PINNED, f"{_named(publication)}, as spec.publish.pin says"
    if publication.published:
        return Outcome.PUBLISHED, Reason.PUBLISHED, _named(publication)
    return Outcome.REFUSED, Reason.GATES_REFUSED, "; ".join(publication.refusals)


def _named(publication: PublicationStatus) -> str:
    return f"{publication.pointer} names version {publication.version[:12]}"


def _running_reason(run: Run, row: StageStatus) -> tuple[str, str]:
    if row.state is StageState.PENDING and row.reason == Reason.REPLACED:
        return row.reason, f"{row.name}: {row.message}"
    if row.state is StageState.PENDING:
        return Reason.PENDING, f"{row.name}: waits until an older Job of this object is gone"
    waits = f"; {run.waits}" if run.waits else ""
    return row.reason, f"{row.name}: {row.message or 'running'}{waits}"


def refused(decided: Plan, reason: str, message: str) -> Plan:
    """A plan whose Job the cluster did not take: what it recorded stands, and the stage waits."""
    told = {"reason": reason, "message": message}
    waits = {"state": StageState.PENDING, "job": "", "attempts": 0, "started_at": None, **told}
    view = decided.view
    rows = tuple(row.model_copy(update=waits) if row.name is view.stage else row for row in view.rows)
    outcome = Outcome.RUNNING if reason == Reason.PENDING else Outcome.BLOCKED
    message = f"{view.stage}: {message}"
    return Plan((), replace(view, outcome=outcome, reason=reason, message=message, rows=rows, progress=None))


def _stalled(snapshot: Snapshot, reason: str, message: str) -> Plan:
    """Nothing can be done until somebody changes something: keep what earlier passes recorded."""
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
    return Plan((), view)
