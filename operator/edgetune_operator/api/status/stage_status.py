"""The rows of the status: the state of each stage, and the progress of the running one."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator

from edgetune_contract.schema import Count, Model, Name
from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles.gpu_use import GpuAttempt

MAX_TEXT = 32_768

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Timestamp = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]


class StageState(StrEnum):
    """State of one stage of the current run."""

    PENDING = "Pending"
    QUEUED = "Queued"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SKIPPED = "Skipped"

    @property
    def has_job(self) -> bool:
        """Whether the stage has a Job that has not ended."""
        return self in (StageState.QUEUED, StageState.RUNNING)


class CountedAttempts(Model):
    """The newest attempts of a stage that were counted; all earlier ones were counted too."""

    created_at: Timestamp
    """Creation time of their Pods (RFC 3339)."""

    pods: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=64)]
    """Names of their Pods; usually one, since attempts run one after another."""


class RequestedResources(Model):
    """What a stage's Job requests of its node."""

    memory_bytes: Count | None = None
    """Memory."""

    storage_bytes: Count | None = None
    """Ephemeral storage: the work volume and the logs."""


class Parallelism(Model):
    """The processes of a training that share the examples of each step."""

    processes: Annotated[int, Field(ge=2, le=4096)]
    """Number of processes on all nodes: one for each GPU."""

    nodes: Annotated[int, Field(ge=1, le=64)] | None = None
    """Number of nodes, each with a Pod; absent if the output was already in the store."""

    efficiency: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Tokens per second of each process, divided by those of one that trains alone. Absent until the training is done,
    and if this object has trained in no single process with this base, device and settings."""

    @property
    def described(self) -> str:
        """Such as "16 on 2 nodes"."""
        return f"{self.processes}{self.where}"

    @property
    def where(self) -> str:
        """Such as " on 2 nodes"; empty for one node."""
        return f" on {self.nodes} nodes" if self.nodes is not None and self.nodes > 1 else ""


class OneProcess(Model):
    """Speed of a training in one process."""

    tokens_per_second: Annotated[float, Field(gt=0, le=1e12)]
    """Training tokens per second."""

    device: Text
    """Its device, as the stage names it."""

    recipe: Annotated[str, Field(max_length=64)]
    """SHA-256 over what decides its speed: the base, and settings of lora and training."""


class StageStatus(Model):
    """One stage of the current run."""

    name: Stage
    """The stage."""

    state: StageState = StageState.PENDING
    """Pending, Queued, Running, Succeeded, Failed, or Skipped (merge, with merge.keep false)."""

    digest: Annotated[str, Field(max_length=64)] = ""
    """SHA-256 over everything that can change the stage's output; empty until it is known."""

    job: Annotated[str, Field(max_length=253)] = ""
    """Name of the stage's Job."""

    attempts: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Started attempts, without those that a disruption ended."""

    failed_before: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Failed attempts of earlier Jobs of the stage, which were replaced because another container kept their Pod
    running. They count towards the retry limit."""

    preemptions: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Attempts that were stopped from outside, such as by an eviction, and resumed later."""

    resumed_from: Count | None = None
    """Optimizer step of the checkpoint from which the newest attempt resumed; absent if no attempt has resumed."""

    lost_steps: Count | None = None
    """Optimizer steps repeated after interruptions, summed over resumed attempts."""

    gpu_seconds: Annotated[float, Field(ge=0, le=1e12)] | None = None
    """GPU time of the ended attempts with this digest: seconds that their containers ran, times the GPUs that they
    had. status.gpu has that of all attempts."""

    gpu_attempt: GpuAttempt | None = None
    """The running attempt, if it has GPUs."""

    active_seconds: Annotated[float, Field(ge=0, le=1e12)] | None = None
    """Seconds that the containers of ended attempts ran; they count towards the deadline."""

    counted: CountedAttempts | None = None
    """The newest counted attempts; they make each attempt count once."""

    looked_for: Annotated[str, Field(max_length=64)] = ""
    """Of prepare: SHA-256 over the part of the spec for whose later stages it looks in the store. They get no Jobs
    before prepare has looked for them."""

    memory_doublings: Annotated[int, Field(ge=0, le=1000)] = 0
    """How often the stage's memory was doubled, because an attempt was killed at its limit."""

    requested: RequestedResources | None = None
    """What the stage's Job requests. The metrics usedMemoryBytes and usedStorageBytes have what it used."""

    parallelism: Parallelism | None = None
    """Of train: the processes that share its steps; absent for one process. The metric tokensPerSecond, and that of
    progress, count the tokens of all of them."""

    one_process: OneProcess | None = None
    """Of train: speed of the object's newest training in one process, which an edit of the spec does not reset."""

    started_at: Timestamp | None = None
    """When the stage started (RFC 3339)."""

    finished_at: Timestamp | None = None
    """When the stage ended (RFC 3339)."""

    seconds: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Duration, in seconds."""

    cached: bool = False
    """Whether the output was already in the store."""

    reason: Annotated[str, Field(max_length=128)] = ""
    """CamelCase reason for the state."""

    message: Text = ""
    """What happened and what to do."""

    metrics: dict[Name, float] = {}
    """The stage's figures, such as steps, loss, tokensPerSecond, trainableParameters."""

    facts: dict[Name, Text] = {}
    """What the stage chose and why, such as device, precision, layout, microBatchSize."""

    warnings: tuple[Text, ...] = ()
    """Warnings of the stage."""


class ProgressStatus(Model):
    """Progress of the running stage."""

    stage: Stage
    """The running stage."""

    step: Annotated[int, Field(ge=0, le=1_000_000_000_000)]
    """Completed units."""

    total_steps: Annotated[int, Field(ge=0, le=1_000_000_000_000)]
    """Total units."""

    unit: Annotated[str, Field(max_length=32)] = "steps"
    """The unit that is counted."""

    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Completed share, in percent."""

    loss: float | None = None
    """Training loss of the latest steps, in nats per completion token."""

    tokens_per_second: float | None = None
    """Training tokens per second."""

    eta_seconds: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Expected time until the stage ends, in seconds."""

    pod: Annotated[str, Field(max_length=253)] = ""
    """Pod of the attempt that reported this. A later attempt replaces it with its first report."""

    resumed_from: Annotated[int, Field(ge=0, le=1_000_000_000_000)] = 0
    """Optimizer step of the checkpoint from which this attempt resumed; 0 if it started from the beginning."""

    started_at: Timestamp | None = None
    """When this attempt began its first step (RFC 3339)."""

    @model_validator(mode="before")
    @classmethod
    def _compute_percent(cls, values: Any) -> Any:
        """percent follows from the units; a report may count more units than it announced."""
        if not isinstance(values, dict):
            return values
        step, total = values.get("step"), values.get("total_steps", values.get("totalSteps"))
        if not isinstance(step, int) or not isinstance(total, int):
            return values
        return {**values, "percent": min(max(100 * step // total, 0), 100) if total > 0 else 0}
