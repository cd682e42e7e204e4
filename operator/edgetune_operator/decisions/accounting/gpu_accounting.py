"""GPU time of attempts: what each one adds to the object's account when it ends, seen or unseen by the operator.

counted     the operator observed the end of its container: the kubelet's own times count
unseen      its Pod is gone, and the operator was away when it ended: estimated from the times of its Job and Pods
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from edgetune_contract.stages import ExitCode, Stage
from edgetune_contract.values.times import seconds_between, timestamp
from edgetune_operator.api.profiles.gpu_use import GpuAttempt, GpuStatus, Prices, StageGpuUse
from edgetune_operator.api.status.stage_status import CountedAttempts, ProgressStatus, StageStatus
from edgetune_operator.decisions.accounting.attempts import (
    count_attempts,
    run_seconds,
    uncounted_attempts,
)
from edgetune_operator.decisions.causes.diagnosis import awaits_pod_status
from edgetune_operator.decisions.observe import JobObservation, JobState, Snapshot
from edgetune_operator.decisions.pods import PodObservation

_SECONDS_PER_HOUR = 3600


class GpuAccount:
    """GPU time that one pass adds to the object's."""

    def __init__(self, snapshot: Snapshot, profile: str = "", deadline_seconds: int | None = None) -> None:
        """Count nothing yet.

        Args:
            snapshot: what was observed.
            profile: name of the spec's profile, for Jobs of an older release, which do not name their own.
            deadline_seconds: deadline of a stage, which bounds estimates; None if it is not known.
        """
        self.used: list[StageGpuUse] = []
        self._profile = profile
        self._longest = None if deadline_seconds is None else timedelta(seconds=deadline_seconds)
        self._jobs = snapshot.jobs
        self._reports = tuple(each for each in (snapshot.progress, snapshot.previous.progress) if each is not None)

    def count(self, row: StageStatus, job: JobObservation) -> StageStatus:
        """The stage's row and the account with the attempts of a Job that ended since the last pass."""
        if job.gpus:
            ended = uncounted_attempts(row, job)
            self.used += [self._of_attempt(job, each) for each in ended if any(pod.started_at for pod in each.together)]
        return count_attempts(row, job)

    def add_repeated(self, job: JobObservation, steps: int, before: ProgressStatus) -> None:
        """Add the repetition of steps, at the pace of the attempt that was interrupted, if that is known.

        Args:
            job: the training's Job.
            steps: repeated optimizer steps.
            before: last report of the interrupted attempt.
        """
        left = before.total_steps - before.step
        # All GPU time of a failed attempt counts as such.
        has_failed = any(each.failed and any(pod.name == before.pod for pod in each.together) for each in job.pods)
        if steps <= 0 or left <= 0 or before.eta_seconds is None or has_failed:
            return
        if seconds := job.gpus * job.nodes * steps * before.eta_seconds / left:
            self.used.append(self._use(job, repeated_seconds=seconds))

    def settle(self, rows: Mapping[Stage, StageStatus], now: datetime) -> dict[Stage, StageStatus]:
        """The rows and the account with attempts of older specs, those that ended unseen, and those that hold GPUs."""
        settled = dict(rows)
        for job in self._jobs:
            row = settled[job.stage]
            # Only the account changes: the figures of the row are those of its digest.
            settled[job.stage] = row.model_copy(update={"counted": self.count(row, job).counted})
        for stage, row in settled.items():
            counted, seconds, active = [row.counted], row.gpu_seconds, row.active_seconds
            for unseen in self._unseen(row, now):
                self.used.append(unseen.use)
                counted.append(CountedAttempts(created_at=unseen.until, pods=()))
                # Of a Job that is gone, nothing bounds the estimate but the present: it must not end the stage.
                if unseen.job == row.job and any(job.name == unseen.job for job in self._jobs):
                    seconds = (seconds or 0.0) + unseen.use.seconds
                    active = (active or 0.0) + unseen.use.seconds / unseen.gpus
            newest = max((each for each in counted if each is not None), key=lambda it: it.created_at, default=None)
            held = next((found for job in self._jobs if job.stage is stage and (found := self._held(job))), None)
            if held is not None and (row.gpu_attempt is None or row.gpu_attempt.pod != held.pod):
                # A metric must be 0 before it grows, or Prometheus does not see the first increase.
                self.used.append(StageGpuUse(profile=held.profile, stage=stage))
            changes = {"counted": newest, "gpu_attempt": held, "gpu_seconds": seconds, "active_seconds": active}
            settled[stage] = row.model_copy(update=changes)
        return settled

    def _unseen(self, row: StageStatus, now: datetime) -> Iterator["_Unseen"]:
        attempt = row.gpu_attempt
        if attempt is not None and all(pod.name != attempt.pod for job in self._jobs for pod in job.every_pod):
            gpus = self._unseen_gpus(attempt)
            use = self._of_unseen_attempt(attempt.model_copy(update={"gpus": gpus}), row.name, now)
            yield _Unseen(attempt.job, gpus, _began(attempt), use)
        for job in self._jobs:
            is_other = job.stage is not row.name or (attempt is not None and attempt.job == job.name)
            is_counted = row.counted is not None and row.counted.created_at >= (job.created_at or "")
            if is_other or is_counted or job.pods or job.state is JobState.LIVE or awaits_pod_status(job, now):
                continue
            gpus = job.gpus * job.nodes
            seconds = gpus * (seconds_between(job.started_at, job.finished_at) or 0.0)
            if seconds:
                use = self._use(job, seconds, estimated_seconds=seconds)
                yield _Unseen(job.name, gpus, job.finished_at or timestamp(now), use)

    def _held(self, job: JobObservation) -> GpuAttempt | None:
        """The newest attempt of a Job, if it holds GPUs: of several nodes, with the Pod of the first one."""
        running = [pod for pod in job.every_pod if not pod.ended and pod.started_at is not None]
        if job.nodes == 1:
            running = [pod for pod in running if pod is job.pods[-1]]
        if not job.gpus or not running:
            return None
        newest = min(running, key=lambda pod: pod.index)
        return GpuAttempt(
            pod=newest.name,
            job=job.name,
            profile=job.profile or self._profile,
            gpus=job.gpus * len(running),
            prices=job.prices,
            requested_at=job.pods[-2].finished_at if len(job.pods) > 1 else job.created_at,
            scheduled_at=newest.scheduled_at,
            started_at=newest.started_at or "",
        )

    def _unseen_gpus(self, attempt: GpuAttempt) -> int:
        """The GPUs of an attempt without those of its Pods whose end is known, which count by themselves."""
        jobs = [job for job in self._jobs if job.name == attempt.job and job.nodes > 1]
        known = [job.gpus for job in jobs for pod in job.every_pod if _is_peer(pod, attempt)]
        return max(attempt.gpus - sum(known), 1)

    def _of_attempt(self, job: JobObservation, attempt: PodObservation) -> StageGpuUse:
        """What an ended attempt used, on all of its nodes."""
        pods, lead = attempt.together, min(attempt.together, key=lambda pod: pod.index)
        seconds = job.gpus * sum(map(run_seconds, pods))
        waited = sum(seconds_between(pod.scheduled_at, pod.started_at) or 0.0 for pod in pods)
        if attempt.failed:
            return self._use(job, seconds, failed_seconds=seconds, waiting_seconds=job.gpus * waited)
        alone = {pod.name: _seconds_without_peer(pod, attempt) for pod in pods}
        together = {pod.name: run_seconds(pod) - alone[pod.name] for pod in pods}
        trained = together[lead.name] - _loading(lead, together[lead.name], self._reports)
        return self._use(
            job,
            seconds,
            loading_seconds=job.gpus * sum(max(ran - trained, 0.0) for ran in together.values()),
            lost_peer_seconds=job.gpus * sum(alone.values()),
            waiting_seconds=job.gpus * waited,
        )

    def _of_unseen_attempt(self, attempt: GpuAttempt, stage: Stage, now: datetime) -> StageGpuUse:
        """What an attempt used whose Pod is gone without an observed end, estimated.

        It ended before the next Pod of its Job was created, and before its Job ended or was stopped; otherwise now, or
        at its deadline.
        """
        ends = [timestamp(now)]
        if self._longest is not None:
            ends.append(timestamp(datetime.fromisoformat(_began(attempt)) + self._longest))
        for job in (job for job in self._jobs if job.name == attempt.job):
            later = (pod.created_at for pod in job.every_pod if job.nodes == 1 or not _is_peer(pod, attempt))
            times = (job.finished_at, job.stopped_at, *later)
            ends += [time for time in times if time is not None]
        end = min((time for time in ends if time >= _began(attempt)), default=None)
        seconds = attempt.gpus * (seconds_between(attempt.started_at, end) or 0.0)
        return StageGpuUse(
            profile=attempt.profile,
            stage=stage,
            seconds=seconds,
            estimated_seconds=seconds,
            waiting_seconds=attempt.gpus * (seconds_between(attempt.scheduled_at, attempt.started_at) or 0.0),
            cost=_cost(seconds, attempt.prices),
        )

    def _use(self, job: JobObservation, seconds: float = 0.0, **parts: float) -> StageGpuUse:
        cost = _cost(seconds, job.prices)
        return StageGpuUse(profile=job.profile or self._profile, stage=job.stage, seconds=seconds, cost=cost, **parts)


