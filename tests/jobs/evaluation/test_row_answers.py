"""Which rows' answers are kept, and in which order a reader sees them."""

import json
from pathlib import Path

from edgetune_jobs.evaluation import row_answers
from edgetune_jobs.evaluation.row_answers import FIRST_ROWS, WORST_ROWS, read_base_answers, worst_first


def test_rows_that_quantization_broke_come_first_then_those_that_no_model_answers() -> None:
    scores = {"base": [0.0, 0.0, 0.0, 1.0, 0.0], "tuned": [1.0, 1.0, 0.0, 1.0, 1.0], "edge": [1.0, 0.5, 0.0, 0.0, 1.0]}

    assert worst_first(scores) == [3, 1, 2, 0, 4]


def test_the_worst_edge_format_counts() -> None:
    scores = {"tuned": [1, 1], "edge": [1, 1], "edge-gguf-q8_0": [1, 0]}

    assert worst_first(scores) == [1, 0]


def test_without_an_edge_model_the_other_models_are_compared() -> None:
    assert worst_first({"tuned": [1, 0]}) == [1, 0]
    assert worst_first({}) == []


def test_the_first_and_the_worst_rows_are_kept_in_their_order(tmp_path: Path) -> None:
    rows = 200
    scores = {"tuned": [1.0] * rows, "edge": [0.0 if row >= 190 else 1.0 for row in range(rows)]}
    texts = [f"text {row} \u2028 of a row" for row in range(rows)]

    row_answers.write_answers(tmp_path, texts, texts, {"tuned": texts, "edge": texts}, scores)

    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").split("\n") if line]
    kept = [line["row"] for line in lines]
    assert kept == sorted(kept)
    assert {*range(FIRST_ROWS), *range(190, rows)} <= set(kept)
    assert len(kept) <= FIRST_ROWS + WORST_ROWS
    assert lines[-1] == {
        "row": 199,
        "prompt": texts[199],
        "reference": texts[199],
        "scores": {"tuned": 1.0, "edge": 0.0},
        "tuned": texts[199],
        "edge": texts[199],
    }


def test_texts_without_answers_have_no_lines(tmp_path: Path) -> None:
    row_answers.write_answers(tmp_path, ["", ""], ["a", "b"], {}, {})
    row_answers.write_row_scores(tmp_path, {})

    assert (tmp_path / "answers.jsonl").read_bytes() == (tmp_path / "row_scores.jsonl").read_bytes() == b""


def test_answers_of_the_base_are_read_again_if_they_are_of_as_many_rows(tmp_path: Path) -> None:
    answers = ["one", "two\nlines \u2028"]
    row_answers.write_base_answers(tmp_path, answers)

    assert read_base_answers(tmp_path, rows=2) == answers
    assert read_base_answers(tmp_path, rows=3) is None


def test_a_base_with_too_many_answers_keeps_none(tmp_path: Path) -> None:
    row_answers.write_base_answers(tmp_path, [""] * (row_answers.MOST_BASE_ANSWERS + 1))

    assert read_base_answers(tmp_path, rows=row_answers.MOST_BASE_ANSWERS + 1) is None
