"""Tables of the report, and two versions compared."""

from dataclasses import replace

import pytest

from edgetune_contract.results.candidates import Candidate
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.reporting.comparison import compared_rows, comparison_tables
from edgetune_jobs.reporting.run_record import RunRecord
from edgetune_jobs.reporting.tables import candidate_table, gate_table, gpu_table, library_table, stage_table
from edgetune_jobs.reporting.training_charts import resumed_steps, training_charts
from support.reported_runs import RESUMED_AT


def test_every_gate_has_its_limit_and_its_result(run: RunRecord) -> None:
    table = gate_table(run.document)

    assert table is not None
    assert [(row[0], row[2], row[3], row[4]) for row in table.rows][:3] == [
        ("minImprovement", "0.990 above", "at least 0.5 above the base model", "passed"),
        ("minScore", "0.979", "at least 0.85", "passed"),
        ("maxDrop", "0.010 below", "at most 0.05 below the tuned model", "passed"),
    ]
    assert [row[0] for row in table.rows].count("minScore") == 2, "for each format"


def test_a_failed_gate_is_marked(run: RunRecord) -> None:
    scores = run.document.scores.model_copy(update={"edge": 0.5})

    table = gate_table(run.document.model_copy(update={"scores": scores}))

    assert table is not None
    assert {row[0] for row in table.rows if row[4] == "failed"} == {"minScore", "maxDrop"}


def test_gates_of_another_release_are_no_error_of_the_report(run: RunRecord) -> None:
    provenance = run.document.provenance.model_copy(update={"parameters": {"evaluation": {"gates": {"minWit": 1}}}})

    with pytest.raises(ValueError, match="fields of another release"):
        gate_table(run.document.model_copy(update={"provenance": provenance}))


def test_stages_have_their_attempts_if_the_status_is_known(run: RunRecord) -> None:
    train = next(row for row in stage_table(run).rows if row[0] == Stage.TRAIN)

    assert list(train) == [
        "train",
        "20 min 5 s",
        "NVIDIA L4",
        "876 MB",
        "2026-11-24T08:01:00Z",
        "2",
        "1",
        "12",
        "24 min 40 s",
    ]


def test_without_a_status_the_gpu_time_is_that_of_the_attempt_that_made_the_output(run: RunRecord) -> None:
    manifest = run.manifests[Stage.TRAIN]
    origin = run.document.provenance.stages[Stage.TRAIN]
    ranks = origin.model_copy(update={"metrics": {**origin.metrics, "worldSize": 4.0}})
    stages = {**run.document.provenance.stages, Stage.TRAIN: ranks}
    provenance = run.document.provenance.model_copy(update={"stages": stages})
    document = run.document.model_copy(update={"provenance": provenance})

    one, four = (stage_table(replace(run, usage=None, document=each)).rows for each in (run.document, document))

    assert manifest.result.seconds == 1204.8
    assert [row[-1] for row in one] == ["-", "20 min 5 s", "-", "-", "-"], "evaluate ran on a CPU"
    assert four[1][-1] == "1 h 20 min"


def test_gpu_time_is_split_into_its_parts(run: RunRecord) -> None:
    table = gpu_table(run)

    assert table is not None
    assert list(table.rows[1])[1:6] == ["39 min 50 s", "28 min 47 s", "4 min 52 s", "1 min 1 s", "5 min 10 s"]
    assert gpu_table(replace(run, usage=None)) is None


def test_the_formats_among_which_auto_chose_are_listed(run: RunRecord) -> None:
    candidates = (
        Candidate(format=EdgeFormat.GGUF_Q8_0, bytes=148_000_000, score=0.99, tokens_per_second=12.5, chosen=True),
        Candidate(
            format=EdgeFormat.COMPRESSED_TENSORS_W8A8, bytes=167_000_000, limits=("maxPeakMemory",), note="stopped"
        ),
    )

    table = candidate_table(run.document.model_copy(update={"candidates": candidates}))

    assert table is not None
    assert [tuple(row) for row in table.rows] == [
        ("GGUF-Q8_0", "chosen", "148 MB", "99.0%", "12.5 tokens/s", "-", "-"),
        ("CompressedTensorsW8A8", "", "167 MB", "-", "-", "-", "maxPeakMemory; stopped"),
    ]
    assert candidate_table(run.document) is None


def test_libraries_are_one_column_if_all_stages_have_the_same(run: RunRecord) -> None:
    table = library_table(run.document)

    assert table is not None
    assert list(table.head) == ["library", "version"]
    stages = dict(run.document.provenance.stages)
    stages[Stage.TRAIN] = stages[Stage.TRAIN].model_copy(update={"libraries": {"torch": "2.14.0"}})
    provenance = run.document.provenance.model_copy(update={"stages": stages})
    table = library_table(run.document.model_copy(update={"provenance": provenance}))
    assert table is not None
    assert len(table.head) == 6


def test_two_versions_are_compared_by_figures_parameters_and_rows(runs: tuple[RunRecord, RunRecord]) -> None:
    figures, differing = comparison_tables(*runs)

    by_title = {row[0]: tuple(row[1:]) for row in figures.rows}
    assert by_title["score of edge"] == ("97.9%", "91.7%", "+6.2 points, better")
    assert by_title["score of tuned"] == ("99.0%", "99.0%", "the same")
    assert by_title["loss of edge"] == ("0.012", "0.060", "-0.048, better")
    assert by_title["size of edge"] == ("167 MB", "167 MB", "the same")
    assert by_title["duration of the stage train"][0] == "20 min 5 s", "loading too, unlike the figure of the training"
    assert [tuple(row) for row in differing.rows] == [("lora.rank", "16", "8")]
    assert compared_rows(*runs) == (
        "Both versions kept the answers to 12 common rows: the edge model of this version scores higher on 3 of them "
        "and lower on 0."
    )


def test_a_resumed_training_is_marked_and_described(run: RunRecord) -> None:
    loss = next(training_charts(run))

    assert resumed_steps(run.steps) == {2: RESUMED_AT}
    assert "The training was resumed before step 101 (dotted)." in loss.caption
    assert "attempt 2" in loss.svg()
