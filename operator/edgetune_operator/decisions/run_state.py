"""The state of one run: the rows that earlier passes recorded, updated with the Jobs that a pass observed.

    begin                rows of earlier passes that are still valid: those whose digest the spec did not change
    record_ended_jobs    results and failures of Jobs that have ended since
    handle_requests      a retry token or another store: prepare checks everything again
    look_before_work     an edited spec: prepare looks in the store for what its stages make

After each of these, `jobs` sorts the object's Jobs again (see `sorted_jobs`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from edgetune_contract.digest import pin_digest, prepare_digest, recipe_digest, stage_digests
from edgetune_contract.request import Request, Resolved, Result
from edgetune_contract.stages import ExitCode, Stage
from edgetune_contract.values.times import seconds_between, timestamp
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.profiles.tracking import RECORDING_STAGES
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.status.object_status import ArtifactStatus, PublicationStatus
from edgetune_operator.api.status.stage_status import ProgressStatus, StageState, StageStatus
from edgetune_operator.decisions.accounting.attempts import count_resumption
from edgetune_operator.decisions.accounting.gpu_accounting import GpuAccount
from edgetune_operator.decisions.accounting.limits import look_at_limits, why_given_up
from edgetune_operator.decisions.accounting.parallelism import recipe_of, with_job, with_result
from edgetune_operator.decisions.causes.diagnosis import (
    awaits_pod_status,
    failed_attempts,
    interruptions,
    killed_at_memory_limit,
    overdue,
    why_failed,
    why_more_memory,
    why_not_retried,
    why_outlived,
    why_overdue,
    why_unreadable,
    why_waiting,
)
from edgetune_operator.decisions.causes.queueing import Diagnosis
from edgetune_operator.decisions.live import reported_live
from edgetune_operator.decisions.manifests.stage_needs import Need
from edgetune_operator.decisions.manifests.stage_resources import (
    JobSettings,
    StageResources,
    job_settings,
    known_needs,
    profile_for_run,
    requested,
    stage_resources,
)
from edgetune_operator.decisions.observe import JobObservation, JobState, Snapshot
from edgetune_operator.decisions.pods import PodObservation
from edgetune_operator.decisions.results import is_whole
from edgetune_operator.decisions.sorted_jobs import Resets, SortedJobs, sort_jobs, would_be_stopped

_RETRY_DEFERRED = "the requested retry starts when this stage has ended"
_STORE_CHANGE_DEFERRED = (
    "the profile's store has changed: when this stage has ended, every stage is looked up there or run again"
)
_REPLACED = "the profile or a limit of the spec changed while no attempt was running: the stage's Job is replaced"
_KEPT = "; the profile has changed since: the Job keeps its place, and its settings"
_DONE = (StageState.SUCCEEDED, StageState.SKIPPED)


class RunState:
    """The rows of the current run while one pass updates them."""

    def __init__(self, spec: LoraFineTuneSpec, profile: Profile, snapshot: Snapshot) -> None:
        previous = snapshot.previous
        self.spec = spec
        self._profile = profile
        self._snapshot = snapshot
        self.rows: dict[Stage, StageStatus] = {stage: StageStatus(name=stage) for stage in Stage}
        self.rows |= {row.name: row for row in previous.stages}
        self.resolved = previous.resolved
        self.scores = previous.scores
        self.edge = previous.edge
        self.candidates = previous.candidates
        self.artifacts = previous.artifacts
        self.publication = previous.publication
        self.live = previous.live
        self.has_read_store = False
        """Whether this pass records what a stage read in the store about `live`."""

        self._present_store = profile.store.for_namespace(snapshot.namespace).display_uri
        self.store = previous.store or self._present_store
        """Store of the rows' outputs."""

        self._reset: set[Stage] = set()
        self._outlived: set[str] = set()
        self._prepares_again = False
        self._has_moved = False
        self.awaits_pod_status = False
        """Whether a Job has ended and its last Pod's end is not observed yet."""

        self.gpus = GpuAccount(snapshot, spec.profile, spec.active_deadline_seconds)

        self.deferred_request = ""
        """What happens when the running attempt has ended, as a sentence; empty if nothing is deferred."""

    @classmethod
    def begin(cls, spec: LoraFineTuneSpec, profile: Profile, snapshot: Snapshot) -> "RunState":
        """The state before this pass: rows of earlier passes whose digest the spec did not change."""
        run = cls(spec, profile, snapshot)
        digest = prepare_digest(spec.parameters)
        if run.rows[Stage.PREPARE].digest != digest:
            run._restart(Stage.PREPARE, digest)
        if run._is_edited():
            for stage in [row.name for row in run.rows.values() if row.state is StageState.FAILED]:
                run._reset_stage(stage)
        if pin := pin_digest(spec.parameters, snapshot.name):
            run._take_digest(Stage.PUBLISH, pin)
        if run.rows[Stage.PREPARE].state is StageState.SUCCEEDED and run.resolved is not None:
            run._rekey(run.resolved)
        for job in (*run.jobs.terminating, *run.jobs.current.values()):
            # A row that began again has limits of its own: attempts from before that only go into the account.
            if run.rows[job.stage].job == job.name:
                run.rows[job.stage] = run.gpus.count(run.rows[job.stage], job)
        return run

    @property
    def jobs(self) -> SortedJobs:
        """The object's Jobs, sorted by the current rows and resets."""
        new_retry = self._snapshot.new_retry
        resets = Resets(self._reset, self._prepares_again, self._has_moved, self._outlived, new_retry)
        job_names = {stage: self.job_name(stage) for stage in Stage}
        return sort_jobs(self._snapshot.jobs, job_names, self.settings_of, resets)

    @property
    def profile(self) -> Profile:
        """The profile for the base of this run, once prepare has measured it."""
        return profile_for_run(self._profile, self.rows[Stage.PREPARE])

    @property
    def needs(self) -> Mapping[Stage, Need]:
        """What the stages need that hold the model, once prepare has measured it."""
        return known_needs(self.profile, self.rows[Stage.PREPARE], self.spec.parameters)

    def resources(self, stage: Stage, more: int = 0) -> StageResources:
        """Resources of the stage's next Job, with the memory doubled `more` times."""
        doublings = self.rows[stage].memory_doublings + more
        return stage_resources(self.profile, stage, self.needs.get(stage), doublings)

    def _gets_more(self, stage: Stage) -> bool:
        return self.resources(stage, more=1).container != self.resources(stage).container

    def settings_of(self, stage: Stage) -> JobSettings:
        """What the stage's next Job takes from profile and spec."""
        return job_settings(self.spec, self.profile, stage, self.resources(stage))

    def look_at_limits(self, now: datetime) -> timedelta | None:
        """Time until a running attempt reaches a limit over all attempts of its stage; None if none does."""
        limit, current = self.spec.max_gpu_seconds, self.jobs.current
        times = (
            look_at_limits(job, self.rows[stage], limit, now)
            for stage, job in current.items()
            if job.state is JobState.LIVE and self.rows[stage].state.has_job
        )
        return min((time for time in times if time is not None), default=None)

    def job_name(self, stage: Stage) -> str:
        """Name of the stage's Job."""
        return names.job_name(self._snapshot.name, stage, self.rows[stage].digest)

    # Changes of the spec.

    def _is_edited(self) -> bool:
        """Whether the spec differs from the one that the last pass considered, in more than suspend and the pin."""
        return self.spec.retryable_digest != self._snapshot.previous.retryable_spec

    def _reset_stage(self, stage: Stage) -> None:
        """The stage runs again, regardless of its earlier Jobs."""
        self._restart(stage, self.rows[stage].digest)
        self._reset.add(stage)

    def _restart(self, stage: Stage, digest: str) -> None:
        """Empty the stage's row, except for the attempts that were counted, of which none is counted twice, and for
        what is known of the memory that this digest needs."""
        row = self.rows[stage]
        doublings = row.memory_doublings if row.digest == digest else 0
        kept: dict[str, object] = {"counted": row.counted, "gpu_attempt": row.gpu_attempt}
        kept |= {"memory_doublings": doublings, "one_process": row.one_process}
        self.rows[stage] = StageStatus(name=stage, digest=digest).model_copy(update=kept)

    def _rekey(self, resolved: Resolved) -> None:
        """Give the stages after prepare their digests; a row of another digest starts again."""
        digests = stage_digests(self.spec.parameters, resolved, self._snapshot.name)
        for stage in list(Stage)[1:]:
            self._take_digest(stage, digests.get(stage, ""))
            if stage not in digests:
                self._update(stage, state=StageState.SKIPPED, reason=Reason.MERGE_NOT_KEPT)

    def _take_digest(self, stage: Stage, digest: str) -> None:
        if self.rows[stage].digest == digest:
            return
        self._restart(stage, digest)
        if stage is Stage.PUBLISH:
            # The pointer may have moved since an earlier Job published this very version.
            self._reset.add(stage)

    # Requests of users and the platform team.

    def handle_requests(self, now: datetime) -> None:
        """For a new retry token or another store, let prepare check everything again as soon as no attempt runs."""
        token = self._snapshot.new_retry
        has_moved = self.store != self._present_store and (bool(token) or self._has_work_left())
        if not token and not has_moved:
            return
        if self.awaits_pod_status or any(would_be_stopped(job, token) for job in self._snapshot.jobs):
            self.deferred_request = _RETRY_DEFERRED if token else _STORE_CHANGE_DEFERRED
            return
        self._has_moved = has_moved
        for stage, row in self.rows.items():
            is_pin = stage is Stage.PUBLISH and bool(self.spec.publish.pin) and self.spec.suspend
            if has_moved or is_pin or stage is Stage.PREPARE or row.state is StageState.FAILED:
                self._reset_stage(stage)
            elif row.state.has_job and not self._waits_in_queue(stage):
                self._update(stage, state=StageState.PENDING, reason="", message="")
        self.store = self._present_store
        self._prepares_again = True
        self.record_ended_jobs(now)

    def _waits_in_queue(self, stage: Stage) -> bool:
        job = self.jobs.current.get(stage)
        return job is not None and job.waits_in_queue

    def look_before_work(self) -> None:
        """Let prepare look in the store for the stages of an edited spec, before one of them gets a Job.

        A revert thus needs no GPU. publish needs no such look: its own Job is as small as prepare's.
        """
        stage = self.next_stage()
        if stage is None or stage in (Stage.PREPARE, Stage.PUBLISH) or stage in self.jobs.current:
            return
        has_looked = self.rows[Stage.PREPARE].looked_for == recipe_digest(self.spec.parameters)
        if not has_looked and self.rows[stage].state is not StageState.FAILED:
            self._reset_stage(Stage.PREPARE)

    def _has_work_left(self) -> bool:
        """Whether an unfinished stage remains: the present store does not have the outputs that it reads."""
        stage = self.next_stage()
        return stage is not None and self.rows[stage].state is not StageState.FAILED

    # Results of Jobs.

    def record_ended_jobs(self, now: datetime) -> None:
        """Update the first unfinished rows from their Jobs."""
        while (stage := self.next_stage()) is not None:
            if self.rows[stage].state is StageState.FAILED:
                return  # the row keeps the reason even if its Job and Pods are gone
            jobs = self.jobs
            if stage not in jobs.current:
                self._note_missing_job(stage, is_replaced=any(job.stage is stage for job in jobs.replaced))
                return
            self._record(stage, jobs.current[stage], now)
            if self.rows[stage].state is not StageState.SUCCEEDED:
                return

    def _note_missing_job(self, stage: Stage, *, is_replaced: bool) -> None:
        """A stage whose Job is gone or being deleted waits for its next Job."""
        if self.rows[stage].state.has_job:
            self._update(stage, state=StageState.PENDING)
        if is_replaced:
            self._update(stage, reason=Reason.REPLACED, message=_REPLACED)

    def _record(self, stage: Stage, job: JobObservation, now: datetime) -> None:
        self._follow(stage, job)
        started_at, finished_at = job.started_at or self.rows[stage].started_at, job.finished_at or timestamp(now)
        ended = {
            "started_at": started_at,
            "finished_at": finished_at,
            "seconds": seconds_between(started_at, finished_at),
        }
        result = job.result
        if result is not None and is_whole(result, self.rows[stage], self.artifacts):
            finisher = job.finisher.name if job.finisher is not None else ""
            self._note_resumption(job, finisher, result.metrics.get("resumedFromStep"))
            self._succeed(stage, result, **ended)
        elif job.state is not JobState.LIVE and awaits_pod_status(job, now):
            self.awaits_pod_status = True
            self._update(stage, state=StageState.RUNNING)
        elif job.state is JobState.FAILED:
            self._fail(stage, why_failed(job, self.rows[stage].failed_before), ended)
        elif job.state is JobState.COMPLETE:
            self._record_lost_result(stage, job, ended)
        elif (why := why_given_up(job, self.rows[stage], self.spec.max_gpu_seconds, now)) is not None:
            self._fail(stage, why, ended)
        elif overdue(job, now) is not None and job.outlived is not None:
            self._record_outlived(stage, job, job.outlived, ended)
        elif (killed := killed_at_memory_limit(job, self.rows[stage].failed_before)) and self._gets_more(stage):
            self._retry_by_another_job(stage, job, killed, why_more_memory(self.resources(stage).memory_limit))
        else:
            reason, message = self._why_waiting(stage, job)
            if self.rows[stage].reason == Reason.RESULT_LOST:
                reason = Reason.RESULT_LOST
            state = StageState.QUEUED if job.suspended else StageState.RUNNING
            self._update(stage, state=state, reason=reason, message=message)

    def _fail(self, stage: Stage, why: Diagnosis, ended: Mapping[str, object]) -> None:
        reason, message = why
        self._update(stage, state=StageState.FAILED, reason=reason, message=message, **ended)

    def _record_outlived(
        self, stage: Stage, job: JobObservation, pod: PodObservation, ended: Mapping[str, Any]
    ) -> None:
        """An attempt without success has ended and its Pod lives on: the Job controller would wait for the Pod."""
        if pod.exit_code == ExitCode.DONE:
            self._record_lost_result(stage, job, ended)
            self._outlived.add(job.name)
        elif (why := why_not_retried(pod, job, self.rows[stage].failed_before)) is not None:
            self._fail(stage, why, ended)
        else:
            self._retry_by_another_job(stage, job, pod, why_outlived(pod))

    def _retry_by_another_job(self, stage: Stage, job: JobObservation, pod: PodObservation, why: Diagnosis) -> None:
        """The stage's next Job has the retries that are left, and twice the memory if that was missing."""
        row = self.rows[stage]
        # Of one node, the Job's status counts the Pod that lives on.
        failed = row.failed_before + failed_attempts(job) - (pod.interrupted and job.nodes == 1)
        changes = {"reason": why[0], "message": why[1], "failed_before": failed, "attempts": failed}
        changes |= {"state": StageState.PENDING, "started_at": None}
        self._update(stage, memory_doublings=row.memory_doublings + pod.exceeded_memory, **changes)
        self._outlived.add(job.name)

    def note_overdue_jobs(self, now: datetime) -> Mapping[str, str]:
        """Jobs of finished stages that wait for a Pod which lives on: why each is deleted, by name."""
        found: dict[str, str] = {}
        for job in self._snapshot.jobs:
            row, pod = self.rows[job.stage], overdue(job, now)
            if pod is None or row.state is not StageState.SUCCEEDED or row.job != job.name:
                continue
            found[job.name] = why_overdue(pod)
            done = f"done; Job {job.name} was deleted because {found[job.name]}"
            self._update(job.stage, message=f"{interruptions(row)}; {done}".removeprefix("; "))
        return found

    def _why_waiting(self, stage: Stage, job: JobObservation) -> Diagnosis:
        reason, message = why_waiting(job, self._snapshot)
        row = self.rows[stage]
        newest = job.pods[-1] if job.pods else None
        is_stopping = job.suspended or newest is None or newest.disrupted
        is_running = not is_stopping and newest is not None and newest.phase == "Running"
        # A training reports the step from which it resumed.
        has_resumed = row.preemptions > 0 and is_running and (stage is not Stage.TRAIN or row.resumed_from is not None)
        if has_resumed and reason != Reason.ATTEMPT_FAILED:
            return Reason.RESUMED, interruptions(row)
        if job.suspended and job.queue and job.fixed_settings not in ("", self.settings_of(stage).fixed):
            message += _KEPT
        return reason, message

    def _follow(self, stage: Stage, job: JobObservation) -> None:
        """Update a row's attempts from its Job. For a Job that was just created, this changes nothing after `start`."""
        # A queue starts the Job, and its Pod may still wait for its node and its image.
        has_begun = not job.queue or job.runs_elsewhere or any(pod.started_at for pod in job.every_pod)
        started_at = self.rows[stage].started_at or (job.started_at if has_begun else None)
        started_at = None if job.suspended else started_at
        attempts = job.attempts if job.suspended else max(job.attempts, 1)
        attempts += self.rows[stage].failed_before
        asked = requested(job.resources)
        seen = {"job": job.name, "started_at": started_at, "looked_for": job.looked_for}
        self._update(stage, attempts=attempts, requested=asked, **seen)
        if stage is Stage.TRAIN:
            self.rows[stage] = with_job(self.rows[stage], job)
        self.rows[stage] = self.gpus.count(self.rows[stage], job)
        progress = self._snapshot.progress
        if progress is not None and progress.stage is stage:
            self._note_resumption(job, progress.pod, progress.resumed_from)

    def _note_resumption(self, job: JobObservation, pod: str, step: float | None) -> None:
        before, row = self._snapshot.previous.progress, self.rows[job.stage]
        if job.stage is not Stage.TRAIN or step is None or before is None:
            return
        resumed = count_resumption(row, job, pod, int(step), before)
        self.rows[job.stage] = resumed
        self.gpus.add_repeated(job, (resumed.lost_steps or 0) - (row.lost_steps or 0), before)

    def account_for_gpus(self, now: datetime) -> None:
        """Account for the GPU time of attempts that no row has counted."""
        self.rows = self.gpus.settle(self.rows, now)

    def _record_lost_result(self, stage: Stage, job: JobObservation, ended: Mapping[str, object]) -> None:
        """The stage finished but its result was lost. It is run again once, which finds the manifest; then it fails.

        Another Job would run in another cluster again, without a Pod here: then prepare finds the manifest.
        """
        finder = Stage.PREPARE if job.runs_elsewhere else stage
        message = (
            f"the stage ended without a readable result{why_unreadable(job)}; running "
            f"{'it' if finder is stage else finder} again finds its manifest in the store"
        )
        # The row keeps the reason until the stage is done: it marks the second time.
        if self.rows[stage].reason == Reason.RESULT_LOST:
            self._fail(stage, (Reason.RESULT_LOST, message), ended)
        else:
            if finder is not stage:
                self._restart(finder, self.rows[finder].digest)
            self._update(stage, state=StageState.PENDING, reason=Reason.RESULT_LOST, message=message)
            self._reset.add(finder)

    def _succeed(self, stage: Stage, result: Result, **ended: object) -> None:
        self._update(
            stage,
            state=StageState.SUCCEEDED,
            cached=result.cached,
            reason=Reason.CACHED if result.cached else Reason.SUCCEEDED,
            message=interruptions(self.rows[stage]),
            metrics=result.metrics,
            facts=result.facts,
            warnings=result.warnings,
            **ended,
        )
        if stage is Stage.TRAIN:
            recipe = recipe_of(self.spec.parameters, self.resolved)
            self.rows[stage] = with_result(self.rows[stage], result, recipe)
        self._take_outputs(result)
        if stage is Stage.PREPARE and result.resolved is not None:
            self.resolved = result.resolved
            self._rekey(result.resolved)
            self._take_from_store(result.done)

    def _take_from_store(self, results: Sequence[Result]) -> None:
        """Update the stages after prepare from the manifests in the store: they are facts, the status is a view."""
        done = {result.stage: result for result in results if is_whole(result, self.rows[result.stage], self.artifacts)}
        for stage, row in list(self.rows.items()):
            if stage in done and row.state not in _DONE:
                self._succeed(stage, done[stage].model_copy(update={"cached": True}), seconds=done[stage].seconds)
            elif stage is not Stage.PREPARE and stage not in done and row.state is StageState.SUCCEEDED:
                # Either it is no longer in the store or it did not fit into the message: then a short run finds it.
                self._reset_stage(stage)

    def _take_outputs(self, result: Result) -> None:
        outputs = tuple(ArtifactStatus(stage=result.stage, **artifact.model_dump()) for artifact in result.artifacts)
        self.artifacts = tuple(kept for kept in self.artifacts if kept.stage is not result.stage) + outputs
        if result.stage is Stage.EVALUATE:
            self.scores, self.edge, self.candidates = result.scores, result.edge, result.candidates
        if result.stage is Stage.PREPARE or result.live is not None:
            store = self._profile.store.for_namespace(self._snapshot.namespace)
            self.live, self.has_read_store = reported_live(result, store.uri, self._snapshot.name), True
        if result.publication is not None:
            self.publication = PublicationStatus.model_validate(result.publication.model_dump())

    def _update(self, stage: Stage, **changes: object) -> None:
        self.rows[stage] = self.rows[stage].model_copy(update=changes)

    # The next stage.

    def next_stage(self) -> Stage | None:
        """The first unfinished stage. With a pin, publish comes first: a rollback does not wait for a training."""
        order = (Stage.PUBLISH, *Stage) if self.spec.publish.pin else Stage
        return next((stage for stage in order if self.rows[stage].state not in _DONE), None)

    def start(self, stage: Stage, now: datetime) -> None:
        """Mark a stage as running, with the first attempt of the Job that is about to be created."""
        attempts = self.rows[stage].failed_before + 1
        queue = self.settings_of(stage).queue
        started: dict[str, object] = {"state": StageState.RUNNING, "started_at": timestamp(now)}
        why: Diagnosis = (Reason.JOB_RUNNING, "")
        if queue:
            started = {"state": StageState.QUEUED, "started_at": None}
            why = (Reason.QUEUED, f"the Job is suspended until queue {queue} admits it")
        if self.rows[stage].reason != Reason.RESULT_LOST:
            started |= {"reason": why[0], "message": why[1]}
        started["attempts"] = attempts
        started["requested"] = requested(self.resources(stage).asked)
        if stage is Stage.PREPARE:
            started["looked_for"] = recipe_digest(self.spec.parameters)
        self._update(stage, job=self.job_name(stage), **started)

    def progress(self, stage: Stage) -> ProgressStatus | None:
        """Progress of a running stage: the current report or, between two attempts, the last one."""
        row, previous = self.rows[stage], self._snapshot.previous
        before = next((known for known in previous.stages if known.name is stage), None)
        if not row.state.has_job or before is None or before.job != row.job:
            return None
        reported = self._snapshot.progress or previous.progress
        return reported if reported is not None and reported.stage is stage else None

    def request(self, stage: Stage) -> Request:
        """The complete request of a stage."""
        publishes, pins = stage is Stage.PUBLISH, stage is Stage.PUBLISH and bool(self.spec.publish.pin)
        signs = self._profile.signing is not None and (stage is Stage.PREPARE or (publishes and not pins))
        tracks = self._profile.tracking is not None and stage in RECORDING_STAGES and not pins
        return Request(
            namespace=self._snapshot.namespace,
            name=self._snapshot.name,
            stage=stage,
            digest=self.rows[stage].digest,
            store=self._profile.store.for_namespace(self._snapshot.namespace),
            parameters=self.spec.parameters,
            allowed_sources=self._profile.sources,
            resolved=None if stage is Stage.PREPARE else self.resolved,
            sign=True if signs else None,
            source_revision=(self._snapshot.source_revision or None) if tracks or (signs and publishes) else None,
        )
