"""Scores of answers: keyword recall, exact match, comparison of models."""

import json

import pytest

from edgetune_contract.evaluation import Match
from edgetune_contract.request import ModelScores, Scores
from edgetune_jobs.evaluation.scoring import (
    ReferenceAnswer,
    compare,
    exact_match,
    keyword_recall,
    score_model,
)

TWO_FAULTS = [
    ReferenceAnswer("Fault: oil loss. Action: refill oil.", ("oil loss", "refill oil")),
    ReferenceAnswer("Fault: belt slip.", ("belt slip",)),
]


def test_keywords_count_at_any_position_and_in_any_case() -> None:
    answers = ["REFILL OIL now, it is Oil Loss", "no idea"]

    assert keyword_recall(answers, TWO_FAULTS) == pytest.approx(2 / 3)


def test_each_keyword_has_equal_weight_not_each_row() -> None:
    assert keyword_recall(["oil loss", "belt slip"], TWO_FAULTS) == pytest.approx(2 / 3)


def test_keywords_in_other_scripts_are_compared_without_case() -> None:
    assert keyword_recall(["STRASSE ΣΊΣΥΦΟΣ"], [ReferenceAnswer("", ("straße", "σίσυφος"))]) == 1


def test_keywords_inside_longer_words_and_numbers_count_only_as_substrings() -> None:
    references = [ReferenceAnswer("", ("no",)), ReferenceAnswer("", ("12",)), ReferenceAnswer("", ("oil",))]
    answers = ["it is normal", "120 bar", "the oil"]

    assert keyword_recall(answers, references) == pytest.approx(1 / 3)
    assert keyword_recall(answers, references, Match.SUBSTRING) == 1


def test_composition_of_accents_changes_no_score() -> None:
    composed, decomposed = "\u00c9tat: d\u00e9grad\u00e9", "E\u0301tat: de\u0301grade\u0301"
    for answer, response in ((composed, decomposed), (decomposed, composed)):
        references = [ReferenceAnswer(response, (response.split()[1], response))]

        assert exact_match([answer], references) == 1
        assert keyword_recall([answer], references) == 1
        assert keyword_recall([answer], references, Match.SUBSTRING) == 1


def test_rows_without_keywords_have_no_keyword_recall() -> None:
    assert keyword_recall(["anything"], [ReferenceAnswer("x")]) is None


def test_exact_match_ignores_white_space_at_the_ends_only() -> None:
    references = [ReferenceAnswer("a b"), ReferenceAnswer("a b"), ReferenceAnswer(" a b\n")]

    assert exact_match(["  a b\n", "a  b", "a b"], references) == pytest.approx(2 / 3)


def test_a_missing_answer_is_an_error_not_a_lower_score() -> None:
    with pytest.raises(ValueError, match="longer"):
        exact_match(["only one"], TWO_FAULTS)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (ModelScores(keyword_recall=0.0, exact_match=0.5), 0.0),
        (ModelScores(exact_match=0.5), 0.5),
        (ModelScores(loss=1.0), None),
    ],
)
def test_a_models_score_is_its_keyword_recall_else_its_exact_match(scores: ModelScores, expected: float | None) -> None:
    assert scores.score == expected


def test_texts_have_a_loss_and_nothing_else() -> None:
    assert score_model(None, TWO_FAULTS, 0.7) == ModelScores(loss=0.7)


def test_improvement_and_drop_are_differences_of_shares() -> None:
    base, tuned, edge = (ModelScores(keyword_recall=recall) for recall in (0.05, 0.9, 0.88))

    scores = compare({"base": base, "tuned": tuned, "edge": edge}, examples=96)

    assert scores.improvement == pytest.approx(0.85)
    assert scores.drop == pytest.approx(0.02)
    assert (scores.base, scores.tuned, scores.merged, scores.edge) == (0.05, 0.9, None, 0.88)
    assert list(scores.details) == ["base", "tuned", "edge"]
    assert scores.examples == 96


def test_edge_models_in_further_formats_have_scores_but_are_not_compared() -> None:
    base, tuned, edge, further = (ModelScores(keyword_recall=recall) for recall in (0.1, 0.9, 0.8, 0.2))

    scores = compare({"base": base, "tuned": tuned, "edge": edge, "edge-gguf-q8_0": further}, examples=9)

    assert scores.edge == 0.8
    assert scores.drop == pytest.approx(0.1)
    assert scores.details["edge-gguf-q8_0"].keyword_recall == 0.2


def test_scores_of_an_older_release_are_converted_to_todays_units() -> None:
    written = {"base": 0.05, "tuned": 0.9, "edge": 0.88, "improvement": 85.0, "drop": 0.02, "examples": 96}
    details = {"edge": {"keywordAccuracy": 0.88, "exactMatch": 0.5}}

    scores = Scores.model_validate_json(json.dumps({**written, "details": details}))

    assert scores.improvement == pytest.approx(0.85)
    assert scores.details["edge"] == ModelScores(keyword_recall=0.88, exact_match=0.5)


def test_models_without_a_score_have_no_improvement() -> None:
    text = ModelScores(loss=1.0)

    scores = compare(dict.fromkeys(("base", "tuned", "merged", "edge"), text), examples=3)

    assert (scores.improvement, scores.drop, scores.merged) == (None, None, None)
    assert scores.details["merged"].loss == 1.0
