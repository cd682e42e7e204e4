"""Runs with formats Auto over a local folder: which formats are written, found again, and published."""

from pathlib import Path

import pytest

from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.publishing.versions import Versions
from edgetune_jobs.runtime.inputs import InputGatherer
from edgetune_jobs.store.access import StorageAccess
from edgetune_jobs.store.artifact_uses import Use, Uses
from support.local_runs import new_runs, parameters, store_of
from support.stage_context import RecordedProgress
from support.stage_runs import StageRuns
from support.versitygw import S3Server, credentials_folder

BOTH = (EdgeFormat.BITSANDBYTES_INT8, EdgeFormat.GGUF_Q8_0)
SMALL = BOTH[1:]


def limit(runs: StageRuns, most_bytes: str, **gates: float) -> None:
    """Set the spec's limit on bytes, and further gates."""
    evaluation = {"gates": {"maxEdgeBytes": most_bytes, **gates}}
    runs.parameters = parameters(runs.folder, quantization={"formats": "Auto"}, evaluation=evaluation)


@pytest.fixture
def runs(tmp_path: Path) -> StageRuns:
    return new_runs(tmp_path)


def look(runs: StageRuns) -> tuple[tuple[EdgeFormat, ...] | None, list[Stage]]:
    """Run prepare; the formats that quantize writes, and the stages whose output is in the store."""
    result = runs.run(Stage.PREPARE).result
    assert result.resolved is not None
    return result.resolved.formats, [each.stage for each in result.done]


def test_only_the_chosen_candidate_is_published(runs: StageRuns) -> None:
    limit(runs, "250")

    runs.run_up_to(Stage.PUBLISH)

    (version,) = Versions(store_of(runs), "sensor-faults").all()
    document = version.document
    assert document is not None
    assert document.published
    assert document.edge.artifact.name == "edge-gguf-q8_0"
    assert document.further_edges == ()
    assert [each.chosen for each in document.candidates or ()] == [False, True]
    assert {"edge-bnb-int8", "edge-gguf-q8_0"} < {each.name for each in document.artifacts}
    quantization = document.provenance.parameters["quantization"]
    assert isinstance(quantization, dict)
    assert quantization["formats"] == "Auto"


def test_a_version_without_a_chosen_candidate_is_refused_and_says_what_each_lacks(runs: StageRuns) -> None:
    limit(runs, "250", minScore=0.9)

    runs.run_up_to(Stage.PUBLISH)

    (version,) = Versions(store_of(runs), "sensor-faults").all()
    document = version.document
    assert document is not None
    assert not document.published
    assert document.refusals == (
        "minScore: BitsAndBytesInt8 scores 0.500; the limit is 0.900",
        "minScore: GGUF-Q8_0 scores 0.500; the limit is 0.900",
    )
    assert not (runs.folder / "store" / "team-a" / "models" / "sensor-faults" / "latest.json").exists()


def test_a_format_that_the_limit_excludes_is_not_written(runs: StageRuns) -> None:
    limit(runs, "150")

    runs.run_up_to(Stage.QUANTIZE)

    assert look(runs) == (SMALL, [Stage.TRAIN, Stage.MERGE, Stage.QUANTIZE])


def test_a_tighter_limit_uses_what_a_looser_one_has_written(runs: StageRuns) -> None:
    limit(runs, "250")
    runs.run_up_to(Stage.EVALUATE)

    limit(runs, "150")

    assert look(runs) == (BOTH, [Stage.TRAIN, Stage.MERGE, Stage.QUANTIZE])


def test_a_looser_limit_writes_more(runs: StageRuns) -> None:
    limit(runs, "150")
    runs.run_up_to(Stage.EVALUATE)

    limit(runs, "250")

    assert look(runs) == (BOTH, [Stage.TRAIN, Stage.MERGE])


def test_only_the_outputs_of_the_run_are_marked_as_used(runs: StageRuns) -> None:
    limit(runs, "150")
    runs.run(Stage.PREPARE)

    used = Uses(store_of(runs), "sensor-faults").own()

    later = [Use(stage, runs.request(stage).digest) for stage in list(Stage)[1:]]
    assert [use for use in used if use.stage is not Stage.PREPARE] == later  # quantize was looked for with BOTH too
    assert len(used) == len(Stage)


def test_what_an_earlier_spec_has_begun_to_write_stays_marked(runs: StageRuns) -> None:
    limit(runs, "250")
    runs.run(Stage.PREPARE)
    begun = Use(Stage.QUANTIZE, runs.request(Stage.QUANTIZE).digest)

    limit(runs, "150")
    runs.run(Stage.PREPARE)

    assert begun in Uses(store_of(runs), "sensor-faults").own()


def test_a_list_of_the_same_formats_has_the_same_output(runs: StageRuns) -> None:
    limit(runs, "250")
    runs.run_up_to(Stage.QUANTIZE)

    runs.parameters = parameters(runs.folder, quantization={"formats": [each.value for each in BOTH]})
    result = runs.run(Stage.PREPARE).result

    assert result.resolved is not None
    assert result.resolved.formats is None
    assert [each.stage for each in result.done] == [Stage.TRAIN, Stage.MERGE, Stage.QUANTIZE]


def test_a_spec_that_lists_formats_does_not_report_the_candidates_of_one_with_auto(runs: StageRuns) -> None:
    limit(runs, "250")
    assert "candidates" in runs.run(Stage.PREPARE).result.facts
    assert "candidates" in runs.run(Stage.PREPARE).result.facts

    runs.parameters = parameters(runs.folder, quantization={"formats": ["BitsAndBytesInt8"]})
    result = runs.run(Stage.PREPARE).result

    assert result.cached
    assert result.facts == {"inputs": ""}


def test_a_candidate_is_downloaded_when_it_is_measured_and_removed_afterwards(
    runs: StageRuns, s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    runs.store = s3_server.location(f"{s3_prefix}/team-a")
    runs.credentials_folder = credentials_folder(tmp_path, s3_server.admin)
    limit(runs, "250")
    runs.run_up_to(Stage.QUANTIZE)
    request, copies = runs.request(Stage.EVALUATE), tmp_path / "copies"
    assert request.resolved is not None
    access = StorageAccess(request.store, runs.credentials_folder)
    gatherer = InputGatherer(request, request.resolved, access, access.open_store(), RecordedProgress(), copies)

    inputs = gatherer.gather()

    assert {"edge-bnb-int8", "edge-gguf-q8_0", "adapter", "merged"} < set(inputs)
    assert "edge-gguf-q8_0" in inputs
    assert list(copies.glob("edge-*")) == []
    size = sum(each.stat().st_size for each in inputs["edge-gguf-q8_0"].rglob("*") if each.is_file())
    assert gatherer.sizes["edge-gguf-q8_0"] == size
    assert [each.name for each in copies.glob("edge-*")] == ["edge-gguf-q8_0"]
    gatherer.discard("edge-gguf-q8_0")
    assert list(copies.glob("edge-*")) == []
