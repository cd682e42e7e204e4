"""The LoraFineTune object: spec and status. The CRD, the field reference and every check of a spec come from here."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from edgetune_contract.measurement import EdgeMeasurement
from edgetune_contract.pipeline import PIPELINE
from edgetune_contract.request import Artifact, Resolved, Scores
from edgetune_contract.schema import LARGEST, Count, Model, Name, Uri
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage

LIST_MAP = "x-kubernetes-list-map-keys"
LIST_TYPE = "x-kubernetes-list-type"
MAX_DISPLAY = 64
MAX_HISTORY = 10
MAX_WARNINGS = 64
MAX_RETRY_TOKEN = 256
MAX_TEXT = 32_768
SHORT_VERSION = 12  # digits of a version that are shown: the minimum that spec.publish.pin accepts

ProfileName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Timestamp = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]


class DeletionPolicy(StrEnum):
    """What happens to the artifacts when the object is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class LoraFineTuneSpec(Parameters):
    """The desired state."""

    profile: ProfileName = "default"
    """Name of a profile of the platform team, which sets images, resources, node selection, bucket, credentials and
    queue."""

    suspend: bool = False
    """Stop the running stage (training writes a checkpoint first). Finished stages are kept."""

    retry_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Retries of one stage after a failed attempt: 3 allows four attempts. Preemptions do not count. A running stage
    keeps the limit with which it started."""

    active_deadline_seconds: Annotated[int, Field(ge=60, le=31_536_000)] = 86_400
    """Deadline of one stage, in seconds. A running stage keeps the deadline with which it started."""

    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    """What happens to the artifacts when the object is deleted. Retain keeps all of them. Delete removes, before the
    object is gone, the versions and the pointer of this name, and the outputs of its stages that no other object uses.
    It also removes those that an earlier object of this name left."""

    @property
    def parameters(self) -> Parameters:
        """The part of the spec that reaches the stages."""
        return Parameters.model_construct(**{name: getattr(self, name) for name in Parameters.model_fields})


class DeletionTerms(Model):
    """The fields of a spec that a deletion follows: they count although another field is invalid."""

    profile: ProfileName = LoraFineTuneSpec.model_fields["profile"].default
    deletion_policy: DeletionPolicy = LoraFineTuneSpec.model_fields["deletion_policy"].default


class Phase(StrEnum):
    """State of the object in one word, for users. Programs read conditions."""

    PENDING = "Pending"
    PREPARING = PIPELINE[Stage.PREPARE].phase
    TRAINING = PIPELINE[Stage.TRAIN].phase
    MERGING = PIPELINE[Stage.MERGE].phase
    QUANTIZING = PIPELINE[Stage.QUANTIZE].phase
    EVALUATING = PIPELINE[Stage.EVALUATE].phase
    PUBLISHING = PIPELINE[Stage.PUBLISH].phase
    STALLED = "Stalled"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    REFUSED = "Refused"
    FAILED = "Failed"
    DELETING = "Deleting"


class StageState(StrEnum):
    """State of one stage of the current run."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SKIPPED = "Skipped"


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


class StageStatus(Model):
    """One stage of the current run."""

    name: Stage
    """The stage."""

    state: StageState = StageState.PENDING
    """Pending, Running, Succeeded, Failed, or Skipped (merge, with merge.keep false)."""

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
    """GPU time of ended attempts: seconds that their containers ran, times the GPUs that they had. Attempts stopped by
    a suspension or an edit of the spec are included."""

    counted: CountedAttempts | None = None
    """The newest counted attempts; they make each attempt count once."""

    memory_doublings: Annotated[int, Field(ge=0, le=1000)] = 0
    """How often the stage's memory was doubled, because an attempt was killed at its limit."""

    requested: RequestedResources | None = None
    """What the stage's Job requests. The metrics usedMemoryBytes and usedStorageBytes have what it used."""

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


class Sizes(Model):
    """Sizes of the run's inputs and outputs, in bytes."""

    base_bytes: Count | None = None
    """Files of the base model."""

    adapter_bytes: Count | None = None
    """Files of the adapter."""

    merged_bytes: Count | None = None
    """Files of the merged model; absent with merge.keep false."""

    edge_bytes: Count | None = None
    """Files of the edge model."""

    ratio: Annotated[float, Field(ge=0, le=LARGEST)] | None = None
    """Size of the edge model divided by the size of the base."""

    trained_quantized_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the base's weights, by their bytes before quantization, that QLoRA held in NF4; absent with LoRA."""

    edge_quantized_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the edge model's weights, by their bytes before quantization, that is in 8 bits."""


class ArtifactStatus(Artifact):
    """One artifact of the run, in the store."""

    stage: Stage
    """The stage that wrote it."""


class PublicationStatus(Model):
    """Outcome of the gates."""

    published: bool
    """Whether the pointer names this version."""

    version: Annotated[str, Field(max_length=64)]
    """Digest of the version."""

    pointer: Uri | None = None
    """URI of latest.json, which edge devices follow."""

    pinned: bool = False
    """Whether the version is the one in spec.publish.pin rather than the spec's own."""

    refusals: tuple[Text, ...] = ()
    """One sentence for each failed gate, with the figure and the limit."""


