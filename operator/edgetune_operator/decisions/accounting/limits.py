"""Limits: what ends a stage for good that its Job would continue.

A Job's own deadline starts again whenever a queue starts the Job again, and the Job controller replaces interrupted
Pods without limit. The limits here are over all attempts of a stage. Waiting in a queue uses nothing.
"""

from datetime import datetime, timedelta

from edgetune_contract.stages import ExitCode, Stage, reason_for
from edgetune_operator.api import names
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.status.stage_status import StageStatus
from edgetune_operator.decisions.accounting.attempts import is_counted, run_seconds
from edgetune_operator.decisions.causes.diagnosis import (
    last_step,
    why_ended,
    why_not_continued,
    why_past_deadline,
)
from edgetune_operator.decisions.causes.queueing import Diagnosis
from edgetune_operator.decisions.observe import JobObservation
from edgetune_operator.decisions.pods import PodObservation

# The Job controller replaces a Pod that exits with 75 or 76 without limit.
MAX_INTERRUPTIONS = 100
MAX_LOST_PEERS = 5
"""Attempts in a row that may end because the Pods of a training did not reach each other, or no longer did."""


def why_given_up(job: JobObservation, row: StageStatus, max_gpu_seconds: int | None, now: datetime) -> Diagnosis | None:
    """Why a live Job fails now; None if it does not.

    Args:
        job: the Job.
        row: of its stage, with its ended attempts.
        max_gpu_seconds: the stage's limit of GPU time; None without one.
        now: time of the pass, with a time zone.
    """
    if row.preemptions > MAX_INTERRUPTIONS:
        message = f"stopped from outside {row.preemptions} times; find the cause, then request a retry"
        return Reason.INTERRUPTED_TOO_OFTEN, message
    exceeded = next((why_ended(pod) for pod in job.every_pod if pod.exceeded_storage), None)
    if exceeded is not None:
        return exceeded
    if (exhausted := why_not_continued(job, row.failed_before)) is not None:
        return exhausted
    if _lost_peers(job) >= MAX_LOST_PEERS:
        return _why_peers_are_lost(job)
    running = _running_seconds(job, now)
    gpu_seconds = (row.gpu_seconds or 0.0) + _uncounted_gpu_seconds(job, row, now)
    if max_gpu_seconds is not None and gpu_seconds >= max_gpu_seconds:
        continues = "the training resumes from its newest checkpoint" if row.name is Stage.TRAIN else "it runs again"
        return Reason.GPU_SECONDS_EXCEEDED, (
            f"used {gpu_seconds:.0f} GPU-seconds, spec.maxGpuSeconds is {max_gpu_seconds}; raise it, and {continues}"
        )
    # Of a first attempt, the Job controller ends the time.
    if row.active_seconds and job.deadline_seconds and row.active_seconds + running >= job.deadline_seconds:
        return why_past_deadline(job)
    return None


def look_at_limits(
    job: JobObservation, row: StageStatus, max_gpu_seconds: int | None, now: datetime
) -> timedelta | None:
    """Time until a running attempt reaches a limit; None if none runs."""
    running, gpus = _running_seconds(job, now), job.gpus * job.nodes
    if not running:
        return None
    left: list[float] = []
    if max_gpu_seconds is not None and gpus:
        left.append((max_gpu_seconds - (row.gpu_seconds or 0.0) - _uncounted_gpu_seconds(job, row, now)) / gpus)
    if row.active_seconds and job.deadline_seconds:
        left.append(job.deadline_seconds - row.active_seconds - running)
    return timedelta(seconds=max(min(left), 1.0)) if left else None


def _lost_peers(job: JobObservation) -> int:
    """Newest attempts in a row that lost a peer, of which none failed by itself or made a step.

    One that ended while the Pod of another node was waiting, such as for a node, does not count: that Pod says why.
    """
    lost, reached = 0, 0
    for attempt in job.pods:
        if not attempt.ended:
            continue
        step = last_step(attempt) or 0
        if not attempt.lost_peer or step > reached:
            lost = 0
        elif not any(_waited(pod, attempt.finished_at or "") for pod in job.every_pod):
            lost += 1
        reached = max(reached, step)
    return lost


def _waited(pod: PodObservation, time: str) -> bool:
    return (pod.created_at or "") < time and (pod.started_at is None or pod.started_at > time)


def _why_peers_are_lost(job: JobObservation) -> Diagnosis:
    last = [why_ended(attempt)[1] for attempt in job.pods if attempt.lost_peer][-1]
    message = (
        f"{MAX_LOST_PEERS} attempts in a row lost a Pod on another node, and none made a new step: check that no "
        f"NetworkPolicy keeps the Pods of Job {job.name} from each other (all TCP ports), that Service "
        f"{names.service_name(job.name)} exists, and that the cluster's DNS resolves it; then request a retry. The "
        f"last one: {last}"
    )
    return reason_for(ExitCode.PEER_LOST), message


def _uncounted_gpu_seconds(job: JobObservation, row: StageStatus, now: datetime) -> float:
    """GPU time of the Pods that no row has counted, such as those that run."""
    return job.gpus * sum(_seconds_until(pod, now) for pod in job.every_pod if not is_counted(pod, row.counted))


def _seconds_until(pod: PodObservation, now: datetime) -> float:
    if pod.ended or pod.started_at is None:
        return run_seconds(pod)
    return max((now - datetime.fromisoformat(pod.started_at)).total_seconds(), 0.0)


def _running_seconds(job: JobObservation, now: datetime) -> float:
    """Seconds that the containers of the newest attempt have been running; 0 if they are not."""
    newest = job.pods[-1] if job.pods else None
    if newest is None or newest.ended:
        return 0.0
    return max((_seconds_until(pod, now) for pod in newest.together if not pod.ended), default=0.0)
