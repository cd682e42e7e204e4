"""Plan: the whole state machine, in one function on values.

        spec, profile, snapshot
                 │
        refused? ├── InvalidSpec, or not admitted ────────────────► Stalled
                 │
           rows: │  recorded by earlier passes, by digest
                 ▼
          ┌─► first unfinished stage ──none──► gates passed? ──yes──► Published, Pinned
          │      │  (publish, if pinned)                └──no───────► Refused
          │      ├── suspend, pin is set ── delete its Job ──────► Pinned
          │      ├── failed ─────────────────────────────────────► Failed
          │      ├── suspend ── delete its Job ──────────────────► Suspended
          │      ├── no Job ─── create one ──────────────────────► Running
          │      └── Job ended: record its result by digest
          └────────────┘

Only a row makes a stage complete, never the existence of a Job: a Job can be deleted at any time.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.reasons import BLOCKING, MAY_PASS, UNSCHEDULABLE, Reason
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.spec_check import InvalidSpec
from edgetune_operator.api.spec_warnings import spec_warnings
from edgetune_operator.api.status.object_status import SHORT_VERSION, PublicationStatus
from edgetune_operator.api.status.stage_status import StageState, StageStatus
from edgetune_operator.decisions.accounting.gpu_accounting import GpuAccount
from edgetune_operator.decisions.admission import Refusal
from edgetune_operator.decisions.causes.diagnosis import look_at_overdue, silent_wait, stuck_pod
from edgetune_operator.decisions.causes.patience import known_wait, wait_of
from edgetune_operator.decisions.causes.queueing import KUEUE_DELAY
from edgetune_operator.decisions.manifests.stage_resources import JobSettings, resource_warnings
from edgetune_operator.decisions.observe import JobObservation, JobState, Snapshot
from edgetune_operator.decisions.plans import (
    Action,
    ChangeJob,
    CreateJob,
    CreateService,
    DeleteJob,
    Outcome,
    Plan,
    View,
)
from edgetune_operator.decisions.reporting.score_warnings import score_note, score_warnings
from edgetune_operator.decisions.run_state import RunState

# The watches do not show when a quota or a policy changes.
_LOOK_AT_STALLED = timedelta(seconds=60)
_LOOK_AT_ENDED_JOB = timedelta(seconds=5)
# The Job of an earlier object with the same name is not in the cache.
_LOOK_AT_PENDING = timedelta(seconds=2)
# Services are not watched: one can be deleted while its Job lives, or be left of an earlier Job for a moment.
_LOOK_AT_SERVICE = timedelta(seconds=30)
_LOOK_FOR_SERVICE = timedelta(seconds=2)


_REASONS_OF_ANOTHER_JOB = (Reason.REPLACED, Reason.POD_OUTLIVED, Reason.MORE_MEMORY)


def plan(spec: LoraFineTuneSpec | InvalidSpec, profile: Profile | Refusal, snapshot: Snapshot, now: datetime) -> Plan:
    """Decide what one pass does.

    Args:
        spec: the parsed spec, or why it cannot be parsed.
        profile: the profile that the object runs with, or why it may not run.
        snapshot: what was observed.
        now: time of the pass, with a time zone.
    """
    return _with_patience(_decide(spec, profile, snapshot, now), snapshot, now)


def _decide(
    spec: LoraFineTuneSpec | InvalidSpec, profile: Profile | Refusal, snapshot: Snapshot, now: datetime
) -> Plan:
    if isinstance(spec, InvalidSpec):
        return _unusable(snapshot, Reason.INVALID_SPEC, str(spec), now)
    if isinstance(profile, Refusal):
        return _unusable(snapshot, profile.reason, profile.message, now)

    run = RunState.begin(spec, profile, snapshot)
    run.record_ended_jobs(now)
    run.handle_requests(now)
    run.look_before_work()
    run.account_for_gpus(now)
    stage = run.next_stage()
    if stage is None:
        return _plan(run, snapshot, now, _overdue(run, now), _ended(run, snapshot))
    row = run.rows[stage]
    if spec.suspend and spec.publish.pin and stage is not Stage.PUBLISH:
        view = _ended(run, snapshot, "; spec.suspend is true: nothing else runs")
        return _plan(run, snapshot, now, _deletions(run, now), view)
    if row.state is StageState.FAILED:
        view = _view(run, snapshot, Outcome.FAILED, row.reason, f"{stage}: {row.message}", stage)
        return _plan(run, snapshot, now, _deletions(run, now), view)
    if spec.suspend and not spec.publish.pin:
        message = f"spec.suspend is true; set it to false to continue with {stage}"
        view = _view(run, snapshot, Outcome.SUSPENDED, Reason.SUSPENDED, message, stage)
        return _plan(run, snapshot, now, _deletions(run, now), view)
    actions: tuple[Action, ...] = _deletions(run, now, keep=run.job_name(stage))
    jobs = run.jobs
    before = (row.failed_before, row.active_seconds or 0.0)
    job = CreateJob(run.request(stage), snapshot.present_retry, run.resources(stage), *before)
    if stage not in jobs.current and not jobs.terminating and not actions and not run.deferred_request:
        actions = (job,)
        run.start(stage, now)
    elif stage in jobs.current and _is_changeable(jobs.current[stage], run.settings_of(stage)):
        actions = (*actions, ChangeJob(job))
    actions = (*actions, *_services(snapshot, run.job_name(stage)))
    reason, message = _running_reason(run, run.rows[stage])
    stuck = stuck_pod(snapshot)
    if stuck is not None and stuck.is_due(now):
        reason, message = stuck.why[0], f"{stage}: {stuck.why[1]}"
    return _plan(run, snapshot, now, actions, _view(run, snapshot, _going(run, stage, reason), reason, message, stage))


def _services(snapshot: Snapshot, kept: str) -> tuple[CreateService, ...]:
    """The Service of the stage's Job, if that needs one and has none."""
    jobs = (job for job in snapshot.jobs if job.name == kept and job.needs_service)
    return tuple(CreateService(job.name, job.uid) for job in jobs if job.uid not in snapshot.served)


