"""Requests and results: what one stage is asked to do, and what it says when it ends."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator
from pydantic_core import to_json

from edgetune_contract.measurement import EdgeMeasurement
from edgetune_contract.model import Model
from edgetune_contract.pipeline import BASE, EDGE, TUNED
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage

CONTRACT_VERSION: Literal[1] = 1
# The kubelet keeps the last 4,096 bytes of a termination message: a longer JSON text would arrive broken.
MAX_RESULT_BYTES = 4096
_MAX_FAILURE_MESSAGE_BYTES = 2048
_FIRST_NAME = "keywordAccuracy"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ChecksumMode(StrEnum):
    """When the S3 client adds checksums of its own to requests."""

    WHEN_SUPPORTED = "WhenSupported"
    WHEN_REQUIRED = "WhenRequired"


class StoreLocation(Model):
    """Where artifacts live, for one namespace."""

    uri: Annotated[str, Field(pattern=r"^(s3://.+|file:///.+)$")]
    """s3://bucket/prefix/namespace, or file:///folder/namespace in a local run."""

    endpoint: str | None = None
    """URL of the S3 service; None is the client's default."""

    region: str | None = None
    """S3 region; None is the client's default."""

    path_style: bool = False
    """Address buckets by path instead of by host name."""

    checksums: ChecksumMode = ChecksumMode.WHEN_SUPPORTED
    """When the S3 client adds checksums of its own to requests."""

    @property
    def display_uri(self) -> str:
        """The store in one word, or with the service that has it: two services may have buckets of one name."""
        return f"{self.uri} at {self.endpoint}" if self.endpoint else self.uri


class Resolved(Model):
    """What the names in the spec stood for when prepare looked: content digests."""

    base: Digest
    """SHA-256 of the base model's file list."""

    train: Digest
    """SHA-256 of the training data's content."""

    eval: Digest | None = None
    """SHA-256 of the evaluation data's content; absent when it is split off the training data."""


class Request(Model):
    """All that one stage needs to know; nothing is left to look up in the cluster."""

    contract_version: Literal[1] = CONTRACT_VERSION
    namespace: str
    name: str
    """Name of the LoraFineTune: the model's name in the store."""

    stage: Stage
    digest: Digest
    """The digest that this stage's manifest will carry. For prepare it names the request; its manifest goes by
    content."""

    store: StoreLocation
    parameters: Parameters
    resolved: Resolved | None = None
    """None for prepare, which finds it out, and for a pin, which may come before it."""

    @property
    def is_pin(self) -> bool:
        """Whether it asks for no more than to point back to a pinned version."""
        return self.stage is Stage.PUBLISH and bool(self.parameters.publish.pin)

    def encode(self) -> str:
        """JSON text, without fields that are None."""
        return self.model_dump_json(exclude_none=True)


class Artifact(Model):
    """One thing that a stage made: a folder in the store."""

    name: str
    """adapter, merged, or edge- and the format."""

    uri: str
    """Folder in the store: s3://bucket/key, or file:///path in a local run."""

    bytes: int
    """Size of all files together, in bytes."""

    sha256: Digest
    """SHA-256 of the canonical JSON of its file list: path, bytes and SHA-256 of each."""


class ModelScores(Model):
    """How one model did on the evaluation rows."""

    keyword_recall: float | None = None
    """Expected keywords found in the answers over all expected keywords, case-insensitive, 0 to 1; absent when no row
    has an expected keyword."""

    exact_match: float | None = None
    """Share of answers equal to the reference after stripping white space, 0 to 1; absent without prompts (format
    Text)."""

    loss: float | None = None
    """Mean cross-entropy over the completion tokens of all rows, in nats."""

    @property
    def score(self) -> float | None:
        """The score of the model, 0 to 1: its keyword recall, else its exact match; None for the format Text."""
        return self.exact_match if self.keyword_recall is None else self.keyword_recall

    @model_validator(mode="before")
    @classmethod
    def _read_first_name(cls, values: Any) -> Any:
        """Stores outlive releases: 0.1.0 wrote keywordRecall under the name keywordAccuracy."""
        if not isinstance(values, dict) or _FIRST_NAME not in values:
            return values
        return {("keywordRecall" if name == _FIRST_NAME else name): value for name, value in values.items()}


class Scores(Model):
    """Scores of all four models on the same rows. A model's score is its keyword recall where evaluation rows have
    expected keywords, else its exact match; with the format Text, models have a loss and no score."""

    base: float | None = None
    """Score of the base model, 0 to 1."""

    tuned: float | None = None
    """Score of the base with the adapter, as training saw it, 0 to 1."""

    merged: float | None = None
    """Score of the merged model, 0 to 1; absent with merge.keep false."""

    edge: float | None = None
    """Score of the edge model in the first of the spec's formats, 0 to 1."""

    improvement: float | None = None
    """Tuned minus base, -1 to 1: what training gained. 0.1 is ten percentage points."""

    drop: float | None = None
    """Tuned minus edge, -1 to 1: what merging and INT8 cost."""

    examples: int = 0
    """Evaluation rows that were scored."""

    details: dict[str, ModelScores] = {}
    """By model: keyword recall, exact match and loss. Edge models in further formats have their artifacts' names."""

    @model_validator(mode="before")
    @classmethod
    def _derive_differences(cls, values: Any) -> Any:
        """improvement and drop follow from the scores: nobody can give others. 0.1.0 wrote improvement in points."""
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
    """The end of a run: a new version that the pointer names, or the gates' refusal."""

    published: bool
    version: Digest
    refusals: tuple[str, ...] = ()
    """One sentence a gate that did not hold, with the figure and the limit."""

    pointer: str | None = None
    """URI of latest.json, when published."""

    pinned: bool = False
    """Whether the version is the one that spec.publish.pin names, not the spec's own."""


