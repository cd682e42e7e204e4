"""publish: check the gates, write the version with its provenance, cards and report, move the pointer if all pass.

With a pin: only move the pointer to the pinned version.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from edgetune_contract.pipeline import is_edge, stages_of
from edgetune_contract.request import Artifact, FileEntry, Manifest, Request, Resolved, Scores
from edgetune_contract.results.candidates import Candidate
from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_contract.stages import Stage
from edgetune_contract.values.times import timestamp
from edgetune_contract.version import EdgeModel, Provenance, StageOrigin, StoredArtifact, VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.evaluation.gates import Figures, FurtherEdge, judge, judge_candidates
from edgetune_jobs.publishing.model_card.card import with_cards
from edgetune_jobs.reporting.published import with_report
from edgetune_jobs.stage import Publisher, StageContext, StageOutput
from edgetune_jobs.store.manifests import find_artifact


def run(context: StageContext) -> StageOutput:
    """Publish or refuse the run's model, or move the pointer to the pinned version."""
    request, publisher = context.request, context.publisher
    if publisher is None:
        raise InvalidInput("publish needs a publisher")
    if request.is_pin:
        context.progress.say("moving the pointer to the pinned version")
        return StageOutput(publication=publisher.pin(request.parameters.publish.pin))
    if request.resolved is None:
        raise InvalidInput("the request for the stage publish lacks `resolved`: copy it from the result of prepare")
    manifests = _read_manifests(request, publisher)
    refusals = _judge(request.parameters, manifests)
    context.progress.say("refused by its gates" if refusals else "publishing")
    version = _version(request, request.resolved, manifests, refusals)
    document, files = with_cards(version, is_signed=bool(request.sign) and version.published)
    context.progress.say("writing the report")
    reported = with_report(document, manifests, publisher.read_file)
    publication = publisher.publish(reported.document, {**files, **reported.files})
    context.track(reported.run)
    return StageOutput(publication=publication, warnings=reported.warnings)


def edge_artifacts(manifest: Manifest) -> tuple[Artifact, ...]:
    """The edge models among a quantize stage's artifacts: one for each format, in the order of the spec.

    Raises:
        InvalidInput: there is none.
    """
    edges = tuple(artifact for artifact in manifest.result.artifacts if is_edge(artifact.name))
    if not edges:
        raise InvalidInput("the manifest of the stage quantize has no edge model: delete it and run the stage again")
    return edges


def _read_manifests(request: Request, publisher: Publisher) -> dict[Stage, Manifest]:
    done = (stage for stage in stages_of(request.parameters) if stage is not Stage.PUBLISH)
    return {stage: publisher.read_stage(stage) for stage in done}


def _judge(parameters: Parameters, manifests: Mapping[Stage, Manifest]) -> tuple[str, ...]:
    """One sentence for each gate that fails; with formats Auto, for each candidate if none is the edge model."""
    evaluated = manifests[Stage.EVALUATE].result
    if parameters.quantization.is_auto:
        return judge_candidates(parameters.evaluation, evaluated.candidates, evaluated.scores or Scores())
    return judge(parameters.evaluation, _figures(manifests))


def _figures(manifests: Mapping[Stage, Manifest]) -> Figures:
    evaluated = manifests[Stage.EVALUATE].result
    scores = evaluated.scores or Scores()
    edge, *further = edge_artifacts(manifests[Stage.QUANTIZE])
    formats = {edge_format.artifact: edge_format for edge_format in EdgeFormat}
    return Figures(
        scores,
        edge.bytes,
        evaluated.edge,
        tuple(FurtherEdge(formats[each.name], scores.details[each.name].score, each.bytes) for each in further),
    )


def _version(
    request: Request, resolved: Resolved, manifests: Mapping[Stage, Manifest], refusals: tuple[str, ...]
) -> VersionDocument:
    quantize, candidates = manifests[Stage.QUANTIZE], manifests[Stage.EVALUATE].result.candidates
    edge, *further_edges = (
        EdgeModel(artifact=StoredArtifact.of(artifact), files=_edge_files(quantize, artifact))
        for artifact in _published(edge_artifacts(quantize), candidates)
    )
    return VersionDocument(
        model=request.name,
        namespace=request.namespace,
        version=request.digest,
        created_at=timestamp(datetime.now(UTC)),
        published=not refusals,
        refusals=refusals,
        edge=edge,
        further_edges=tuple(further_edges),
        artifacts=tuple(
            StoredArtifact.of(each) for manifest in manifests.values() for each in manifest.result.artifacts
        ),
        scores=manifests[Stage.EVALUATE].result.scores or Scores(),
        measurement=manifests[Stage.EVALUATE].result.edge,
        candidates=candidates or None,
        provenance=Provenance(
            resolved=resolved,
            parameters=request.parameters.model_dump(mode="json", exclude_none=True),
            stages={stage: _origin(manifest) for stage, manifest in manifests.items()},
        ),
    )


def _published(edges: Sequence[Artifact], candidates: Sequence[Candidate]) -> tuple[Artifact, ...]:
    """The edge models of the version: in all formats of the spec, or the chosen candidate.

    Without a chosen one, the version is refused; it names the smallest candidate, which came closest to fitting.
    """
    if not candidates:
        return tuple(edges)
    chosen = {each.format.artifact for each in candidates if each.chosen}
    found = tuple(each for each in edges if each.name in chosen)
    return found or (min(edges, key=lambda each: each.bytes),)


def _edge_files(quantize: Manifest, edge: Artifact) -> tuple[FileEntry, ...]:
    """Files of the edge model, with paths relative to its key."""
    found = find_artifact(quantize, edge.name)
    return found.files if found else ()


def _origin(manifest: Manifest) -> StageOrigin:
    return StageOrigin(
        digest=manifest.result.digest,
        created_at=manifest.created_at,
        image=manifest.image,
        libraries=manifest.versions,
        metrics=manifest.result.metrics,
        facts=manifest.result.facts,
    )
