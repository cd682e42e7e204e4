"""The tables at the end of a run."""

import io
from typing import Any

import pytest

from edgetune_cli.output import SafeConsole
from edgetune_cli.status_tables import show_outcome
from edgetune_contract.stages import Stage
from edgetune_operator.api.status.object_status import LoraFineTuneStatus


@pytest.mark.parametrize("metrics", [{"trainRows": 30, "trainExamples": 60}, {"trainExamples": 30}])
def test_a_conversation_of_several_examples_is_counted_as_one_row(metrics: dict[str, float]) -> None:
    row = {"name": "prepare", "state": "Succeeded", "metrics": {**metrics, "evalExamples": 3}}
    status = LoraFineTuneStatus.model_validate({"stages": [row]})
    printed = io.StringIO()

    show_outcome(SafeConsole(file=printed, width=120), status, frozenset({Stage.PREPARE}))

    assert "30 training rows, 3 evaluation rows" in printed.getvalue()


def after_an_earlier_run(**prepare: Any) -> LoraFineTuneStatus:
    """The status of an object that was published, and whose prepare has now another state."""
    others = [{"name": stage, "state": "Succeeded"} for stage in Stage if stage not in (Stage.PREPARE, Stage.MERGE)]
    scores = {"examples": 96, "base": 0.0, "tuned": 1.0, "details": {"base": {"loss": 4.7}, "edge": {"loss": 0.01}}}
    artifact = {"stage": "train", "name": "adapter", "uri": "file:///adapter", "bytes": 23_100_000}
    return LoraFineTuneStatus.model_validate(
        {
            "stages": [{"name": "prepare", **prepare}, *others[:1], {"name": "merge", "state": "Skipped"}, *others[1:]],
            "scores": scores,
            "artifacts": [{**artifact, "sha256": "0" * 64}],
            "warnings": ["the rows are few", "training gained nothing"],
        }
    )


def shown(status: LoraFineTuneStatus, ran: frozenset[Stage]) -> str:
    printed = io.StringIO()
    show_outcome(SafeConsole(file=printed, width=120), status, ran)
    return printed.getvalue()


@pytest.mark.parametrize(
    ("prepare", "what"),
    [
        ({"state": "Failed", "reason": "InvalidInput", "warnings": ["the rows are few"]}, "failed: InvalidInput"),
        ({"state": "Running", "warnings": ["the rows are few"]}, "running"),
    ],
)
def test_a_run_that_fails_or_is_stopped_shows_nothing_of_an_earlier_one(prepare: dict[str, Any], what: str) -> None:
    printed = shown(after_an_earlier_run(**prepare), frozenset({Stage.PREPARE}))

    stages = {line.split()[0]: " ".join(line.split()[1:]) for line in printed.splitlines() if line.split()}
    assert stages["prepare"] == what
    assert [stages[stage] for stage in ("train", "quantize", "evaluate", "publish")] == ["pending"] * 4
    assert stages["merge"] == "skipped"
    assert [word for word in ("Scores", "gained", "23.1 MB", "already done") if word in printed] == []
    assert "Warning: the rows are few" in printed


def test_a_run_that_repeats_nothing_shows_the_scores_of_the_earlier_one() -> None:
    printed = shown(after_an_earlier_run(state="Succeeded"), frozenset({Stage.PREPARE}))

    assert [word for word in ("Scores", "Training gained", "23.1 MB", "already done") if word not in printed] == []
    assert "Warning: training gained nothing" in printed


def test_scores_without_figures_by_model_are_a_table_too() -> None:
    """The figures did not fit into the result of prepare, which found the evaluation in the store."""
    scores = {"base": 0.1, "tuned": 0.9, "edge": 0.875, "examples": 80}
    sizes = {"baseBytes": 270_000_000, "adapterBytes": 23_000_000, "edgeBytes": 148_000_000}
    status = LoraFineTuneStatus.model_validate({"scores": scores, "sizes": sizes})
    printed = io.StringIO()

    show_outcome(SafeConsole(file=printed, width=120), status, frozenset())

    lines = [line.split() for line in printed.getvalue().splitlines()]
    assert ["model", "size", "score"] in lines
    assert ["base", "270", "MB", "10.0%"] in lines
    assert ["tuned", "23.0", "MB", "90.0%"] in lines
    assert ["edge", "148", "MB", "87.5%"] in lines
