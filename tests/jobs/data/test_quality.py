"""Splits by seed, and the warnings about sizes, duplicates, leaks and keywords."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_jobs.data.chat.messages import Message
from edgetune_jobs.data.data_set import DataSet
from edgetune_jobs.data.examples import Example, RowParser
from edgetune_jobs.data.quality import duplicate_rows, keyword_coverage, leaked_rows, size_advice, unused_columns
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
    return DataSet(FIELD, list(examples), Counter(fields))


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
def test_few_rows_give_the_advice_for_the_least_demanding_purpose(count: int, advice: list[str]) -> None:
    assert size_advice(count) == advice


@given(count=st.integers(2, 80), percent=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))
def test_every_row_is_on_one_side_and_the_shares_are_as_requested(count: int, percent: int, seed: int) -> None:
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


def test_rows_that_all_have_the_same_question_cannot_be_split() -> None:
    with pytest.raises(
        InvalidInput, match=r"spec\.dataset\.evalSplitPercent: all 3 training rows have the same question"
    ):
        hold_out([row("a", str(number)) for number in range(3)], 10, 42)


def test_duplicate_rows_are_counted_and_the_first_is_named() -> None:
    examples = [row("a", line=1), row("b", line=2), row("a", line=3), row("a", line=4), row("a", "other", line=5)]
    assert duplicate_rows(data_set(examples)) == [
        "spec.dataset.train: 2 rows duplicate an earlier row (first: rows.jsonl line 3 duplicates rows.jsonl line 1)"
    ]
    assert duplicate_rows(data_set(rows(5))) == []


def test_evaluation_rows_that_are_also_training_rows_are_counted() -> None:
    assert leaked_rows(rows(3), rows(4)) == [
        "3 of 4 evaluation rows also occur in the training data (first: rows.jsonl line 1); "
        "scores on them measure memorization, not generalization"
    ]
    assert leaked_rows(rows(3), [row("new")]) == []


def test_keywords_that_the_own_response_does_not_contain_are_counted() -> None:
    parser = RowParser(dataset_spec())
    examples = [row("a", "Bearing wear", ["bearing WEAR"]), row("b", "x", ["y"], line=2), row("c", "x")]
    assert keyword_coverage(data_set(examples), examples, parser) == [
        "no expected keywords in 1 of 3 evaluation rows",
        "1 evaluation row expects a keyword that the row's own response does not contain (first: rows.jsonl line 2)",
    ]


def test_keywords_that_responses_have_only_inside_longer_words_give_a_warning_of_their_own() -> None:
    examples = [
        row("q", response="The state is normal.", keywords=["no"], line=1),
        row("q", response="De\u0301gradé: 12 bar", keywords=["dégrade\u0301", "12"], line=2),
        row("q", response="120 bar", keywords=["12", "bar"], line=3),
    ]

    assert keyword_coverage(data_set(examples), examples, RowParser(dataset_spec())) == [
        "2 evaluation rows expect a keyword that the row's own response contains only inside a longer word or number "
        "(first: rows.jsonl line 1); it counts only with spec.evaluation.match: Substring"
    ]


def test_rows_without_keywords_give_a_warning_only_if_another_field_probably_has_them() -> None:
    parser = RowParser(dataset_spec())
    assert keyword_coverage(data_set(rows(2), ["instruction", "response"]), rows(2), parser) == []
    assert keyword_coverage(data_set(rows(2), ["instruction", "keywords"]), rows(2), parser) == [
        "no evaluation row has expected keywords, so the score is the exact match; "
        "if the field 'keywords' contains them, set spec.dataset.fields.expectedKeyword: 'keywords'"
    ]


def test_unused_columns_of_all_rows_are_named_once_with_their_rows() -> None:
    spec = dataset_spec()
    train = DataSet(FIELD, fields=Counter({"instruction": 9, "response": 9, "input": 7, "id": 9}))
    evaluation = DataSet("spec.dataset.eval", fields=Counter({"instruction": 1, "id": 1, "expected_keyword": 1}))

    assert unused_columns([train, evaluation], RowParser(spec), spec) == [
        "2 columns are not used: 'input' (7 rows), 'id' (10 rows); "
        "a column is part of the prompt if spec.dataset.template has its name in braces"
    ]
    spec = dataset_spec(template="{instruction} {input} {id}")
    assert unused_columns([train, evaluation], RowParser(spec), spec) == []
    spec = dataset_spec(format="Text", template="Q: {instruction}")
    assert unused_columns([], RowParser(spec), spec) == ["spec.dataset.template is not used by the format Text"]
