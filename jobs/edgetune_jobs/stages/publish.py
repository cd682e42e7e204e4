"""publish: judge the gates, write the version with its provenance, and move the pointer if all gates hold."""

from collections.abc import Mapping
from typing import Any

from edgetune_contract.model import Model
from edgetune_contract.request import Artifact, FileEntry, Manifest, Publication, Request, Resolved, Scores
from edgetune_contract.spec import Gates, parse_bytes
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.stage import Publisher, StageContext, StageOutput
from edgetune_jobs.store import files_below

# Scores are quotients of small integers: differences below this are rounding.
_TOLERANCE = 1e-9
_NO_SCORE = "no evaluation row has an expected keyword or a reference answer; add some, or take the gate away"


def run(context: StageContext) -> StageOutput:
    """Publish the run's model, or refuse it."""
    publisher = context.publisher
    resolved = context.request.resolved
    if publisher is None or resolved is None:
        raise InvalidInput("publish needs a publisher, and a request with what prepare resolved")
    manifests = _read_manifests(context, publisher)
    scores = manifests[Stage.EVALUATE].result.scores or Scores()
    edge = edge_artifact(manifests[Stage.QUANTIZE])
    refusals = judge(context.request.parameters.evaluation.gates, scores, edge.bytes)
    publication = Publication(published=not refusals, version=context.request.digest, refusals=refusals)
    context.progress.say("refused by its gates" if refusals else "publishing")
    return StageOutput(
        publication=publisher.publish(_version(context.request, resolved, manifests, publication), publication)
    )


def judge(gates: Gates, scores: Scores, edge_bytes: int) -> tuple[str, ...]:
    """One sentence for each gate that does not hold, with the figure and the limit; empty when all hold.

    A gate on a score that does not exist does not hold.
    """
    refusals = (
        _judge_score(gates.min_score, scores),
        _judge_improvement(gates.min_improvement, scores),
        _judge_drop(gates.max_drop, scores),
        _judge_bytes(gates.max_edge_bytes, edge_bytes),
    )
    return tuple(refusal for refusal in refusals if refusal is not None)


def edge_artifact(manifest: Manifest) -> Artifact:
    """The edge model among a quantize stage's artifacts.

    Raises:
        InvalidInput: there is none.
    """
    for artifact in manifest.result.artifacts:
        if artifact.name.startswith("edge-"):
            return artifact
    raise InvalidInput("the manifest of quantize names no edge model: run the stage again")


def _judge_score(limit: float | None, scores: Scores) -> str | None:
    if limit is None:
        return None
    if scores.edge is None:
        return f"minScore: the edge model has no score: {_NO_SCORE}"
    if scores.edge >= limit - _TOLERANCE:
        return None
    digits = _digits(3, scores.edge, limit)
    return f"minScore: the edge model scores {scores.edge:.{digits}f}; the limit is {limit:.{digits}f}"


def _judge_improvement(limit: float | None, scores: Scores) -> str | None:
    if limit is None:
        return None
    if scores.tuned is None or scores.base is None:
        return f"minImprovement: the base and the tuned model have no scores: {_NO_SCORE}"
    points = 100 * (scores.tuned - scores.base)
    if points >= limit - _TOLERANCE:
        return None
    digits = _digits(1, points, limit)
    side = "above" if points >= 0 else "below"
    return (
        f"minImprovement: the tuned model scores {scores.tuned:.3f}, {abs(points):.{digits}f} points {side} "
        f"the base model's {scores.base:.3f}; the limit is {limit:.{digits}f} points"
    )


def _judge_drop(limit: float | None, scores: Scores) -> str | None:
    if limit is None:
        return None
    if scores.tuned is None or scores.edge is None:
        return f"maxDrop: the tuned and the edge model have no scores: {_NO_SCORE}"
    drop = scores.tuned - scores.edge
    if drop <= limit + _TOLERANCE:
        return None
    digits = _digits(3, drop, limit)
    return (
        f"maxDrop: the edge model scores {scores.edge:.3f}, {drop:.{digits}f} below the tuned model's "
        f"{scores.tuned:.3f}; the limit is {limit:.{digits}f}"
    )


def _judge_bytes(limit: str | None, edge_bytes: int) -> str | None:
    if limit is None or edge_bytes <= parse_bytes(limit):
        return None
    return f"maxEdgeBytes: the edge model has {edge_bytes:,} bytes; the limit is {limit}, {parse_bytes(limit):,} bytes"


def _digits(least: int, figure: float, limit: float) -> int:
    """Decimals that tell a figure from its limit: "0.020 is above 0.020" would explain nothing."""
    return next((digits for digits in range(least, 9) if f"{figure:.{digits}f}" != f"{limit:.{digits}f}"), 9)


def _read_manifests(context: StageContext, publisher: Publisher) -> dict[Stage, Manifest]:
    keep = context.request.parameters.merge.keep
    skipped = {Stage.PUBLISH} if keep else {Stage.PUBLISH, Stage.MERGE}
    return {stage: publisher.read_stage(stage) for stage in Stage if stage not in skipped}


def _version(
    request: Request, resolved: Resolved, manifests: Mapping[Stage, Manifest], publication: Publication
) -> dict[str, Any]:
    """The version's document: what it is, how good, how large, and all that it was made of."""
    scores = manifests[Stage.EVALUATE].result.scores or Scores()
    edge = edge_artifact(manifests[Stage.QUANTIZE])
    artifacts = [artifact for manifest in manifests.values() for artifact in manifest.result.artifacts]
    return {
        "model": request.name,
        "namespace": request.namespace,
        "published": publication.published,
        "refusals": list(publication.refusals),
        "edge": {
            "artifact": _dump(edge),
            "files": [_dump(entry) for entry in _edge_files(manifests[Stage.QUANTIZE], edge)],
        },
        "artifacts": [_dump(artifact) for artifact in artifacts],
        "scores": _dump(scores),
        "provenance": {
            "resolved": _dump(resolved),
            "parameters": _dump(request.parameters),
            "stages": {stage.value: _origin(manifest) for stage, manifest in manifests.items()},
        },
    }


def _edge_files(quantize: Manifest, edge: Artifact) -> list[FileEntry]:
    """Files of the edge model, with paths below its URI."""
    attempt = edge.uri.split("/")[-2]
    return list(files_below(quantize.files, f"{attempt}/{edge.name}"))


def _origin(manifest: Manifest) -> dict[str, Any]:
    return {
        "digest": manifest.result.digest,
        "createdAt": manifest.created_at,
        "metrics": manifest.result.metrics,
        "facts": manifest.result.facts,
        "libraries": manifest.versions,
    }


def _dump(model: Model) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude_none=True)
