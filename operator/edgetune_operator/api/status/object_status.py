"""The whole status: phase, conditions, rows, artifacts, scores, what is live, and earlier runs."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from edgetune_contract.pipeline import PIPELINE
from edgetune_contract.request import Artifact, Resolved, Scores
from edgetune_contract.results.candidates import MAX_CANDIDATES, Candidate
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.schema import LARGEST, Count, Model, Uri
from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles.gpu_use import GpuStatus, GpuUse
from edgetune_operator.api.spec import MAX_RETRY_TOKEN, RetryToken
from edgetune_operator.api.status.stage_status import ProgressStatus, StageStatus, Text, Timestamp

LIST_MAP = "x-kubernetes-list-map-keys"
LIST_TYPE = "x-kubernetes-list-type"
MAX_DISPLAY = 64
MAX_HISTORY = 10
MAX_WARNINGS = 64
MAX_RETRIES = 10
SHORT_VERSION = 12  # digits of a version that are shown: the minimum that spec.publish.pin accepts


class Phase(StrEnum):
    """State of the object in one word, for users. Programs read conditions."""

    PENDING = "Pending"
    QUEUED = "Queued"
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
    """Share of the edge model's weights, by their bytes before quantization, that is quantized; absent with
    quantization.formats Auto, where the fact quantizedShares of quantize has that of each candidate."""


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


class LiveStatus(Model):
    """The version that edge devices get."""

    version: Annotated[str, Field(max_length=64)]
    """Digest of the version."""

    pointer: Uri
    """URI of latest.json, which names it."""

    since: Timestamp
    """When the pointer was moved to it (RFC 3339)."""

    scores: Scores | None = None
    """Its scores, without details; absent if its document has none."""


class Condition(Model):
    """A Kubernetes condition."""

    type: Annotated[str, Field(max_length=316)]
    """Ready, Reconciling, Stalled, Available, or a stage's: Prepared, Trained, Merged, Quantized, Evaluated, Published.
    Available is about status.live, whatever runs. CleanedUp while the artifacts of a deleted object are removed."""

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

    gpu: GpuUse | None = None
    """GPU time of the run; absent if it used no GPU."""


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
    """First digits of the live version."""

    processes: Annotated[str, Field(max_length=MAX_DISPLAY)] = ""
    """Number of processes of the training and of their nodes, such as 16 on 2 nodes; empty for one process."""

    note: Annotated[str, Field(max_length=MAX_DISPLAY)] = ""
    """What the scores do not say: that no gate is set on them, that training gained nothing. The warnings say more."""


_LIST_MAPS = (("conditions", "type"), ("stages", "name"), ("candidates", "format"), ("artifacts", "name"))


class LoraFineTuneStatus(Model):
    """The observed state. Written by the operator only; a view of the facts in the store."""

    observed_generation: Annotated[int, Field(ge=-1, le=LARGEST)] = -1
    """Generation of the spec that this status describes; -1 before the first pass."""

    phase: Phase = Phase.PENDING
    """State of the object in one word, for users. Programs read conditions."""

    conditions: Annotated[
        tuple[Condition, ...], Field(max_length=16, json_schema_extra={LIST_TYPE: "map", LIST_MAP: ["type"]})
    ] = ()
    """Ready, Reconciling and Stalled as kstatus reads them, Available, and one for each stage."""

    started_at: Timestamp | None = None
    """When the current run started (RFC 3339)."""

    finished_at: Timestamp | None = None
    """When the current run ended (RFC 3339)."""

    waiting_since: Timestamp | None = None
    """Since when the object waits for what may pass by itself, such as a late Secret, an image or a node (RFC 3339).
    Stalled becomes True five minutes later. Absent if it waits for nothing of this kind."""

    last_handled_retry: Annotated[str, Field(max_length=MAX_RETRY_TOKEN)] = ""
    """Retry token, from spec.retry or the annotation edgetune.dev/retry-requested, that was handled last."""

    handled_retries: Annotated[tuple[RetryToken, ...], Field(max_length=MAX_RETRIES)] = ()
    """The latest handled retry tokens, newest first. None of them is handled again."""

    pending_retries: Annotated[tuple[RetryToken, ...], Field(max_length=MAX_RETRIES)] = ()
    """Retry tokens that wait until the running stage has ended, or until the object can run: also if they were removed
    from the object since. Ready is not True before they are handled."""

    retryable_spec: Annotated[str, Field(max_length=64)] = ""
    """SHA-256 over the spec that the newest pass considered, without suspend and publish.pin: an edit of anything else
    retries stages that failed."""

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

    gpu: GpuStatus | None = None
    """GPU time of the object, which an edit of the spec does not reset; absent before the first attempt with a GPU."""

    sizes: Sizes | None = None
    """Sizes of the run's inputs and outputs, in bytes."""

    scores: Scores | None = None
    """Scores of all four models on the same evaluation rows."""

    edge: EdgeMeasurement | None = None
    """Speed and memory of the edge model on the machine that evaluated it; absent without spec.evaluation.edge."""

    candidates: Annotated[
        tuple[Candidate, ...],
        Field(max_length=MAX_CANDIDATES, json_schema_extra={LIST_TYPE: "map", LIST_MAP: ["format"]}),
    ] = ()
    """The formats among which the edge model was chosen, in the order in which they were measured; absent without
    spec.quantization.formats Auto."""

    artifacts: Annotated[
        tuple[ArtifactStatus, ...], Field(max_length=32, json_schema_extra={LIST_TYPE: "map", LIST_MAP: ["name"]})
    ] = ()
    """Artifacts of the run, in the store."""

    publication: PublicationStatus | None = None
    """Outcome of the gates."""

    live: LiveStatus | None = None
    """The version that latest.json names, as the newest stage that read the store found it: also while the next run
    trains, fails or is refused. Absent if nothing is published, or no stage has read the store yet."""

    warnings: Annotated[tuple[Text, ...], Field(max_length=MAX_WARNINGS)] = ()
    """Warnings of the stages."""

    history: Annotated[tuple[HistoryEntry, ...], Field(max_length=MAX_HISTORY)] = ()
    """The latest finished runs, newest first."""

    display: Display | None = None
    """Formatted figures for the columns of `kubectl get`."""

    @model_validator(mode="after")
    def _check_list_maps(self) -> Self:
        for field, key in _LIST_MAPS:
            found = [getattr(item, key) for item in getattr(self, field)]
            if len(set(found)) < len(found):
                raise ValueError(f"{field}: two items have the same {key}: {', '.join(found)}")
        return self
