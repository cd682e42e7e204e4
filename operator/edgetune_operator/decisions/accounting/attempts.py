"""Attempts: what each ended attempt adds to its stage's row, exactly once, even if the operator restarts.

Attempts of a stage run one after another. Their Pods' creation times come from one clock, with a resolution of one
second; their end times come from the clocks of their nodes. The row therefore keeps the creation time of the newest
counted Pod, and the names of the counted Pods of that second. An attempt on several nodes counts as one, once all of
its Pods have ended; their times count each.
"""

from collections.abc import Sequence
from itertools import takewhile

from edgetune_contract.values.times import seconds_between
from edgetune_operator.api.status.stage_status import CountedAttempts, ProgressStatus, StageStatus
from edgetune_operator.decisions.observe import JobObservation
from edgetune_operator.decisions.pods import PodObservation


def uncounted_attempts(row: StageStatus, job: JobObservation) -> list[PodObservation]:
    """Attempts of a Job that ended since the last pass."""
    # A Pod of one node can end before an older one of another: the older attempt is counted first.
    ended = job.pods if job.nodes == 1 else takewhile(lambda attempt: attempt.ended, job.pods)
    return [pod for pod in ended if pod.ended and not is_counted(pod, row.counted)]


def count_attempts(row: StageStatus, job: JobObservation) -> StageStatus:
    """A stage's row including the attempts of a Job that ended since the last pass."""
    uncounted = uncounted_attempts(row, job)
    if not uncounted:
        return row
    # Attempts of a Job that is being deleted were stopped by its deletion.
    # Those that the Job's deadline stopped do not resume.
    stopped = (pod.interrupted and not job.stopped_by_deadline(pod) for pod in uncounted)
    preemptions = 0 if job.deleting else sum(stopped)
    changes = {
        "preemptions": row.preemptions + preemptions,
        "resumed_from": None if preemptions else row.resumed_from,
        "gpu_seconds": _gpu_seconds(row, job, uncounted),
        "active_seconds": (row.active_seconds or 0.0) + sum(map(_seconds, uncounted)),
        "counted": _counted(row, uncounted),
    }
    return row.model_copy(update=changes)


def count_resumption(row: StageStatus, job: JobObservation, pod: str, step: int, before: ProgressStatus) -> StageStatus:
    """A training's row including the step from which an attempt resumed, and the steps that the one before it lost.

    Args:
        row: the training's row.
        job: its Job.
        pod: Pod of the attempt.
        step: optimizer step of the checkpoint from which the attempt resumed.
        before: the last progress that was reported, by this attempt or an earlier one.
    """
    if before.pod == pod:
        return row
    is_counted = row.preemptions > 0 and row.resumed_from is None
    # A Pod that is missing was stopped from outside and disappeared while no operator was running.
    is_missing = not is_counted and all(known.name != before.pod for known in job.every_pod)
    changes = {
        "preemptions": row.preemptions + is_missing,
        "resumed_from": step,
        "lost_steps": (row.lost_steps or 0) + max(before.step - step, 0),
    }
    return row.model_copy(update=changes)


def is_counted(pod: PodObservation, counted: CountedAttempts | None) -> bool:
    """Whether a Pod is among those that a row has counted."""
    if counted is None or pod.created_at is None:
        return False
    return pod.created_at < counted.created_at or pod.name in counted.pods


def _counted(row: StageStatus, attempts: Sequence[PodObservation]) -> CountedAttempts:
    pods = [pod for attempt in attempts for pod in attempt.together]
    newest = max(pod.created_at or "" for pod in pods)
    known = row.counted.pods if row.counted is not None and row.counted.created_at == newest else ()
    return CountedAttempts(created_at=newest, pods=(*known, *(pod.name for pod in pods if pod.created_at == newest)))


def _gpu_seconds(row: StageStatus, job: JobObservation, attempts: Sequence[PodObservation]) -> float | None:
    """GPU time in seconds: the row's and that of further attempts; None for a stage that has had no GPU."""
    if not job.gpus:
        return row.gpu_seconds
    return (row.gpu_seconds or 0.0) + job.gpus * sum(run_seconds(pod) for each in attempts for pod in each.together)


def run_seconds(pod: PodObservation) -> float:
    """Seconds that the container of an ended Pod ran."""
    return seconds_between(pod.started_at, pod.finished_at) or 0.0


def _seconds(attempt: PodObservation) -> float:
    """Seconds of an ended attempt, of which the Pods ran at the same time."""
    return max(map(run_seconds, attempt.together))