def accounted(snapshot: Snapshot, now: datetime) -> Snapshot:
    """The snapshot of a deleted object, whose status has the GPU time of the attempts that the deletion stops."""
    previous, account = snapshot.previous, GpuAccount(snapshot)
    rows = {stage: StageStatus(name=stage) for stage in Stage} | {row.name: row for row in previous.stages}
    rows = account.settle(rows, now)
    if not account.used:
        return snapshot
    gpu = (previous.gpu or GpuStatus()).plus(account.used)
    return replace(snapshot, previous=previous.model_copy(update={"stages": tuple(rows.values()), "gpu": gpu}))


@dataclass(frozen=True)
class _Unseen:
    """An attempt that ended unseen."""

    job: str
    gpus: int
    until: str
    """Attempts of the stage that were created until then are counted with it."""

    use: StageGpuUse


def _seconds_without_peer(pod: PodObservation, attempt: PodObservation) -> float:
    """Seconds that a Pod of an interrupted attempt ran after the first of its Pods had ended."""
    first = min((each.finished_at for each in attempt.together if each.finished_at is not None), default=None)
    if attempt.exit_code == ExitCode.DONE or first is None:
        return 0.0
    return min(max(seconds_between(first, pod.finished_at) or 0.0, 0.0), run_seconds(pod))


