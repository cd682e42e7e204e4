"""Token counts of examples: percentiles, buckets, shares."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edgetune_jobs.data.token_lengths import TokenLengths


def lengths_of(*lengths: int, longest: int = 10**9) -> TokenLengths:
    counted = TokenLengths()
    for length in lengths:
        counted.add(length, is_truncated=length > longest)
    return counted


def test_percentiles_are_by_nearest_rank() -> None:
    assert lengths_of(*range(1, 101)).percentiles(50, 90, 99) == {"p50": 50, "p90": 90, "p99": 99}
    assert lengths_of(7).percentiles(50, 99) == {"p50": 7, "p99": 7}
    assert lengths_of().percentiles(50) == {"p50": 0}


def test_the_share_of_truncated_examples() -> None:
    assert lengths_of(5, 10, 11, 20, longest=10).truncated_share == 0.5
    assert (lengths_of().truncated_share, lengths_of().longest) == (0.0, 0)


def test_buckets_are_narrower_for_short_rows_and_empty_ones_are_omitted() -> None:
    assert lengths_of(1, 64, 65, 66, 1000).histogram() == [
        {"above": 0, "upTo": 1, "examples": 1},
        {"above": 63, "upTo": 64, "examples": 1},
        {"above": 64, "upTo": 66, "examples": 2},
        {"above": 992, "upTo": 1008, "examples": 1},
    ]


@given(st.lists(st.integers(1, 100_000), min_size=1))
def test_every_example_is_in_exactly_one_bucket(lengths: list[int]) -> None:
    histogram = lengths_of(*lengths).histogram()
    assert sum(bucket["examples"] for bucket in histogram) == len(lengths)
    assert histogram[-1]["above"] < max(lengths) <= histogram[-1]["upTo"]
    assert all(each["upTo"] - each["above"] <= max(1, each["above"] // 32) for each in histogram)
    assert all(one["upTo"] <= next_one["above"] for one, next_one in pairwise(histogram))
