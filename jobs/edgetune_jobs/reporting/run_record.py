"""What a store has about the run that made a version, read so that files of other releases are no obstacle.

Whatever is missing or cannot be read becomes a sentence in `gaps`, and the report is made without it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from edgetune_contract.pipeline import ADAPTER, BASE, EVALUATION, PREPARED
from edgetune_contract.request import Manifest
from edgetune_contract.stages import Stage
from edgetune_contract.version import StageOrigin, StoredArtifact, VersionDocument
from edgetune_jobs.evaluation.row_answers import ANSWERS
from edgetune_jobs.training.step_log import METRICS

DATA_REPORT = "report.json"

ReadFile = Callable[[str], bytes | None]
"""A small file of the store by its key; None if there is none."""


class _Kept(BaseModel):
    """A line or a document that a stage has kept: fields that are not known are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True, allow_inf_nan=False)


AnyKept = TypeVar("AnyKept", bound=_Kept)


class TrainingStep(_Kept):
    """One line of metrics.jsonl; a figure that was not finite is None."""

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    validation_loss: float | None = None
    attempt: int = 1
    time: float | None = None
    """Seconds since 1970; None in lines of older releases."""

    tokens_per_second: float | None = None


class LengthBucket(_Kept):
    """The examples of more than `above` and at most `up_to` tokens. Older releases wrote no `above`."""

    above: int | None = None
    up_to: int
    examples: int

    @property
    def lower(self) -> int:
        """`above`; where it is missing, bounds doubled from 32."""
        if self.above is not None:
            return self.above
        return self.up_to // 2 if self.up_to > 32 else 0


class PreparedRows(_Kept):
    """Rows of one kind in report.json."""

    examples: int
    tokens: int
    truncated: int = 0
    lengths: dict[str, int] = {}
    histogram: tuple[LengthBucket, ...] = ()


class DataReport(_Kept):
    """The part of report.json that is about the data."""

    max_length: int | None = None
    train: PreparedRows
    eval: PreparedRows


class RowAnswers(_Kept):
    """One line of answers.jsonl: the answers of all models to one evaluation row."""

    model_config = ConfigDict(extra="allow")

    row: int
    prompt: str = ""
    reference: str = ""
    scores: dict[str, float] = {}
    """0 to 1 by model; empty in files of older releases."""

    @property
    def answers(self) -> dict[str, str]:
        """By model, in the order in which they were scored."""
        return {name: str(text) for name, text in (self.model_extra or {}).items()}


@dataclass(frozen=True)
class StageUse:
    """What the attempts of one stage took, as the status of the object counts it."""

    stage: Stage
    attempts: int = 0
    preemptions: int = 0
    lost_steps: int | None = None
    gpu_seconds: float | None = None


@dataclass(frozen=True)
class GpuTime:
    """GPU time of a run, or of all runs of an object, in seconds; see the status."""

    seconds: float
    failed: float
    repeated: float
    loading: float
    waiting: float
    estimated: float
    cost: Mapping[str, float]
    """Price by currency."""

    @property
    def useful(self) -> float:
        """What is left without failed attempts, repeated steps and loading."""
        return max(0.0, self.seconds - self.failed - self.repeated - self.loading)


@dataclass(frozen=True)
class Usage:
    """What only the status of the object knows: attempts and GPU time."""

    stages: Sequence[StageUse] = ()
    run: GpuTime | None = None
    total: GpuTime | None = None


@dataclass(frozen=True)
class RunRecord:
    """Everything that the report shows of one version."""

    document: VersionDocument
    manifests: Mapping[Stage, Manifest]
    """Of the stages that are in the store."""

    steps: Sequence[TrainingStep] = ()
    data: DataReport | None = None
    answers: Sequence[RowAnswers] = ()
    """In the order of the rows."""

    usage: Usage | None = None
    """None if the report is made from the store alone."""

    gaps: Sequence[str] = ()
    """One sentence for each thing that the store lacks."""

    @property
    def short_version(self) -> str:
        """The first digits of the version."""
        return self.document.version[:12]

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The spec's parameters, as plain JSON."""
        return self.document.provenance.parameters

    @property
    def origins(self) -> Mapping[Stage, StageOrigin]:
        """Provenance of the stages in the order in which they ran."""
        return origins_of(self.document)

    def metrics(self, stage: Stage) -> Mapping[str, float]:
        """Figures of a stage; empty if the document has none."""
        origin = self.document.provenance.stages.get(stage)
        return origin.metrics if origin else {}

    def facts(self, stage: Stage) -> Mapping[str, str]:
        """What a stage chose and why; empty if the document has nothing."""
        origin = self.document.provenance.stages.get(stage)
        return origin.facts if origin else {}


