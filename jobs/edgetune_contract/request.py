"""Requests and results: the input of one stage, and its report when it ends."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from edgetune_contract.access.allowed_sources import AllowedSource
from edgetune_contract.access.s3_service import S3Service
from edgetune_contract.pipeline import BASE, EDGE, TUNED
from edgetune_contract.results.candidates import MAX_CANDIDATES, Candidate, PossibleFormat
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.results.shortening import cut, shortened, with_folders, without_repeated_folders
from edgetune_contract.schema import LARGEST, Count, Difference, Model, Name, Share, Uri
from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_contract.stages import Stage
from edgetune_contract.values.text import Shown

CONTRACT_VERSION: Literal[1] = 1
# The kubelet keeps the last 4,096 bytes of a termination message, so longer JSON would arrive truncated.
MAX_RESULT_BYTES = 4096
COUNTED_METRICS = ("baseBytes", "resumedFromStep")
"""Metrics that the status has as whole numbers."""

SHARE_METRICS = ("quantizedShare",)
"""Metrics that the status has as shares."""

MAX_REVISION = 256
"""Longest source revision, in characters."""

STORE_URI = r"^(s3://.+|file:///.+)$"
_MAX_FAILURE_MESSAGE_BYTES = 2048
_FIRST_NAME = "keywordAccuracy"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StoreLocation(S3Service):
    """Location of one namespace's artifacts."""

    uri: Annotated[str, Field(pattern=STORE_URI)]
    """s3://bucket/prefix/namespace, or file:///folder/namespace in a local run."""

    @property
    def display_uri(self) -> str:
        """URI for messages, with the endpoint if there is one: two services may have buckets of the same name."""
        return f"{self.uri} at {self.endpoint}" if self.endpoint else self.uri


class Resolved(Model):
    """Content digests of the base and the data that the spec names, as prepare found them."""

    base: Digest
    """SHA-256 of the base model's file list."""

    train: Digest
    """SHA-256 of the training data's content."""

    eval: Digest | None = None
    """SHA-256 of the evaluation data's content; absent if it is split off the training data."""

    possible: Annotated[tuple[PossibleFormat, ...], Field(max_length=MAX_CANDIDATES)] | None = None
    """With quantization.formats Auto: the formats that the base can be written in, largest first."""

    formats: Annotated[tuple[EdgeFormat, ...], Field(max_length=MAX_CANDIDATES)] | None = None
    """With quantization.formats Auto: those that quantize writes. They have all that gates.maxEdgeBytes does not
    exclude, and those that an earlier run with a larger limit has written too."""

    missing_runtimes: Annotated[tuple[str, ...], Field(min_length=1, max_length=4)] | None = None
    """Runtimes of the spec's formats that are not installed where prepare ran. evaluate then neither loads nor measures
    models in them, and runs again where they are."""

    @property
    def content(self) -> Self:
        """The digests alone."""
        return self.model_copy(update={"possible": None, "formats": None, "missing_runtimes": None})


def edge_formats(parameters: Parameters, resolved: Resolved | None) -> tuple[EdgeFormat, ...]:
    """The formats of the edge model: those of the spec, or with Auto those that prepare found; empty if unknown."""
    found = resolved.formats if resolved is not None else None
    return (found or ()) if parameters.quantization.is_auto else parameters.quantization.formats


class Request(Model):
    """Complete input of one stage, which looks up nothing in the cluster."""

    contract_version: Literal[1] = CONTRACT_VERSION
    namespace: str
    name: str
    """Name of the LoraFineTune, and of its model in the store."""

    stage: Stage
    digest: Digest
    """Digest of this stage's manifest. For prepare it is the digest of the request; the manifest has the digest of the
    content."""

    store: StoreLocation
    parameters: Parameters
    allowed_sources: tuple[AllowedSource, ...] | None = None
    """What the profile lets the namespace read besides its own folder; None for everything outside of the store."""

    resolved: Resolved | None = None
    """None for prepare, which computes it, and for a pin, which may run before prepare."""

    sign: Literal[True] | None = None
    """prepare and publish only: whether publish signs what it publishes, and is done only once that is signed."""

    source_revision: Annotated[str, Field(max_length=MAX_REVISION)] | None = None
    """train and publish only: the Git commit that the object comes from, for the provenance and the tracker. It is in
    no digest."""

    @property
    def formats(self) -> tuple[EdgeFormat, ...]:
        """The formats of the edge model; with Auto, those of the candidates that quantize writes."""
        return edge_formats(self.parameters, self.resolved)

    @property
    def is_pin(self) -> bool:
        """Whether the request only sets the pointer to the pinned version."""
        return self.stage is Stage.PUBLISH and bool(self.parameters.publish.pin)

    def encode(self) -> str:
        """JSON text, without fields that are None."""
        return self.model_dump_json(exclude_none=True)