def _going(run: RunState, stage: Stage, reason: str) -> Outcome:
    """The outcome of a stage that has a Job, or gets one."""
    if reason in BLOCKING or reason == UNSCHEDULABLE:
        return Outcome.BLOCKED
    is_queued = run.rows[stage].state is StageState.QUEUED or reason == Reason.QUOTA_EXCEEDED
    return Outcome.QUEUED if is_queued else Outcome.RUNNING


def _with_patience(decided: Plan, snapshot: Snapshot, now: datetime) -> Plan:
    """The plan with the time that is left for what may pass by itself, and a pass when that is over."""
    view = decided.view
    if _awaits_pods(view, snapshot):
        return replace(decided, view=replace(view, wait=known_wait(snapshot.generation, snapshot.previous, now)))
    is_held_up = view.outcome in (Outcome.BLOCKED, Outcome.STALLED)
    wait = wait_of(view.reason, snapshot.generation, snapshot.previous, now) if is_held_up else None
    view = replace(view, wait=wait)
    return replace(
        decided, view=view, look_again=_earliest(decided.look_again, wait.left if view.is_patient and wait else None)
    )


def _awaits_pods(view: View, snapshot: Snapshot) -> bool:
    """Whether Pods of the stage's Job are not observed yet, such as after a start of the operator: they may wait."""
    jobs = (job for job in snapshot.jobs if job.stage is view.stage and job.state is JobState.LIVE)
    return view.outcome is Outcome.RUNNING and any(job.active and not job.pods for job in jobs)


def _is_changeable(job: JobObservation, settings: JobSettings) -> bool:
    """Whether a Job waits in a queue with other settings than it would get now."""
    return job.suspended and bool(job.queue and settings.queue) and job.settings != settings.all