def origins_of(document: VersionDocument) -> Mapping[Stage, StageOrigin]:
    """Provenance of the stages in the order in which they ran; documents in a store have them sorted by name."""
    stages = document.provenance.stages
    return {stage: stages[stage] for stage in Stage if stage in stages}


@dataclass
class _Reader:
    """Reads the files of a run; what it cannot read goes to `gaps`."""

    document: VersionDocument
    read: ReadFile
    gaps: list[str] = field(default_factory=list)

    def bytes_of(self, artifact_name: str, path: str, content: str) -> bytes | None:
        """A file of an artifact; `content` is the part of the report that needs it."""
        artifact = self._artifact(artifact_name)
        data = self.read(f"{artifact.key}/{path}") if artifact else None
        if data is None:
            self.gaps.append(f"{content}: the store has no {path} of the artifact {artifact_name}")
        return data

    def lines(self, artifact_name: str, path: str, model: type[AnyKept], content: str) -> Sequence[AnyKept]:
        """The lines of a file with one JSON object each; empty if one cannot be read."""
        data = self.bytes_of(artifact_name, path, content) or b""
        lines = [line for line in data.split(b"\n") if line.strip()]
        parsed = [self.parsed(model, line, f"{content}: {path}, line {number}") for number, line in enumerate(lines, 1)]
        return [] if None in parsed else [line for line in parsed if line is not None]

    def parsed(self, model: type[AnyKept], data: bytes, place: str) -> AnyKept | None:
        """JSON as a model; None if it is not valid. `place` says what is missing then, and which file is wrong."""
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            self.gaps.append(f"{place} cannot be read: {' '.join((*map(str, first['loc']), first['msg']))}")
            return None

    def _artifact(self, name: str) -> StoredArtifact | None:
        return next((each for each in self.document.artifacts if each.name == name), None)


def read_run(
    document: VersionDocument, manifests: Mapping[Stage, Manifest], read: ReadFile, usage: Usage | None = None
) -> RunRecord:
    """What the store has about the run that made a version.

    Args:
        document: of the version.
        manifests: of the run's stages, as far as the store has them.
        read: reads small files by their key; it may raise what a store raises.
        usage: from the status of the object.
    """
    reader = _Reader(document, read)
    steps = _read_steps(reader)
    data = _read_data(reader)
    answers = _read_answers(reader)
    missing = [stage for stage in origins_of(document) if stage not in manifests]
    if missing:
        reader.gaps.append(f"duration and warnings of {', '.join(missing)}: their manifests are not in the store")
    if answers and not any(row.scores for row in answers):
        reader.gaps.append("scores of single rows: the release that evaluated this version did not keep them")
    if answers and BASE in document.scores.details and not any(BASE in row.answers for row in answers):
        reader.gaps.append("answers of the base model: its scores are those of an earlier run, which kept no answers")
    return RunRecord(document, manifests, steps, data, answers, usage, tuple(reader.gaps))


def _read_steps(reader: _Reader) -> Sequence[TrainingStep]:
    return reader.lines(ADAPTER, METRICS, TrainingStep, "loss, learning rate and gradient norm by step")


def _read_answers(reader: _Reader) -> Sequence[RowAnswers]:
    return reader.lines(EVALUATION, ANSWERS, RowAnswers, "answers side by side")


def _read_data(reader: _Reader) -> DataReport | None:
    content = "lengths of the rows"
    data = reader.bytes_of(PREPARED, DATA_REPORT, content)
    return None if data is None else reader.parsed(DataReport, data, f"{content}: {DATA_REPORT}")
