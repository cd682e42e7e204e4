"""The LoraFineTune object: spec and status. The CRD, the field reference and every check of a spec come from here."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from edgetune_contract.measurement import EdgeMeasurement
from edgetune_contract.model import Model
from edgetune_contract.pipeline import PIPELINE
from edgetune_contract.request import Artifact, Resolved, Scores
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage

LIST_MAP = "x-kubernetes-list-map-keys"
LIST_TYPE = "x-kubernetes-list-type"
MAX_DISPLAY = 64
MAX_HISTORY = 10
MAX_WARNINGS = 64
MAX_RETRY_TOKEN = 256
MAX_TEXT = 32_768
# As many digits of a version as spec.publish.pin takes at least.
SHORT_VERSION = 12

ProfileName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Timestamp = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]


class DeletionPolicy(StrEnum):
    """What happens to the artifacts when the object is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class LoraFineTuneSpec(Parameters):
    """What the user asks for."""

    profile: ProfileName = "default"
    """Profile of the platform team: images, resources, node selection, bucket, credentials, queue."""

    suspend: bool = False
    """Stop the running stage (training writes a checkpoint first) and keep all that is finished."""

    retry_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """How often one stage is tried again after an attempt that failed: 3 means four attempts. Preemptions do not count.
    A stage that runs keeps the limit that it started with."""

    active_deadline_seconds: Annotated[int, Field(ge=60, le=31_536_000)] = 86_400
    """Longest time of one stage, in seconds. A stage that runs keeps the limit that it started with."""

    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    """What happens to the artifacts when the object is deleted. Retain leaves all of them. Delete removes, before the
    object is gone, the versions and the pointer of this name and the outputs of its stages that no other object uses,
    also those that an earlier object of this name has left."""

    @property
    def parameters(self) -> Parameters:
        """The part of the spec that reaches the stages."""
        return Parameters.model_construct(**{name: getattr(self, name) for name in Parameters.model_fields})


class Phase(StrEnum):
    """Where the object is, in one word for people. Programs read conditions."""

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
    """The last attempts of a stage that ended; all earlier ones were counted as well."""

    created_at: Timestamp
    """When their Pods were created (RFC 3339)."""

    pods: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=64)]
    """Names of their Pods: as a rule one, since attempts follow each other."""


class StageStatus(Model):
    """One stage of the current run."""

    name: Stage
    """The stage."""

    state: StageState = StageState.PENDING
    """Pending, Running, Succeeded, Failed, or Skipped (merge, with merge.keep false)."""

    digest: Annotated[str, Field(max_length=64)] = ""
    """SHA-256 over all that can change the stage's output; empty until it is known."""

    job: Annotated[str, Field(max_length=253)] = ""
    """Name of the stage's Job."""

    attempts: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Attempts that were started, without those that a disruption ended."""

    preemptions: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Attempts that were stopped from outside and went on later."""

    resumed_from: Annotated[int, Field(ge=0)] | None = None
    """Optimizer step of the checkpoint that the newest attempt went on from; absent until an attempt goes on."""

    lost_steps: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps that were done again: of each attempt that went on, the last step that was seen before it, minus
    the step that it went on from."""

    gpu_seconds: Annotated[float, Field(ge=0, le=1e12)] | None = None
    """GPU time of the attempts that ended: seconds that their containers ran, times the GPUs that they had. One that a
    suspension or an edit of the spec stopped is among them."""

    counted: CountedAttempts | None = None
    """The last attempts that ended and were counted: by them, each attempt counts once."""

    started_at: Timestamp | None = None
    """When the stage started (RFC 3339)."""

    finished_at: Timestamp | None = None
    """When the stage ended (RFC 3339)."""

    seconds: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Time from start to end, in seconds."""

    cached: bool = False
    """The output was in the store already."""

    reason: Annotated[str, Field(max_length=128)] = ""
    """CamelCase reason for the state."""

    message: Text = ""
    """What happened and what to do, for people."""

    metrics: dict[Annotated[str, Field(max_length=64)], float] = {}
    """The stage's figures, such as steps, loss, tokensPerSecond, trainableParameters."""

    warnings: tuple[Text, ...] = ()
    """What the stage found worth a second look."""