class Artifact(Model):
    """One output of a stage: a folder in the store."""

    name: Name
    """Name of the artifact, such as adapter, merged or edge-bnb-int8."""

    uri: Uri
    """Folder in the store: s3://bucket/key, or file:///path in a local run."""

    bytes: Count
    """Total size of its files, in bytes."""

    sha256: Digest
    """SHA-256 of the canonical JSON of its file list, which has the path, size and SHA-256 of each file."""


class ModelScores(Model):
    """Scores of one model on the evaluation rows."""

    keyword_recall: Share | None = None
    """Share of all expected keywords that the answers contain, as spec.evaluation.match says, 0 to 1; absent
    if no row has an expected keyword."""

    exact_match: Share | None = None
    """Share of answers equal to the reference, apart from white space at the ends and composition of accents, 0 to 1;
    absent with the format Text, which has no prompts."""

    loss: float | None = None
    """Mean cross-entropy per completion token over all rows, in nats."""

    runtime: Name | None = None
    """What ran the model to score it, with its version; absent in the status of older releases."""

    @property
    def score(self) -> float | None:
        """The score of the model, 0 to 1: keyword recall if there is one, otherwise exact match. None for Text."""
        return self.exact_match if self.keyword_recall is None else self.keyword_recall

    @model_validator(mode="before")
    @classmethod
    def _read_first_name(cls, values: Any) -> Any:
        """Stores outlive releases: 0.1.0 wrote keywordRecall as keywordAccuracy."""
        if not isinstance(values, dict) or _FIRST_NAME not in values:
            return values
        return {("keywordRecall" if name == _FIRST_NAME else name): value for name, value in values.items()}


# Scores are quotients of small integers: smaller differences are rounding errors.
_ROUNDING_ERROR = 1e-9


class Scores(Model):
    """Scores of all four models on the same rows. A model's score is its keyword recall if evaluation rows have
    expected keywords, otherwise its exact match. With the format Text, models have a loss and no score."""

    base: Share | None = None
    """Score of the base model, 0 to 1."""

    tuned: Share | None = None
    """Score of the base with the adapter, where the base is held as in training, 0 to 1."""

    merged: Share | None = None
    """Score of the merged model, 0 to 1; absent if merge.keep is false."""

    edge: Share | None = None
    """Score of the edge model in the spec's first format, 0 to 1."""

    improvement: Difference | None = None
    """Tuned minus base, -1 to 1: the gain from training. 0.1 is ten percentage points."""

    drop: Difference | None = None
    """Tuned minus edge, -1 to 1: what merging and quantization cost."""

    examples: Count = 0
    """Number of evaluation rows that were scored."""

    details: dict[Name, ModelScores] = {}
    """Keyword recall, exact match and loss by model: base, tuned, merged, edge, and the artifact names of further edge
    formats."""

    @property
    def gained_nothing(self) -> bool:
        """Whether the tuned model is known not to be better than the base: by its score, or without one by its loss."""
        if self.improvement is not None:
            return self.improvement <= _ROUNDING_ERROR
        base, tuned = self.details.get(BASE), self.details.get(TUNED)
        if base is None or tuned is None or base.loss is None or tuned.loss is None:
            return False
        return tuned.loss >= base.loss

    @model_validator(mode="before")
    @classmethod
    def _derive_differences(cls, values: Any) -> Any:
        """Compute improvement and drop from the scores; given values are ignored. 0.1.0 wrote improvement in points."""
        if not isinstance(values, dict):
            return values
        tuned = values.get(TUNED)
        derived = {
            "improvement": _difference(tuned, values.get(BASE)),
            "drop": _difference(tuned, values.get(EDGE)),
        }
        return {**values, **derived}


def _difference(one: object, other: object) -> float | None:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one - other
    return None


class Publication(Model):
    """Outcome of a run: a version that the pointer names, or a refusal by the gates."""

    published: bool
    version: Digest
    refusals: tuple[str, ...] = ()
    """One sentence for each gate that did not hold, with the measured value and the limit."""

    pointer: Uri | None = None
    """URI of latest.json, if published."""

    pinned: bool = False
    """Whether the version is the one in spec.publish.pin, not the spec's own."""


class LiveVersion(Model):
    """The version that the model's pointer names."""

    version: Digest
    since: str
    """When the pointer was written (RFC 3339, UTC)."""

    scores: Scores | None = None
    """Scores in the pointer's document, without details."""


class Failure(Model):
    """Why a stage did not finish."""

    exit_code: int
    reason: Annotated[Name, Field(min_length=1)]
    message: Shown
    """What is wrong, where, and what to do."""

    step: Count | None = None
    """Optimizer step of the newest checkpoint in the store, if training was stopped."""

    @classmethod
    def brief(cls, exit_code: int, reason: str, message: str, step: int | None = None) -> Self:
        """A failure that fits in a termination message: a long message is cut in the middle."""
        return cls(exit_code=exit_code, reason=reason, message=cut(message, _MAX_FAILURE_MESSAGE_BYTES), step=step)


