"""What a pass decides: actions, the content of the status, and when to look again."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from edgetune_contract.request import Request, Resolved, Scores
from edgetune_contract.results.candidates import Candidate
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles.gpu_use import StageGpuUse
from edgetune_operator.api.status.object_status import ArtifactStatus, LiveStatus, PublicationStatus
from edgetune_operator.api.status.stage_status import ProgressStatus, StageStatus
from edgetune_operator.decisions.causes.patience import Wait
from edgetune_operator.decisions.manifests.stage_resources import StageResources


class Outcome(StrEnum):
    """State of the run after a pass."""

    RUNNING = "Running"
    QUEUED = "Queued"
    """The Job waits until a queue admits it."""

    BLOCKED = "Blocked"
    """The Job or Pod waits until something passes or somebody acts; the stage then continues by itself."""

    SUSPENDED = "Suspended"
    PUBLISHED = "Published"
    REFUSED = "Refused"
    FAILED = "Failed"
    STALLED = "Stalled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens until somebody changes something."""
        return self not in (Outcome.RUNNING, Outcome.QUEUED, Outcome.BLOCKED, Outcome.SUSPENDED)


@dataclass(frozen=True)
class CreateJob:
    """Create the Job of a stage."""

    request: Request
    retry: str
    resources: StageResources
    failed_before: int = 0
    """Failed attempts of the Jobs that this one replaces; they count towards the retry limit."""

    active_before: float = 0.0
    """Seconds that attempts of these Jobs ran; they count towards the deadline."""


@dataclass(frozen=True)
class DeleteJob:
    """Delete a Job and its Pods; a running stage gets SIGTERM first."""

    name: str
    reason: str


@dataclass(frozen=True)
class ChangeJob:
    """Change a Job that waits in a queue, as far as it can be changed: it keeps its place."""

    job: CreateJob
    """The Job as it would be created now."""


@dataclass(frozen=True)
class CreateService:
    """Create the Service through which the Pods of a Job on several nodes find each other."""

    job: str
    uid: str
    """Of the Job, with which the Service is deleted."""


Action = CreateJob | DeleteJob | ChangeJob | CreateService


@dataclass(frozen=True)
class View:
    """Content of the status."""

    outcome: Outcome
    reason: str
    message: str
    stage: Stage | None
    """The first unfinished stage; None if there is none."""

    rows: tuple[StageStatus, ...]
    store: str
    resolved: Resolved | None
    artifacts: tuple[ArtifactStatus, ...]
    scores: Scores | None
    edge: EdgeMeasurement | None
    publication: PublicationStatus | None
    live: LiveStatus | None
    progress: ProgressStatus | None
    handled_retries: tuple[str, ...]
    """Retry tokens, newest first."""

    pending_retries: tuple[str, ...]
    """Retry tokens that are not handled yet, oldest first."""

    retryable_spec: str = ""
    """Digest of the part of the spec whose edit retries stages that failed."""

    has_read_store: bool = False
    """Whether this pass records what a stage read in the store about `live`."""

    gpu_used: tuple[StageGpuUse, ...] = ()
    """GPU time that is not in the status of earlier passes."""

    warnings: tuple[str, ...] = ()
    """Warnings about the whole run; those of stages are in the rows."""

    note: str = ""
    """The warnings about gates and scores in a few words, for a column."""

    candidates: tuple[Candidate, ...] = ()
    """The candidates of formats Auto."""

    wait: Wait | None = None
    """The wait for what may pass by itself; None if the object waits for nothing of this kind."""

    @property
    def is_patient(self) -> bool:
        """Whether nobody has to act yet, although the run cannot continue."""
        return self.wait is not None and self.wait.left > timedelta(0)


@dataclass(frozen=True)
class Plan:
    """What to do now, what to report, and when to make the next pass."""

    actions: tuple[Action, ...]
    view: View
    look_again: timedelta | None = None
    """Time until the next pass even if no watch triggers one; None: no pass until something changes."""