def _unusable(snapshot: Snapshot, reason: str, message: str, now: datetime) -> Plan:
    """The spec cannot be run. Jobs of an earlier one may run on: their GPU time counts."""
    decided, account = stalled(snapshot, reason, message, now), GpuAccount(snapshot)
    rows = account.settle({row.name: row for row in decided.view.rows}, now)
    view = replace(decided.view, rows=tuple(rows.values()), gpu_used=tuple(account.used))
    return replace(decided, view=view)


def _plan(run: RunState, snapshot: Snapshot, now: datetime, actions: tuple[Action, ...], view: View) -> Plan:
    look_again = _earliest(
        _look_at_silence(snapshot, now),
        _look_at_stuck_pod(snapshot, now),
        look_at_overdue(snapshot, now),
        run.look_at_limits(now),
        _look_at_queue(snapshot, now),
        _look_at_service(snapshot),
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


def _look_at_service(snapshot: Snapshot) -> timedelta | None:
    """Time until it is checked again that a running Job on several nodes has its Service."""
    are_served = [job.uid in snapshot.served for job in snapshot.jobs if job.needs_service]
    if not are_served:
        return None
    return _LOOK_AT_SERVICE if all(are_served) else _LOOK_FOR_SERVICE


def _look_at_queue(snapshot: Snapshot, now: datetime) -> timedelta | None:
    """Time until a Job is looked at that waits in a queue and of which Kueue has made no Workload."""
    unseen = (
        job.created_at
        for job in snapshot.jobs
        if job.suspended and job.queue and job.created_at and job.uid not in snapshot.queueing.workloads
    )
    return min((_time_for_kueue(created_at, now) for created_at in unseen), default=None)


def _time_for_kueue(created_at: str, now: datetime) -> timedelta:
    left = KUEUE_DELAY - (now - datetime.fromisoformat(created_at))
    return left if left > timedelta(0) else _LOOK_AT_STALLED


def _look_at(outcome: Outcome, reason: str) -> timedelta | None:
    if reason == Reason.PENDING:
        return _LOOK_AT_PENDING
    is_waiting = outcome in (Outcome.STALLED, Outcome.BLOCKED) or reason in (
        Reason.QUEUE_ON_HOLD,
        Reason.QUOTA_EXCEEDED,
    )
    return _LOOK_AT_STALLED if is_waiting else None


def _earliest(*times: timedelta | None) -> timedelta | None:
    return min((time for time in times if time is not None), default=None)


def _overdue(run: RunState, now: datetime) -> tuple[DeleteJob, ...]:
    return tuple(DeleteJob(name, why) for name, why in run.note_overdue_jobs(now).items())


def _deletions(run: RunState, now: datetime, keep: str | None = None) -> tuple[DeleteJob, ...]:
    """Jobs to delete: live ones other than `keep`, those whose stage runs again, and those that wait for nothing.

    Those that wait for nothing must be deleted in this pass: the next one would take their end for the end of the
    stage's new attempt. While a stage continues, the Jobs of later ones keep what they have: a place in a queue, or its
    quota.
    """
    jobs = run.jobs
    recorded = {row.job for row in run.rows.values() if row.state is StageState.SUCCEEDED}
    live = (job for job in (*jobs.stale, *jobs.current.values()) if job.state is JobState.LIVE)
    queued = {job.name for job in jobs.current.values() if job.queue and keep is not None}
    unwanted = [job for job in live if job.name not in {keep} | queued | recorded]
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
    waiting = snapshot.new_retries if run.deferred_request else ()
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
        candidates=run.candidates if Stage.EVALUATE in done else (),
        publication=run.publication if Stage.PUBLISH in done else None,
        live=run.live,
        progress=run.progress(stage) if stage is not None else None,
        handled_retries=snapshot.handled_retries
        if waiting
        else (*snapshot.new_retries[::-1], *snapshot.handled_retries),
        pending_retries=waiting,
        retryable_spec=run.spec.retryable_digest,
        has_read_store=run.has_read_store,
        gpu_used=tuple(run.gpus.used),
        note=score_note(run.spec, scores),
        warnings=(
            *score_warnings(run.spec, scores),
            *resource_warnings(run.profile, run.needs),
            *spec_warnings(run.spec, run.rows[Stage.PREPARE].metrics if Stage.PREPARE in done else {}),
        ),
    )