def _is_peer(pod: PodObservation, attempt: GpuAttempt) -> bool:
    """Whether a Pod was there when the attempt began to run: the Pods of all nodes are created at the same time."""
    has_run = pod.started_at is not None and (pod.finished_at or attempt.started_at) >= attempt.started_at
    return has_run and (pod.created_at or "") <= attempt.started_at


def _began(attempt: GpuAttempt) -> str:
    """When an attempt began, by the clock that the times of Jobs and Pods have: a node's clock may differ."""
    return attempt.scheduled_at or attempt.started_at


def _loading(pod: PodObservation, seconds: float, reports: Sequence[ProgressStatus]) -> float:
    """Seconds of a training outside its steps; of an interrupted one, those before its first step, if it reported."""
    result = pod.result
    trained = result.metrics.get("trainSeconds") if result is not None else None
    if trained is not None:
        return max(seconds - trained, 0.0)
    started = next((each.started_at for each in reports if each.pod == pod.name), None)
    return min(seconds_between(pod.started_at, started) or 0.0, seconds)


def _cost(gpu_seconds: float, prices: Prices | None) -> dict[str, float]:
    """Price of GPU time, by currency; empty without prices."""
    return {} if prices is None else {prices.currency: gpu_seconds / _SECONDS_PER_HOUR * prices.gpu_hour}
