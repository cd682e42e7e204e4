"""Ranks on two nodes, both in one process: a rank that hangs or is killed is the fault of its node alone."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from edgetune_jobs.errors import NodeLost, StageError, TransientError
from edgetune_jobs.runtime.nodes.group import NodeGroup
from edgetune_jobs.runtime.nodes.hub import Timing
from edgetune_jobs.runtime.nodes.place import NodePlace
from edgetune_jobs.runtime.nodes.words import NodeIdentity
from edgetune_jobs.runtime.ranks.plan import RankPlan
from edgetune_jobs.runtime.ranks.supervisor import Patience, StoreOfRanks, train_in_ranks
from edgetune_jobs.stage import StageOutput
from support import rank_faults
from support.server_process import free_port
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters

COMMAND = (sys.executable, str(Path(rank_faults.__file__)))
HANGS = "did not answer the others: it ended without a result; rank"


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> list[StageOutput | StageError]:
    """What each of two nodes with one rank reports."""
    monkeypatch.setenv(rank_faults.FAULT, fault)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    patience = Patience(for_answers=5 if "hang" in fault else 120, for_end=2, for_saving=2)
    port = free_port()
    identity = NodeIdentity(digest="a" * 64, nodes=2, ranks=1, version="1", image="")

    def train_on(node: int) -> StageOutput | StageError:
        group = NodeGroup(NodePlace(node, 2, "127.0.0.1", port), identity, Timing(patience=120, farewell=30))
        context = stage_context(Stage.TRAIN, tiny_parameters(), folder / str(node), {})
        try:
            output = train_in_ranks(context, RankPlan(1, (), node, 2), StoreOfRanks("a" * 64), COMMAND, patience, group)
        except StageError as error:
            ended = group.end(error, was_stopped=False)
            assert isinstance(ended, StageError)
            return ended
        if node == 0:
            group.commit()
        else:
            group.wait_for_commit()
        return output

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(train_on, range(2)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "1 hang",
            f"node 1 of 2 (rank 1) {HANGS} 1 had to be killed",
        ),
        (
            "0 hang",
            f"node 0 of 2 (rank 0) {HANGS} 0 had to be killed",
        ),
        ("1 kill", "rank 1 of 2 was killed (SIGKILL), probably because the container ran out of memory"),
    ],
)
def test_a_rank_that_fails_is_the_fault_of_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    found = run(tmp_path, monkeypatch, fault)

    node = int(fault[0])
    assert isinstance(found[node], TransientError), found
    assert str(found[node]).startswith(message)
    assert isinstance(found[1 - node], NodeLost), found
    name = f"node {node} of 2 (rank {node})"
    assert str(found[1 - node]).startswith(message if message.startswith(name) else f"{name} failed: {message}")


def test_the_ranks_of_all_nodes_exchange_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = run(tmp_path, monkeypatch, "")

    assert isinstance(first, StageOutput), first
    assert isinstance(other, StageOutput), other
    assert first.facts == {"ranks": "2 on 2 nodes, on CPUs, gradients by Gloo"}
