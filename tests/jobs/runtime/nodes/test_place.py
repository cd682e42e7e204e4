"""Which node a container is: what is refused, and in which words."""

import pytest

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.runtime.nodes.place import NodePlace

TWO = {"EDGETUNE_NODES": "2", "JOB_COMPLETION_INDEX": "1", "EDGETUNE_RENDEZVOUS": "train-0.train:29500"}


@pytest.mark.parametrize("environment", [{}, {"EDGETUNE_NODES": "1"}, {"JOB_COMPLETION_INDEX": "0"}])
def test_a_container_trains_alone_unless_there_are_several(environment: dict[str, str]) -> None:
    assert NodePlace.from_environment(environment) == NodePlace(0, 1)


@pytest.mark.parametrize(
    ("address", "host"),
    [("train-0.train:29500", "train-0.train"), ("[fd00::1]:29500", "fd00::1")],
    ids=["name", "IPv6"],
)
def test_a_node_knows_its_number_and_where_node_0_is(address: str, host: str) -> None:
    assert NodePlace.from_environment(TWO | {"EDGETUNE_RENDEZVOUS": address}) == NodePlace(1, 2, host, 29500)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"EDGETUNE_NODES": "two"}, "EDGETUNE_NODES: 'two' is not a number of nodes"),
        ({"EDGETUNE_NODES": "0"}, "EDGETUNE_NODES: '0' is not a number of nodes"),
        (
            {"JOB_COMPLETION_INDEX": "2"},
            "JOB_COMPLETION_INDEX: '2' is none of the 2 nodes; run them as an Indexed Job with 2 completions",
        ),
        ({"JOB_COMPLETION_INDEX": ""}, "JOB_COMPLETION_INDEX: '' is none of the 2 nodes"),
        (
            {"EDGETUNE_RENDEZVOUS": "train-0.train"},
            "EDGETUNE_RENDEZVOUS: 'train-0.train' is not the address of node 0; use <host>:<port>",
        ),
        ({"EDGETUNE_RENDEZVOUS": "train-0.train:0"}, "EDGETUNE_RENDEZVOUS: 'train-0.train:0' is not"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        NodePlace.from_environment(TWO | change)

    assert str(raised.value).startswith(problem)


@pytest.mark.parametrize(("ranks", "name"), [(1, "node 1 of 2 (rank 1)"), (4, "node 1 of 2 (ranks 4 to 7)")])
def test_a_node_is_named_with_its_ranks(ranks: int, name: str) -> None:
    assert NodePlace(0, 2).name_of(1, ranks) == name
