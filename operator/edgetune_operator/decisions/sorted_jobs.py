"""The object's Jobs, sorted into buckets; other modules decide what to do with each bucket.

terminating   is being deleted
current       has its stage's digest: its end is the end of the stage
replaced      has its stage's digest, but no attempt runs and the profile or a limit of the spec has changed since. One
              that is in a queue keeps its place, and is replaced only if it cannot start, or has a priority that its
              profile does not offer
spent         has its stage's digest, but was created before the stage was reset, uses another store, its Pod outlives a
              failed attempt, or an attempt needs more memory than it has: its end no longer counts
stale         has a digest that no stage of the run has
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from edgetune_contract.stages import Stage
from edgetune_operator.decisions.manifests.stage_resources import JobSettings
from edgetune_operator.decisions.observe import JobObservation, JobState


@dataclass(frozen=True)
class Resets:
    """What a pass runs again, regardless of earlier Jobs."""

    stages: Collection[Stage] = ()
    """Stages whose ended Jobs no longer count."""

    prepares_again: bool = False
    """Whether prepare must check its inputs again, even if its Job is live. One that waits in a queue will."""

    has_moved: bool = False
    """Whether the store is another one than that of the live Jobs."""

    outlived: Collection[str] = ()
    """Names of live Jobs whose Pod outlives an attempt that failed, or whose next attempt needs more memory."""

    retry: str = ""
    """The unhandled retry token; a Job with it was created for this reset and counts. Empty if there is none."""


@dataclass
class SortedJobs:
    """The object's Jobs, each in one bucket."""

    terminating: list[JobObservation] = field(default_factory=list)
    current: dict[Stage, JobObservation] = field(default_factory=dict)
    replaced: list[JobObservation] = field(default_factory=list)
    spent: list[JobObservation] = field(default_factory=list)
    stale: list[JobObservation] = field(default_factory=list)


def sort_jobs(
    jobs: Sequence[JobObservation],
    names: Mapping[Stage, str],
    settings_of: Callable[[Stage], JobSettings],
    resets: Resets,
) -> SortedJobs:
    """Sort Jobs.

    Args:
        jobs: all of the object's Jobs.
        names: current name of each stage's Job, a function of the stage's digest.
        settings_of: current settings of a stage's Job from profile and spec.
        resets: what runs again.
    """
    found = SortedJobs()
    for job in jobs:
        if job.deleting:
            found.terminating.append(job)
        elif job.name != names[job.stage]:
            found.stale.append(job)
        elif _is_replaced(job, settings_of):
            found.replaced.append(job)
        elif _is_spent(job, resets):
            found.spent.append(job)
        else:
            found.current[job.stage] = job
    return found


def _is_replaced(job: JobObservation, settings_of: Callable[[Stage], JobSettings]) -> bool:
    if job.state is not JobState.LIVE or job.runs or not job.settings:
        return False
    settings = settings_of(job.stage)
    if job.queue and settings.queue:
        # Kueue lets nobody take a priority away, and another queue's profile may not offer it.
        takes_it_along = job.suspended and job.queue != settings.queue and job.priority and not settings.priority
        return bool(takes_it_along) or (job.is_blocked and job.fixed_settings != settings.fixed)
    return job.settings != settings.all


def _is_spent(job: JobObservation, resets: Resets) -> bool:
    if job.name in resets.outlived:
        return True
    if resets.retry and job.retry == resets.retry:
        return False
    # One with a result has ended, even if another container keeps its Pod running.
    if job.state is JobState.LIVE and job.result is None:
        is_checking = job.stage is Stage.PREPARE and not job.waits_in_queue
        return resets.has_moved or (is_checking and resets.prepares_again)
    return job.stage in resets.stages


def would_be_stopped(job: JobObservation, new_retry: str) -> bool:
    """Whether a Job is running that would be stopped if prepare ran now; `new_retry`: the unhandled retry token."""
    is_new = bool(new_retry) and job.retry == new_retry
    return job.state is JobState.LIVE and not job.deleting and job.runs and not is_new
