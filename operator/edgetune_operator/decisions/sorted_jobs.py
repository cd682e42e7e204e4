"""What each Job of the object is for the run as it is now: sorted here once, judged elsewhere.

going      is being deleted
current    has its stage's digest and speaks for the stage
replaced   has its stage's digest, but no attempt runs, and the profile or a limit of the spec changed since
spent      has its stage's digest, but is from before the stage was reset: its end is not the end of the next attempt
stale      has a digest that no stage of the run has
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from edgetune_contract.stages import Stage
from edgetune_operator.decisions.observe import JobObservation, JobState


@dataclass(frozen=True)
class Resets:
    """What a pass starts again, whatever earlier Jobs said."""

    stages: Collection[Stage] = ()
    """Stages whose ended Jobs no longer count."""

    prepares_again: bool = False
    """Whether prepare has to look at its inputs again, even while a Job of it is live."""

    retry: str = ""
    """A retry token that is not handled yet: a Job that has it was created for this reset, and counts."""


@dataclass
class SortedJobs:
    """The object's Jobs, each in one place."""

    going: list[JobObservation] = field(default_factory=list)
    current: dict[Stage, JobObservation] = field(default_factory=dict)
    replaced: list[JobObservation] = field(default_factory=list)
    spent: list[JobObservation] = field(default_factory=list)
    stale: list[JobObservation] = field(default_factory=list)


def sort_jobs(
    jobs: Sequence[JobObservation], names: Mapping[Stage, str], settings_of: Callable[[Stage], str], resets: Resets
) -> SortedJobs:
    """Sort Jobs.

    Args:
        jobs: all of the object's Jobs.
        names: of each stage, the name that its Job has now: a function of its digest.
        settings_of: the hash of what profile and spec give the Job of a stage now.
        resets: what starts again.
    """
    found = SortedJobs()
    for job in jobs:
        if job.deleting:
            found.going.append(job)
        elif job.name != names[job.stage]:
            found.stale.append(job)
        elif _is_replaced(job, settings_of):
            found.replaced.append(job)
        elif _is_spent(job, resets):
            found.spent.append(job)
        else:
            found.current[job.stage] = job
    return found


def _is_replaced(job: JobObservation, settings_of: Callable[[Stage], str]) -> bool:
    if job.state is not JobState.LIVE or job.runs or not job.settings:
        return False
    return job.settings != settings_of(job.stage)


def _is_spent(job: JobObservation, resets: Resets) -> bool:
    if resets.retry and job.retry == resets.retry:
        return False
    if job.state is JobState.LIVE:
        return job.stage is Stage.PREPARE and resets.prepares_again
    return job.stage in resets.stages