class Failure(Model):
    """Why a stage did not finish."""

    exit_code: int
    reason: str
    message: str
    """What happened, where, and what to do."""

    step: int | None = None
    """Optimizer step of the newest checkpoint in the store, when training was stopped."""

    @classmethod
    def brief(cls, exit_code: int, reason: str, message: str, step: int | None = None) -> Self:
        """A failure as a termination message can carry it: a long message is cut in the middle."""
        return cls(exit_code=exit_code, reason=reason, message=_cut(message), step=step)


class Result(Model):
    """What a stage says when it ends: the container's termination message, and the head of its manifest."""

    stage: Stage
    digest: Digest
    cached: bool = False
    """The manifest was there already; nothing was done again."""

    seconds: float = 0.0
    """Time that the stage took when its work was done."""

    artifacts: tuple[Artifact, ...] = ()
    metrics: dict[str, float] = {}
    """Figures by camelCase name with its unit, such as baseBytes, steps, loss, tokensPerSecond."""

    facts: dict[str, str] = {}
    """Short texts worth keeping, such as precision and library versions."""

    warnings: tuple[str, ...] = ()
    resolved: Resolved | None = None
    """prepare only."""

    done: "tuple[Result, ...]" = ()
    """prepare only: results of later stages whose manifests are in the store already."""

    scores: Scores | None = None
    """evaluate only."""

    edge: EdgeMeasurement | None = None
    """evaluate only, with spec.evaluation.edge."""

    publication: Publication | None = None
    """publish only."""

    failure: Failure | None = None
    """Set when the stage did not finish."""

    def encode(self) -> bytes:
        """JSON in UTF-8 of at most MAX_RESULT_BYTES bytes.

        What does not fit is left out in this order: facts and warnings of later stages, results of later stages from
        the last on (each costs one short run that finds its manifest), facts, warnings from the last on (replaced by
        their number). The manifest holds all of it.

        Raises:
            ValueError: the rest is still too long.
        """
        encoded = b""
        for result in self._shorter_and_shorter():
            encoded = result._to_json()
            if len(encoded) <= MAX_RESULT_BYTES:
                return encoded
        raise ValueError(f"the result of {self.stage} has {len(encoded)} bytes, more than {MAX_RESULT_BYTES}")

    def _shorter_and_shorter(self) -> Iterator[Self]:
        yield self
        brief = tuple(result.model_copy(update={"facts": {}, "warnings": ()}) for result in self.done)
        for kept in range(len(brief), -1, -1):
            yield self.model_copy(update={"done": brief[:kept]})
        for kept in range(len(self.warnings), -1, -1):
            left_out = len(self.warnings) - kept
            note = (f"{left_out} more warnings are in the manifest",) if left_out else ()
            yield self.model_copy(update={"done": (), "facts": {}, "warnings": (*self.warnings[:kept], *note)})

    def _to_json(self) -> bytes:
        return self.model_dump_json(exclude_defaults=True, exclude_none=True).encode()


class FileEntry(Model):
    """One file of an artifact."""

    path: str
    """Path below the manifest's folder, with / between names."""

    bytes: int
    sha256: Digest


class Manifest(Model):
    """A finished stage: its result and the files that belong to it. Written last; it exists = the stage is done."""

    result: Result
    files: tuple[FileEntry, ...] = ()
    created_at: str
    """RFC 3339, UTC."""

    versions: dict[str, str] = {}
    """Versions of Python and the libraries that made it."""

    image: str = ""
    """Reference of the container image that made it, as the Pod named it; empty outside of a container."""

    resolved: Resolved | None = None
    """Content digests of base and data that it was made of; None for a pin."""

    parameters: dict[str, JsonValue] = {}
    """The spec's parameters of the run that made it; not their model, so that older manifests stay readable. What the
    stage's digest does not cover may be otherwise in a run that finds it done."""


def _cut(message: str) -> str:
    """The message as JSON can carry it, with its middle left out if it takes more than the limit there."""
    # A file name that is not UTF-8 comes as lone surrogates, which JSON has not.
    message = message.encode(errors="replace").decode()
    cut, kept = message, min(len(message), _MAX_FAILURE_MESSAGE_BYTES)
    while len(to_json(cut)) > _MAX_FAILURE_MESSAGE_BYTES:
        half = kept // 2
        cut = f"{message[:half]} … {message[len(message) - half :]}"
        kept = kept * 9 // 10
    return cut
