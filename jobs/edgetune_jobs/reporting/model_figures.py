"""The models of a version side by side: size, scores, speed and memory of each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgetune_contract.pipeline import ADAPTER, BASE, EDGE, MERGED, SCORED_MODELS, TUNED
from edgetune_contract.request import ModelScores
from edgetune_contract.results.measurement import ModelSpeed
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument


@dataclass(frozen=True)
class ModelFigures:
    """One model of a version."""

    name: str
    """As in the scores: base, tuned, merged, edge, or the artifact of a further edge format."""

    artifact: str
    """Its artifact; of the tuned model that of the adapter. Empty for the base."""

    bytes: int | None
    scores: ModelScores | None
    speed: ModelSpeed | None

    @property
    def role(self) -> str:
        """Its colour: all edge models share one."""
        return self.name if self.name in (BASE, TUNED, MERGED) else EDGE

    @property
    def score(self) -> float | None:
        """Its score, 0 to 1."""
        return None if self.scores is None else self.scores.score

    @property
    def loss(self) -> float | None:
        """Its mean loss per token on the evaluation rows, in nats."""
        return None if self.scores is None else self.scores.loss

    @property
    def tokens_per_second(self) -> float | None:
        """Its generation speed; None if it was not measured."""
        return None if self.speed is None else self.speed.generation_tokens_per_second

    @property
    def peak_memory_bytes(self) -> int | None:
        """The peak memory of its process; None if it was not measured."""
        return None if self.speed is None else self.speed.peak_memory_bytes


def models_of(document: VersionDocument) -> tuple[ModelFigures, ...]:
    """The models of a version in the order in which they are made."""
    sizes, speeds = dict(_sizes(document)), _speeds(document)
    artifacts = {TUNED: ADAPTER, MERGED: MERGED, EDGE: document.edge.artifact.name}
    names = (*SCORED_MODELS, *(edge.artifact.name for edge in document.further_edges))
    return tuple(
        ModelFigures(
            name=name,
            artifact=artifacts.get(name, "" if name == BASE else name),
            bytes=sizes.get(name),
            scores=_scores(document, name),
            speed=speeds.get(name),
        )
        for name in names
        if name in sizes or name in speeds or _scores(document, name) is not None
    )


def _scores(document: VersionDocument, name: str) -> ModelScores | None:
    """Scores of a model. Documents without details have the score of the four models only."""
    details = document.scores.details.get(name)
    score = getattr(document.scores, name) if name in SCORED_MODELS else None
    return details or (None if score is None else ModelScores(exact_match=score))


def _sizes(document: VersionDocument) -> Iterator[tuple[str, int]]:
    for stage in (Stage.PREPARE, Stage.MERGE):
        origin = document.provenance.stages.get(stage)
        if origin is not None and "baseBytes" in origin.metrics:
            yield BASE, int(origin.metrics["baseBytes"])
            break
    names = {ADAPTER: TUNED, MERGED: MERGED}
    yield from ((names[each.name], each.bytes) for each in document.artifacts if each.name in names)
    yield EDGE, document.edge.artifact.bytes
    yield from ((edge.artifact.name, edge.artifact.bytes) for edge in document.further_edges)


def _speeds(document: VersionDocument) -> Mapping[str, ModelSpeed]:
    return {} if document.measurement is None else document.measurement.by_model
