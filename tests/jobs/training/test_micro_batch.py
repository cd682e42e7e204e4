"""Micro-batch sizes after an attempt runs out of GPU memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_contract.training import TrainingSpec
from edgetune_jobs.training.recipe import next_micro_batch_size, usable_micro_batch_size


@pytest.mark.parametrize(("batch", "size", "smaller"), [(16, 4, 2), (12, 3, 1), (12, 12, 6), (7, 7, 1), (16, 1, None)])
def test_the_next_size_is_the_largest_divisor_of_the_batch_that_is_at_most_half(
    batch: int, size: int, smaller: int | None
) -> None:
    assert next_micro_batch_size(batch, size) == smaller


@given(
    st.integers(1, 4096).flatmap(
        lambda n: st.tuples(st.just(n), st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
    )
)
def test_sizes_shrink_to_one_and_always_divide_the_batch(batch_and_size: tuple[int, int]) -> None:
    batch, size = batch_and_size
    while (smaller := next_micro_batch_size(batch, size)) is not None:
        assert smaller <= size / 2
        assert batch % smaller == 0
        size = smaller
    assert size == 1


@pytest.mark.parametrize(
    ("reduced", "expected"),
    [(None, 8), (4, 4), (16, 8), (3, 8)],
    ids=["none", "smaller", "larger than in the spec", "no longer a divisor of the batch"],
)
def test_the_reduced_size_of_an_earlier_attempt_is_used_if_the_spec_allows_it(
    reduced: int | None, expected: int
) -> None:
    assert usable_micro_batch_size(TrainingSpec(batch_size=16, micro_batch_size=8), reduced) == expected
