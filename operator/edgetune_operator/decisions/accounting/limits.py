"""Limits: what ends a stage for good that its Job would continue.

A Job's own deadline starts again whenever a queue starts the Job again, and the Job controller replaces interrupted
Pods without limit. The limits here are over all attempts of a stage. Waiting in a queue uses nothing.
"""

from datetime import datetime, timedelta

from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles import count_gpus
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.status.stage_status import StageStatus
from edgetune_operator.decisions.causes.diagnosis import why_ended, why_past_deadline
from edgetune_operator.decisions.causes.queueing import Diagnosis
from edgetune_operator.decisions.observe import JobObservation

# The Job controller replaces a Pod that exits with 75 without limit.
MAX_INTERRUPTIONS = 100


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
    exceeded = next((why_ended(pod) for pod in job.pods if pod.exceeded_storage), None)
    if exceeded is not None:
        return exceeded
    running, gpus = _running_seconds(job, now), count_gpus(job.resources)
    gpu_seconds = (row.gpu_seconds or 0.0) + gpus * running
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
    running, gpus = _running_seconds(job, now), count_gpus(job.resources)
    if not running:
        return None
    left: list[float] = []
    if max_gpu_seconds is not None and gpus:
        left.append((max_gpu_seconds - (row.gpu_seconds or 0.0)) / gpus - running)
    if row.active_seconds and job.deadline_seconds:
        left.append(job.deadline_seconds - row.active_seconds - running)
    return timedelta(seconds=max(min(left), 1.0)) if left else None


def _running_seconds(job: JobObservation, now: datetime) -> float:
    """Seconds that the container of the newest attempt has been running; 0 if it is not."""
    newest = job.pods[-1] if job.pods else None
    if newest is None or newest.ended or newest.started_at is None:
        return 0.0
    return max((now - datetime.fromisoformat(newest.started_at)).total_seconds(), 0.0)