def _ended(run: RunState, snapshot: Snapshot, why: str = "") -> View:
    """Nothing is left to run; the object is not ready while a requested retry waits for the end of the last Job.

    Args:
        run: the run.
        snapshot: what was observed.
        why: addition to the message: why nothing is left, if that is not because every stage is done.
    """
    if not run.deferred_request:
        outcome, reason, message = _judge_gates(run)
        return _view(run, snapshot, outcome, reason, f"{message}{why}")
    message = f"{Stage.PUBLISH}: done; {run.deferred_request}"
    return _view(run, snapshot, Outcome.RUNNING, Reason.PENDING, message, Stage.PUBLISH)


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
    return f"{publication.pointer or 'latest.json'} names version {publication.version[:SHORT_VERSION]}"


def _running_reason(run: RunState, row: StageStatus) -> tuple[str, str]:
    if row.state is StageState.PENDING and row.reason in _REASONS_OF_ANOTHER_JOB:
        return row.reason, f"{row.name}: {row.message}"
    if row.state is StageState.PENDING:
        return Reason.PENDING, f"{row.name}: waiting until an older Job of this object is gone"
    deferred = f"; {run.deferred_request}" if run.deferred_request else ""
    return row.reason, f"{row.name}: {row.message or 'running'}{deferred}"


def refused(decided: Plan, reason: str, message: str, snapshot: Snapshot, now: datetime) -> Plan:
    """The plan after the cluster refused its Job, a change of it, or its Service: what it recorded about other stages
    is kept.

    A stage without a Job waits for one. A Job that cannot be changed keeps its place and its settings. One without its
    Service runs, and its Pods look for each other.
    """
    for kind, kept in ((CreateService, ""), (ChangeJob, "; it keeps its place and its settings")):
        if any(isinstance(action, kind) for action in decided.actions):
            return _with_patience(_held_up(decided, reason, message + kept), snapshot, now)
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
    outcomes = {Reason.PENDING: Outcome.RUNNING, Reason.QUOTA_EXCEEDED: Outcome.QUEUED}
    outcome = next((each for known, each in outcomes.items() if known == reason), Outcome.BLOCKED)
    message = f"{view.stage}: {message}"
    view = replace(view, outcome=outcome, reason=reason, message=message, rows=rows, progress=None)
    held_up = Plan((), view, _earliest(decided.look_again, _look_at(outcome, reason)))
    return _with_patience(held_up, snapshot, now)


def _held_up(decided: Plan, reason: str, message: str) -> Plan:
    """The plan of a Job that stays as it is. A reason for which somebody must act already is not replaced."""
    view = decided.view
    must_act = view.outcome is Outcome.BLOCKED and view.reason not in MAY_PASS
    before = f"{view.stage}:" if view.outcome is Outcome.RUNNING else f"{view.message};"
    held_up = view.reason if must_act else reason
    view = replace(view, outcome=Outcome.BLOCKED, reason=held_up, message=f"{before} {message}")
    return Plan((), view, _earliest(decided.look_again, _look_at(view.outcome, reason)))


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
        candidates=previous.candidates,
        publication=previous.publication,
        live=previous.live,
        progress=None,
        handled_retries=snapshot.handled_retries,
        pending_retries=snapshot.new_retries,
        retryable_spec=previous.retryable_spec,
    )
    return Plan((), view, _earliest(_look_at_silence(snapshot, now), _LOOK_AT_STALLED))