class ProgressStatus(Model):
    """How far the running stage is."""

    stage: Stage
    """The running stage."""

    step: Annotated[int, Field(ge=0, le=1_000_000_000_000)]
    """Units done."""

    total_steps: Annotated[int, Field(ge=0, le=1_000_000_000_000)]
    """Units in all."""

    unit: Annotated[str, Field(max_length=32)] = "steps"
    """What is counted."""

    percent: Annotated[int, Field(ge=0, le=100)]
    """Share done, in percent."""

    loss: float | None = None
    """Training loss of the last steps, in nats per completion token."""

    tokens_per_second: float | None = None
    """Training tokens a second."""

    eta_seconds: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Expected time to the end of the stage, in seconds."""

    pod: Annotated[str, Field(max_length=253)] = ""
    """The attempt that says so, by the name of its Pod. It stays while a later attempt has not said anything."""

    resumed_from: Annotated[int, Field(ge=0, le=1_000_000_000_000)] = 0
    """Optimizer step of the checkpoint that this attempt went on from; 0 is none."""


class Sizes(Model):
    """Sizes of what the run read and made, in bytes."""

    base_bytes: Annotated[int, Field(ge=0)] | None = None
    """Files of the base model."""

    adapter_bytes: Annotated[int, Field(ge=0)] | None = None
    """Files of the adapter."""

    merged_bytes: Annotated[int, Field(ge=0)] | None = None
    """Files of the merged model; absent with merge.keep false."""

    edge_bytes: Annotated[int, Field(ge=0)] | None = None
    """Files of the edge model."""

    ratio: Annotated[float, Field(ge=0)] | None = None
    """Edge over base."""


class ArtifactStatus(Artifact):
    """One thing that the run made, in the store."""

    stage: Stage
    """The stage that made it."""


class PublicationStatus(Model):
    """Outcome of the gates."""

    published: bool
    """Whether the pointer names this version."""

    version: Annotated[str, Field(max_length=64)]
    """Digest of the version."""

    pointer: Annotated[str, Field(max_length=2048)] | None = None
    """URI of latest.json, which edge devices follow."""

    pinned: bool = False
    """Whether the version is the one that spec.publish.pin names, not the spec's own."""

    refusals: tuple[Text, ...] = ()
    """One sentence a gate that did not hold, with the figure and the limit."""


class Condition(Model):
    """A condition as Kubernetes knows it."""

    type: Annotated[str, Field(max_length=316)]
    """Ready, Reconciling, Stalled, or a stage's: Prepared, Trained, Merged, Quantized, Evaluated, Published. CleanedUp
    while the object is deleted with its artifacts."""

    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""

    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """CamelCase reason."""

    message: Text = ""
    """What it means and what to do, for people."""

    last_transition_time: Timestamp
    """When the status last changed (RFC 3339)."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """Generation of the spec that this condition speaks of."""


class HistoryEntry(Model):
    """One finished run."""

    generation: Annotated[int, Field(ge=0)]
    """Generation of the spec."""

    outcome: Annotated[str, Field(max_length=128)]
    """Phase at the end and, unless this spec's own version was published, the reason."""

    version: Annotated[str, Field(max_length=64)] = ""
    """Digest of the version that was published, refused or pinned; empty if the run did not get so far."""

    started_at: Timestamp | None = None
    """When the run started (RFC 3339)."""

    finished_at: Timestamp | None = None
    """When the run ended (RFC 3339)."""

    scores: Scores | None = None
    """Scores of the run; absent when a pin stood, whose version has scores of its own."""

    sizes: Sizes | None = None
    """Sizes of the run, in bytes; absent when a pin stood."""


class Display(Model):
    """Figures in a person's units, for the columns of `kubectl get`."""

    progress: Annotated[str, Field(max_length=MAX_DISPLAY)] = ""
    """Progress of the running stage or, where none runs, the reason."""

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
    """What became of it. Written by the operator only; a view of the facts in the store."""

    observed_generation: Annotated[int, Field(ge=-1)] = -1
    """Generation of the spec that this status speaks of; -1 before the first pass."""

    phase: Phase = Phase.PENDING
    """Where the object is, in one word for people. Programs read conditions."""

    conditions: Annotated[
        tuple[Condition, ...], Field(max_length=16, json_schema_extra={LIST_TYPE: "map", LIST_MAP: ["type"]})
    ] = ()
    """Ready, Reconciling and Stalled as kstatus reads them, and one a stage."""

    started_at: Timestamp | None = None
    """When the current run started (RFC 3339)."""

    finished_at: Timestamp | None = None
    """When the current run ended (RFC 3339)."""

    last_handled_retry: Annotated[str, Field(max_length=MAX_RETRY_TOKEN)] = ""
    """Value of the annotation edgetune.dev/retry-requested that was answered last."""

    store: Annotated[str, Field(max_length=2048)] = ""
    """Where the stages of the run have put what they made: the profile's bucket and prefix, and the namespace."""

    resolved: Resolved | None = None
    """Content digests of base and data, which the spec can pin as revision; an hf:// base is pinned by its commit."""

    progress: ProgressStatus | None = None
    """How far the running stage is."""

    stages: Annotated[
        tuple[StageStatus, ...], Field(max_length=16, json_schema_extra={LIST_TYPE: "map", LIST_MAP: ["name"]})
    ] = ()
    """One row a stage."""

    sizes: Sizes | None = None
    """Sizes of what the run read and made, in bytes."""

    scores: Scores | None = None
    """Scores of all four models on the same rows."""

    edge: EdgeMeasurement | None = None
    """Speed and memory of the edge model on the machine that evaluated it; absent without spec.evaluation.edge."""

    artifacts: Annotated[
        tuple[ArtifactStatus, ...], Field(max_length=32, json_schema_extra={LIST_TYPE: "map", LIST_MAP: ["name"]})
    ] = ()
    """What the run made, in the store."""

    publication: PublicationStatus | None = None
    """Outcome of the gates."""

    warnings: Annotated[tuple[Text, ...], Field(max_length=MAX_WARNINGS)] = ()
    """What the stages found worth a second look."""

    history: Annotated[tuple[HistoryEntry, ...], Field(max_length=MAX_HISTORY)] = ()
    """The last finished runs, newest first."""

    display: Display | None = None
    """Figures in a person's units, for the columns of `kubectl get`."""