class Condition(Model):
    """A Kubernetes condition."""

    type: Annotated[str, Field(max_length=316)]
    """Ready, Reconciling, Stalled, or a stage's: Prepared, Trained, Merged, Quantized, Evaluated, Published. CleanedUp
    while the artifacts of a deleted object are removed."""

    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""

    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """CamelCase reason."""

    message: Text = ""
    """What it means and what to do."""

    last_transition_time: Timestamp
    """When the status last changed (RFC 3339)."""

    observed_generation: Count = 0
    """Generation of the spec that this condition describes."""


class HistoryEntry(Model):
    """One finished run."""

    generation: Count
    """Generation of the spec."""

    outcome: Annotated[str, Field(max_length=128)]
    """Phase at the end and, unless this spec's own version was published, the reason."""

    version: Annotated[str, Field(max_length=64)] = ""
    """Digest of the version that was published, refused or pinned; empty if the run ended before publish."""

    started_at: Timestamp | None = None
    """When the run started (RFC 3339)."""

    finished_at: Timestamp | None = None
    """When the run ended (RFC 3339)."""

    scores: Scores | None = None
    """Scores of the run; absent if a version was pinned, which has scores of its own."""

    sizes: Sizes | None = None
    """Sizes of the run, in bytes; absent if a version was pinned."""


class Display(Model):
    """Formatted figures for the columns of `kubectl get`."""

    progress: Annotated[str, Field(max_length=MAX_DISPLAY)] = ""
    """Progress of the running stage or, if no stage is running, the reason."""

    base: Annotated[str, Field(max_length=16)] = ""
    """Score of the base model."""

    tuned: Annotated[str, Field(max_length=16)] = ""
    """Score of the tuned model."""

    edge: Annotated[str, Field(max_length=16)] = ""
    """Score of the edge model."""

    adapter_size: Annotated[str, Field(max_length=16)] = ""
    """Size of the adapter."""

    edge_size: Annotated[str, Field(max_length=16)] = ""
    """Size of the edge model."""

    version: Annotated[str, Field(max_length=16)] = ""
    """First digits of the version that was published, refused or pinned."""


class LoraFineTuneStatus(Model):
    """The observed state. Written by the operator only; a view of the facts in the store."""

    observed_generation: Annotated[int, Field(ge=-1, le=LARGEST)] = -1
    """Generation of the spec that this status describes; -1 before the first pass."""

    phase: Phase = Phase.PENDING
    """State of the object in one word, for users. Programs read conditions."""

    conditions: Annotated[
        tuple[Condition, ...], Field(max_length=16, json_schema_extra={LIST_TYPE: "map", LIST_MAP: ["type"]})
    ] = ()
    """Ready, Reconciling and Stalled as kstatus reads them, and one for each stage."""

    started_at: Timestamp | None = None
    """When the current run started (RFC 3339)."""

    finished_at: Timestamp | None = None
    """When the current run ended (RFC 3339)."""

    last_handled_retry: Annotated[str, Field(max_length=MAX_RETRY_TOKEN)] = ""
    """Value of the annotation edgetune.dev/retry-requested that was handled last."""

    clean_up_job: Annotated[str, Field(max_length=64)] = ""
    """UID of the Job that removes the artifacts of the deleted object."""

    store: Annotated[str, Field(max_length=2048)] = ""
    """Where the run's outputs are: the profile's bucket and prefix, and the namespace."""

    resolved: Resolved | None = None
    """Content digests of base and data. The spec can pin them as revision; an hf:// base is pinned by its commit."""

    progress: ProgressStatus | None = None
    """Progress of the running stage."""

    stages: Annotated[
        tuple[StageStatus, ...], Field(max_length=16, json_schema_extra={LIST_TYPE: "map", LIST_MAP: ["name"]})
    ] = ()
    """One row for each stage."""

    sizes: Sizes | None = None
    """Sizes of the run's inputs and outputs, in bytes."""

    scores: Scores | None = None
    """Scores of all four models on the same evaluation rows."""

    edge: EdgeMeasurement | None = None
    """Speed and memory of the edge model on the machine that evaluated it; absent without spec.evaluation.edge."""

    artifacts: Annotated[
        tuple[ArtifactStatus, ...], Field(max_length=32, json_schema_extra={LIST_TYPE: "map", LIST_MAP: ["name"]})
    ] = ()
    """Artifacts of the run, in the store."""

    publication: PublicationStatus | None = None
    """Outcome of the gates."""

    warnings: Annotated[tuple[Text, ...], Field(max_length=MAX_WARNINGS)] = ()
    """Warnings of the stages."""

    history: Annotated[tuple[HistoryEntry, ...], Field(max_length=MAX_HISTORY)] = ()
    """The latest finished runs, newest first."""

    display: Display | None = None
    """Formatted figures for the columns of `kubectl get`."""

    @model_validator(mode="after")
    def _check_list_maps(self) -> Self:
        for field, key in (("conditions", "type"), ("stages", "name"), ("artifacts", "name")):
            found = [getattr(item, key) for item in getattr(self, field)]
            if len(set(found)) < len(found):
                raise ValueError(f"{field}: two items have the same {key}: {', '.join(found)}")
        return self
