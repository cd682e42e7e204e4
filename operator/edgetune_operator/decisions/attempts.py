"""Attempts: what those that have ended add to their stage's row, each of them once, also over restarts of the operator.

Attempts of a stage follow each other, and one clock dates their Pods, to the second; when they ended, each node says by
its own. So the row keeps when the newest Pod that was counted was created, and which of that second were counted.
"""

from collections.abc import Sequence

from edgetune_contract.times import seconds_between
from edgetune_operator.api.objects import CountedAttempts, StageStatus
from edgetune_operator.api.profiles import count_gpus
from edgetune_operator.decisions.observe import JobObservation, PodObservation


def count_attempts(row: StageStatus, job: JobObservation) -> StageStatus:
    """A stage's row with what the attempts of a Job add that have ended since the last pass."""
    news = [pod for pod in job.pods if pod.ended and not _is_counted(pod, row.counted)]
    if not news:
        return row
    # Those of a Job that goes were stopped by this operator, or by whoever deleted it.
    times = 0 if job.deleting else sum(pod.interrupted for pod in news)
    changes = {
        "preemptions": row.preemptions + times,
        "resumed_from": None if times else row.resumed_from,
        "gpu_seconds": _gpu_seconds(row, job, news),
        "counted": _counted(row, news),
    }
    return row.model_copy(update=changes)


def _is_counted(pod: PodObservation, counted: CountedAttempts | None) -> bool:
    if counted is None or pod.created_at is None:
        return False
    return pod.created_at < counted.created_at or pod.name in counted.pods


def _counted(row: StageStatus, news: Sequence[PodObservation]) -> CountedAttempts:
    newest = max(pod.created_at or "" for pod in news)
    known = row.counted.pods if row.counted is not None and row.counted.created_at == newest else ()
    return CountedAttempts(created_at=newest, pods=(*known, *(pod.name for pod in news if pod.created_at == newest)))


def _gpu_seconds(row: StageStatus, job: JobObservation, pods: Sequence[PodObservation]) -> float | None:
    """The row's GPU time with that of some more attempts; None for a stage that has had no GPU."""
    gpus = count_gpus(job.resources)
    if not gpus:
        return row.gpu_seconds
    seconds = sum(seconds_between(pod.started_at, pod.finished_at) or 0.0 for pod in pods)
    return (row.gpu_seconds or 0.0) + gpus * seconds