class Result(Model):
    """Result of a stage, written as the container's termination message and into its manifest."""

    stage: Stage
    digest: Digest
    cached: bool = False
    """Whether the manifest already existed, so that nothing was computed again."""

    seconds: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Duration of the stage in seconds, measured when its output was made."""

    artifacts: Annotated[tuple[Artifact, ...], BeforeValidator(with_folders)] = ()
    metrics: dict[Name, float] = {}
    """Figures by camelCase name that includes the unit, such as baseBytes, steps, loss, tokensPerSecond."""

    facts: dict[str, Shown] = {}
    """Short texts worth keeping, such as precision and library versions."""

    warnings: tuple[Shown, ...] = ()
    resolved: Resolved | None = None
    """prepare only."""

    done: "tuple[Result, ...]" = ()
    """prepare only: results of later stages that are already done in the store."""

    scores: Scores | None = None
    """evaluate only."""

    edge: EdgeMeasurement | None = None
    """evaluate only, with spec.evaluation.edge."""

    candidates: tuple[Candidate, ...] = ()
    """evaluate only, with quantization.formats Auto: in the order in which they were measured."""

    publication: Publication | None = None
    """publish only."""

    live: LiveVersion | None = None
    """prepare and publish only: what the pointer names at the stage's end; absent if there is no pointer."""

    failure: Failure | None = None
    """Set if the stage did not finish."""

    @model_validator(mode="before")
    @classmethod
    def _derive_trainable_share(cls, values: Any) -> Any:
        """Stores outlive releases: 0.1.0 wrote trainableShare in percent, beside the numbers that it follows from."""
        metrics = values.get("metrics") if isinstance(values, dict) else None
        if not isinstance(metrics, dict):
            return values
        trainable, total = metrics.get("trainableParameters"), metrics.get("totalParameters")
        if not isinstance(trainable, int | float) or not isinstance(total, int | float) or not 0 < total <= LARGEST:
            return values
        if abs(trainable) > LARGEST:
            return values  # the quotient of such integers is no float
        return {**values, "metrics": {**metrics, "trainableShare": trainable / total}}

    @model_validator(mode="after")
    def _check_what_the_status_takes(self) -> Self:
        named = [artifact.name for artifact in self.artifacts]
        if len(set(named)) < len(named):
            raise ValueError(f"an artifact is there twice: {', '.join(named)}")
        wrong = [name for name in COUNTED_METRICS if not 0 <= self.metrics.get(name, 0) <= LARGEST]
        if wrong:
            raise ValueError(f"must be from 0 to {LARGEST}: metrics.{', metrics.'.join(wrong)}")
        wrong = [name for name in SHARE_METRICS if not 0 <= self.metrics.get(name, 0) <= 1]
        if wrong:
            raise ValueError(f"must be from 0 to 1: metrics.{', metrics.'.join(wrong)}")
        return self

    def encode(self) -> bytes:
        """JSON in UTF-8 of at most MAX_RESULT_BYTES bytes, without parts that do not fit (see `shortened`).

        Raises:
            ValueError: it is still too long.
        """
        encoded = b""
        for result in shortened(self, SHARE_METRICS):
            encoded = result._to_json()
            if len(encoded) <= MAX_RESULT_BYTES:
                return encoded
        raise ValueError(f"the result of {self.stage} has {len(encoded)} bytes, more than {MAX_RESULT_BYTES}")

    def _to_json(self) -> bytes:
        encoded = self.model_dump_json(exclude_defaults=True, exclude_none=True).encode()
        return encoded if len(encoded) <= MAX_RESULT_BYTES else without_repeated_folders(encoded)


class FileEntry(Model):
    """One file of an artifact."""

    path: str
    """Path relative to the manifest's folder, separated by /."""

    bytes: int
    sha256: Digest
    key: Annotated[str, Field(pattern=r"^shared/[0-9a-f]{64}/[A-Za-z0-9_-][A-Za-z0-9._-]*$")] | None = None
    """Key in the store, for a file that several artifacts share; None for a file below the manifest's folder."""

    def key_below(self, folder: str) -> str:
        """Key in the store of a file of the manifest in `folder`."""
        return self.key or f"{folder}/{self.path}"


class Manifest(Model):
    """A finished stage: its result and its files. It is written last: the stage is done if and only if it exists."""

    result: Result
    files: tuple[FileEntry, ...] = ()
    created_at: str
    """Time of writing (RFC 3339, UTC)."""

    versions: dict[str, str] = {}
    """Versions of Python and of the libraries that made it."""

    image: str = ""
    """Reference of the container image that made it, as in the Pod; empty outside a container."""

    resolved: Resolved | None = None
    """Content digests of the base and the data; None for a pin."""

    parameters: dict[str, JsonValue] = {}
    """The spec's parameters in the run that made it, as plain JSON so that older manifests stay readable. A run that
    finds the manifest may have other values for parameters that the stage's digest does not cover."""
