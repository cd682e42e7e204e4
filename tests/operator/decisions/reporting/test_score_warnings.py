"""Warnings about what scores and gates do not say."""

from typing import Any

import pytest

from edgetune_contract.request import ModelScores, Scores
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.decisions.reporting.score_warnings import score_note, score_warnings
from support.builders import lora_fine_tune
from support.scenario import Scenario

GATED = {"minScore": 0.5}


def warnings(gates: dict[str, Any], scores: Scores | None = None, **sections: Any) -> tuple[str, ...]:
    builder = lora_fine_tune().with_spec("evaluation.gates", gates)
    for path, value in sections.items():
        builder = builder.with_spec(path.replace("__", "."), value)
    return score_warnings(parse_spec(builder.build()["spec"]), scores)


@pytest.mark.parametrize("gates", [{}, {"maxEdgeBytes": "8Gi"}])
def test_without_a_gate_on_the_score_there_is_a_warning(gates: dict[str, Any]) -> None:
    assert warnings(gates) == (
        "spec.evaluation.gates has no gate on the score (minScore, minImprovement, maxDrop), so a model is published "
        "whatever its score",
    )


@pytest.mark.parametrize("gates", [{"minScore": 0}, {"minImprovement": -1}, {"maxDrop": 0.1}])
def test_any_gate_on_the_score_suffices(gates: dict[str, Any]) -> None:
    assert warnings(gates) == ()


def test_texts_have_no_score_to_set_a_gate_on() -> None:
    assert warnings({}, dataset__format="Text") == (
        "with spec.dataset.format: Text models have no score, so a model is published however little it learned",
    )


def test_a_pinned_version_is_published_without_gates() -> None:
    assert warnings({}, publish__pin="0" * 12) == ()


@pytest.mark.parametrize(("base", "tuned"), [(0.4, 0.4), (0.4, 0.35), (1.0, 1.0), (0.0, 0.0)])
def test_a_training_without_gain_is_a_warning_with_both_scores(base: float, tuned: float) -> None:
    assert warnings(GATED, Scores(base=base, tuned=tuned, edge=tuned, examples=96)) == (
        f"training gained nothing: the tuned model scores {tuned:.3f} and the base model {base:.3f} on the same 96 "
        "evaluation rows",
    )


def test_a_training_with_any_gain_is_not_a_warning() -> None:
    assert warnings(GATED, Scores(base=0.4, tuned=0.41, edge=0.41, examples=96)) == ()


@pytest.mark.parametrize(("base", "tuned", "count"), [(2.0, 2.5, 1), (2.0, 2.0, 1), (2.0, 1.9, 0)])
def test_texts_gain_if_their_loss_falls(base: float, tuned: float, count: int) -> None:
    details = {"base": ModelScores(loss=base), "tuned": ModelScores(loss=tuned)}

    found = warnings(GATED, Scores(examples=96, details=details))

    assert len(found) == count
    assert all(text.startswith("training gained nothing: the loss of the tuned model is 2.") for text in found)


def test_the_status_has_the_warning_from_the_first_pass_on() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("evaluation.gates", {}))

    scenario.reconcile()

    assert "no gate on the score" in scenario.status.warnings[0]


def test_a_column_says_in_a_few_words_that_there_is_no_gate_or_no_gain() -> None:
    ungated = Scenario(lora_fine_tune().with_spec("evaluation.gates", {}))
    ungated.reconcile()
    gated = Scenario(lora_fine_tune().with_spec("evaluation.gates", {"minScore": 0.1}))
    gated.reconcile()

    assert [each.status.display.note for each in (ungated, gated)] == ["no gate", ""]  # type: ignore[union-attr]
    without, with_gate = (parse_spec(each.builder.build()["spec"]) for each in (ungated, gated))
    assert score_note(without, Scores(base=0.5, tuned=0.5)) == "no gate, gained nothing"
    assert score_note(with_gate, Scores(base=0.5, tuned=0.6)) == ""
