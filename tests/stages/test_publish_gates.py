"""The stage publish checks the gates for all formats, on the results of evaluate and quantize."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from edgetune_contract.request import Artifact, Manifest, ModelScores, Publication, Request, Result, Scores
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.stage import StageContext
from edgetune_jobs.stages import publish
from support.published import ATTEMPT, RESOLVED
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters

DIGEST = "0" * 64


class Recorder:
    """A publisher that returns given results of stages and records the published document."""

    def __init__(self, results: dict[Stage, Result]) -> None:
        self._results = results

    def read_stage(self, stage: Stage) -> Manifest:
        result = self._results.get(stage, Result(stage=stage, digest=DIGEST))
        return Manifest(result=result, created_at="2026-11-24T08:00:00+00:00")

    def read_file(self, key: str) -> bytes | None:
        assert key.startswith("stages/")
        return None

    def publish(self, document: VersionDocument, files: Mapping[str, bytes]) -> Publication:
        self.document, self.files = document, files
        return Publication(published=document.published, version=document.version, refusals=document.refusals)

    def pin(self, pin: str) -> Publication:
        raise AssertionError(f"unexpected pin {pin}")


def artifact(name: str, size: int) -> Artifact:
    return Artifact(name=name, uri=f"s3://bucket/stages/quantize/{DIGEST}/{ATTEMPT}/{name}", bytes=size, sha256=DIGEST)


def evaluated(folder: Path, gguf_score: float) -> tuple[StageContext, Recorder]:
    """The context and publisher of a run in two formats; the second has this score."""
    details = {"edge": ModelScores(keyword_recall=0.9), "edge-gguf-q8_0": ModelScores(keyword_recall=gguf_score)}
    scores = Scores(base=0.1, tuned=0.9, edge=0.9, details=details)
    artifacts = (artifact("edge-bnb-int8", 10), artifact("edge-gguf-q8_0", 20))
    publisher = Recorder(
        {
            Stage.QUANTIZE: Result(stage=Stage.QUANTIZE, digest=DIGEST, artifacts=artifacts),
            Stage.EVALUATE: Result(stage=Stage.EVALUATE, digest=DIGEST, scores=scores),
        }
    )
    parameters = tiny_parameters(
        quantization={"formats": ["BitsAndBytesInt8", "GGUF-Q8_0"]}, evaluation={"gates": {"minScore": 0.8}}
    )
    context = stage_context(Stage.PUBLISH, parameters, folder, {})
    request: Request = context.request.model_copy(update={"resolved": RESOLVED})
    return dataclasses.replace(context, request=request, publisher=publisher), publisher


def test_a_run_whose_formats_all_pass_the_gates_is_published(tmp_path: Path) -> None:
    context, publisher = evaluated(tmp_path, gguf_score=0.8)

    publish.run(context)

    assert publisher.document.published
    assert [edge.artifact.name for edge in publisher.document.further_edges] == ["edge-gguf-q8_0"]


def test_a_run_with_one_format_that_fails_a_gate_is_refused(tmp_path: Path) -> None:
    context, publisher = evaluated(tmp_path, gguf_score=0.5)

    publish.run(context)

    assert not publisher.document.published
    assert publisher.document.refusals == ("minScore: the edge model in GGUF-Q8_0 scores 0.500; the limit is 0.800",)
