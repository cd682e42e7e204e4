"""A rank that waits for others in vain: it ends in time, and names them."""

from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from edgetune_jobs.errors import PeerLost
from edgetune_jobs.runtime.ranks import communication
from edgetune_jobs.runtime.ranks.task import RankTask
from support.server_process import free_port
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters

POLICY = "; a NetworkPolicy must allow all TCP between the Pods of this Job, also on ports that Gloo and NCCL choose"


def task(folder: Path, rank: int, *, nodes: int, rendezvous: str) -> RankTask:
    """Of one of two ranks."""
    context = stage_context(Stage.TRAIN, tiny_parameters(), folder / "run", {})
    return RankTask(
        request=context.request,
        rank=rank,
        size=2,
        nodes=nodes,
        per_device=1,
        rendezvous=rendezvous,
        timeout_seconds=1,
        inputs={},
        output=context.output,
        scratch=context.scratch,
        shared=folder,
        deadline=None,
        train_digest="a" * 64,
        base_copy_uri=None,
        credentials_folder=None,
    )


def loss(task: RankTask) -> str:
    with pytest.raises(PeerLost) as raised:
        communication.connect(task)
    return str(raised.value)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_never_starts_is_named_by_the_others_of_its_machine(tmp_path: Path, rank: int) -> None:
    meeting = str(tmp_path / "rendezvous")

    found = loss(task(tmp_path, rank, nodes=1, rendezvous=meeting))

    assert found == f"rank {1 - rank} of 2 did not come within 1 s ({meeting})"


def test_a_rank_that_never_starts_is_named_by_rank_0_of_another_node(tmp_path: Path) -> None:
    meeting = f"tcp://127.0.0.1:{free_port()}"

    found = loss(task(tmp_path, 0, nodes=2, rendezvous=meeting))

    assert found == f"node 1 of 2 (rank 1) did not come within 1 s ({meeting}){POLICY}"


def test_rank_0_is_named_if_it_never_opens_its_store(tmp_path: Path) -> None:
    found = loss(task(tmp_path, 1, nodes=2, rendezvous=f"tcp://127.0.0.1:{free_port()}"))

    assert found.startswith(f"node 0 of 2 (rank 0) did not connect within 1 s{POLICY}: "), found


def test_a_rank_that_hangs_once_it_has_checked_in_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(communication, "_check_in", lambda *_: None)

    found = loss(task(tmp_path, 0, nodes=2, rendezvous=f"tcp://127.0.0.1:{free_port()}"))

    assert found.startswith(f"node 1 of 2 (rank 1) did not connect within 1 s{POLICY}: "), found
