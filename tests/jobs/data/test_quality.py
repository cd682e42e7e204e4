"""Splitting by seed, and the warnings about sizes, repeats, leaks and keywords."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_jobs.data.data_set import DataSet
from edgetune_jobs.data.examples import Example, Message, RowParser
from edgetune_jobs.data.quality import keyword_coverage, leaked_rows, repeated_rows, size_advice
from edgetune_jobs.data.readers.rows import Place, Unit
from edgetune_jobs.data.splits import hold_out
from edgetune_jobs.errors import InvalidInput
from support.data_rows import FIELD, dataset_spec


def row(question: str, response: str = "b", keywords: Sequence[str] = (), line: int = 1) -> Example:
    prompt = (Message("user", question),)
    return Example(Place("rows.jsonl", Unit.LINE, line), prompt, response, tuple(keywords))


def rows(count: int) -> list[Example]:
    return [row(f"question {number}", line=number + 1) for number in range(count)]


def data_set(examples: Sequence[Example], fields: Sequence[str] = ()) -> DataSet:
    return DataSet(FIELD, list(examples), dict.fromkeys(fields))


@pytest.mark.parametrize(
    ("count", "advice"),
    [
        (1, ["1 training example: style adaptation usually needs 500 to 1,000"]),
        (212, ["212 training examples: style adaptation usually needs 500 to 1,000"]),
        (500, ["500 training examples: domain adaptation usually needs 2,000 to 10,000"]),
        (1999, ["1,999 training examples: domain adaptation usually needs 2,000 to 10,000"]),
        (2000, ["2,000 training examples: a new task usually needs 10,000 to 50,000"]),
        (10_000, []),
    ],
)
def test_few_rows_bring_the_advice_for_the_next_purpose(count: int, advice: list[str]) -> None:
    assert size_advice(count) == advice


@given(count=st.integers(2, 80), percent=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))
def test_every_row_is_on_one_side_and_the_shares_are_as_asked(count: int, percent: int, seed: int) -> None:
    examples = rows(count)
    train, evaluation = hold_out(examples, percent, seed)
    assert len(evaluation) == min(max(1, round(count * percent / 100)), count - 1)
    assert sorted([*train, *evaluation], key=examples.index) == examples
    assert train == [example for example in examples if example in train]


def test_the_split_does_not_depend_on_the_order_of_rows() -> None:
    examples = rows(100)
    shuffled = random.Random(0).sample(examples, 100)
    first, second = hold_out(examples, 10, 42), hold_out(shuffled, 10, 42)
    assert first[1] == second[1]
    assert set(first[0]) == set(second[0])


def test_another_seed_gives_another_split_and_new_rows_move_few() -> None:
    held_out = set(hold_out(rows(1000), 10, 42)[1])
    assert held_out != set(hold_out(rows(1000), 10, 43)[1])
    assert len(held_out & set(hold_out(rows(1010), 10, 42)[1])) >= 95


def test_rows_with_the_same_question_stay_on_one_side() -> None:
    examples = [row(f"question {number // 3}", f"answer {number}") for number in range(60)]
    train, evaluation = hold_out(examples, 20, 1)
    assert leaked_rows(train, evaluation) == []
    assert len(evaluation) == 12


def test_rows_that_all_ask_the_same_cannot_be_split() -> None:
    with pytest.raises(
        InvalidInput, match=r"spec\.dataset\.evalSplitPercent: all 3 training rows ask the same question"
    ):
        hold_out([row("a", str(number)) for number in range(3)], 10, 42)


def test_repeated_rows_are_counted_with_the_first() -> None:
    examples = [row("a", line=1), row("b", line=2), row("a", line=3), row("a", line=4), row("a", "other", line=5)]
    assert repeated_rows(data_set(examples)) == [
        "spec.dataset.train: 2 rows repeat an earlier one (the first: rows.jsonl line 3 is rows.jsonl line 1 again)"
    ]
    assert repeated_rows(data_set(rows(5))) == []


def test_evaluation_rows_that_training_gives_away_are_counted() -> None:
    assert leaked_rows(rows(3), rows(4)) == [
        "3 of 4 evaluation rows also occur in the training data (the first: rows.jsonl line 1): "
        "scores on them show memory, not learning"
    ]
    assert leaked_rows(rows(3), [row("new")]) == []


def test_keywords_that_no_answer_can_hold_are_noticed() -> None:
    parser = RowParser(dataset_spec())
    examples = [row("a", "Bearing wear", ["bearing WEAR"]), row("b", "x", ["y"], line=2), row("c", "x")]
    assert keyword_coverage(data_set(examples), examples, parser) == [
        "1 of 3 evaluation rows name no expected keyword",
        "1 row expects a keyword that the row's own response does not hold (the first: rows.jsonl line 2)",
    ]


def test_rows_without_keywords_are_fine_unless_another_field_looks_like_them() -> None:
    parser = RowParser(dataset_spec())
    assert keyword_coverage(data_set(rows(2), ["instruction", "response"]), rows(2), parser) == []
    assert keyword_coverage(data_set(rows(2), ["instruction", "keywords"]), rows(2), parser) == [
        "no evaluation row names expected keywords, so the score is exact match; "
        "if 'keywords' holds them, set spec.dataset.fields.expectedKeyword: 'keywords'"
    ]
