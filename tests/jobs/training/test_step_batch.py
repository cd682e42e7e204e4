"""How the examples of a step are split into forward passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_contract.training import Layout
from edgetune_jobs.training.step_batch import Example, StepBatch


def batch(*lengths: int) -> StepBatch:
    return StepBatch([{"input_ids": [1] * length, "labels": [-100] + [1] * (length - 1)} for length in lengths])


def lengths(examples: list[Example]) -> list[int]:
    return [len(example["input_ids"]) for example in examples]


@pytest.mark.parametrize(
    ("size", "expected"), [(8, [[1, 2, 3, 4, 5]]), (4, [[1, 2], [3, 4, 5]]), (2, [[1, 2], [3], [4, 5]])]
)
def test_forward_passes_have_about_the_same_number_of_examples(size: int, expected: list[list[int]]) -> None:
    passes = batch(1, 2, 3, 4, 5).split(Layout.PADDING_FREE, size, 100)

    assert [lengths(each) for each in passes] == expected


def test_packed_forward_passes_are_filled_with_the_longest_examples_first() -> None:
    passes = batch(2, 9, 5, 4, 6, 1).split(Layout.PACKED, 1, 10)

    assert [lengths(each) for each in passes] == [[9, 1], [6, 4], [5, 2]]


def test_a_packed_forward_pass_can_have_several_sequences() -> None:
    assert [lengths(each) for each in batch(9, 8, 3).split(Layout.PACKED, 2, 10)] == [[9, 8, 3]]


@given(numbers=st.lists(st.integers(1, 50), min_size=1, max_size=40), size=st.integers(1, 8))
def test_ranks_share_the_examples_evenly_and_each_example_is_in_one_share(numbers: list[int], size: int) -> None:
    whole = batch(*numbers)

    shares = [whole.share(rank, size).examples for rank in range(size)]

    found = [id(example) for share in shares for example in share]
    assert sorted(found) == sorted(map(id, whole.examples))
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    if len(numbers) % size == 0:
        tokens = [sum(lengths(list(share))) for share in shares]
        assert max(tokens) - min(tokens) <= max(numbers) - min(numbers)


def test_the_share_of_one_rank_is_everything_in_its_order() -> None:
    assert lengths(list(batch(3, 9, 1).share(0, 1).examples)) == [3, 9, 1]


@given(
    numbers=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    layout=st.sampled_from(Layout),
    size=st.integers(1, 48),
)
def test_every_example_is_in_exactly_one_forward_pass_within_the_bounds(
    numbers: list[int], layout: Layout, size: int
) -> None:
    passes = [lengths(each) for each in batch(*numbers).split(layout, size, 50)]

    assert sorted(length for each in passes for length in each) == sorted(numbers)
    assert all(each for each in passes)
    assert all(sum(each) <= 50 * size if layout is Layout.PACKED else len(each) <= size for each in passes)


def test_the_first_token_of_an_example_and_ignored_tokens_are_not_learned() -> None:
    examples = [{"input_ids": [1, 2, 3], "labels": [1, -100, 3]}, {"input_ids": [1], "labels": [1]}]

    assert StepBatch(examples).learned_tokens == 1
