"""How many ranks a training has, and which GPU each of them sees."""

import pytest

from edgetune_contract.training import TrainingSpec
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.runtime.nodes.place import NodePlace
from edgetune_jobs.runtime.ranks import plan
from edgetune_jobs.runtime.ranks.plan import RankPlan, plan_ranks

ALONE = NodePlace()


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch) -> "pytest.MonkeyPatch":
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def see(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(plan, "count_visible_gpus", lambda: gpus)


@pytest.mark.parametrize(
    ("gpus", "given", "processes", "seen", "expected"),
    [
        ("Auto", 0, 0, 0, None),
        ("Auto", 1, 0, 1, None),
        ("Auto", 4, 0, 4, 4),
        (2, 2, 0, 2, 2),
        ("Auto", 0, 0, 8, 8),
        (2, 0, 0, 8, 2),
        (1, 0, 0, 8, 1),
        (4, 0, 0, 0, None),
        ("Auto", 0, 2, 0, 2),
        ("Auto", 1, 2, 1, 2),
    ],
    ids=[
        "on a CPU",
        "with the one GPU that the Job was given",
        "with all that the Job was given",
        "as asked for",
        "with all of this machine",
        "with some of this machine",
        "with one of this machine, in a process that sees no other",
        "on a CPU, whatever is asked for",
        "in two processes on a CPU",
        "in two processes on one GPU",
    ],
)
def test_a_training_runs(
    visible: pytest.MonkeyPatch, gpus: int | str, given: int, processes: int, seen: int, expected: int | None
) -> None:
    see(visible, seen)

    found = plan_ranks(TrainingSpec(gpus=gpus, batch_size=16), given, processes, ALONE)

    assert found == (None if expected is None else RankPlan(expected, [str(index) for index in range(seen)]))


def test_with_auto_this_machines_gpus_are_used_that_divide_the_batch(visible: pytest.MonkeyPatch) -> None:
    see(visible, 8)

    found = plan_ranks(TrainingSpec(batch_size=12), 0, 0, ALONE)

    assert found is not None
    assert found.size == 6


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        (
            TrainingSpec(batch_size=6),
            4,
            "spec.training.batchSize: 6 is not a multiple of the 4 processes that share each step; use 4 or 8",
        ),
        (
            TrainingSpec(batch_size=3),
            4,
            "spec.training.batchSize: 3 is not a multiple of the 4 processes that share each step; use 4",
        ),
        (
            TrainingSpec(batch_size=16, gpus=8),
            0,
            "spec.training.gpus is 8, but this machine shows 4 GPUs; use 4 or Auto, or set CUDA_VISIBLE_DEVICES",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(
    visible: pytest.MonkeyPatch, spec: TrainingSpec, given: int, message: str
) -> None:
    see(visible, 4)

    with pytest.raises(InvalidInput) as raised:
        plan_ranks(spec, given, 0, ALONE)

    assert str(raised.value) == message


def test_each_rank_sees_one_gpu_by_its_name_and_no_launchers_variables(visible: pytest.MonkeyPatch) -> None:
    see(visible, 2)
    visible.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    visible.setattr(plan, "usable_cpus", lambda: 9)
    found = plan_ranks(TrainingSpec(), 2, 0, ALONE)
    assert found is not None

    environments = [found.environment(rank, {"LOCAL_RANK": "3", "HOME": "/work"}) for rank in range(2)]

    assert environments == [
        {"HOME": "/work", "CUDA_VISIBLE_DEVICES": name, "OMP_NUM_THREADS": "4"} for name in ("GPU-a", "GPU-b")
    ]


@pytest.mark.parametrize(("threads", "expected"), [("8", "4"), ("3", "1"), ("1", "1"), ("6,2", "3")])
def test_ranks_share_the_threads_of_the_process(threads: str, expected: str) -> None:
    assert RankPlan(2).environment(0, {"OMP_NUM_THREADS": threads}) == {"OMP_NUM_THREADS": expected}


@pytest.mark.parametrize(("ranks", "gpus", "expected"), [(2, 2, 1), (2, 1, 2), (3, 2, 2), (2, 0, 2)])
def test_ranks_know_how_many_share_their_device(ranks: int, gpus: int, expected: int) -> None:
    assert RankPlan(ranks, [str(index) for index in range(gpus)]).per_device == expected


def test_the_ranks_of_a_node_are_counted_over_all_nodes(visible: pytest.MonkeyPatch) -> None:
    see(visible, 2)
    place = NodePlace(node=1, nodes=3, host="train-0.train", port=29500)

    found = plan_ranks(TrainingSpec(batch_size=12), 2, 0, place)

    assert found == RankPlan(2, ["0", "1"], 1, 3)
    assert (found.world, list(found.ranks), found.per_device) == (6, [2, 3], 1)
    assert [found.environment(rank, {})["CUDA_VISIBLE_DEVICES"] for rank in found.ranks] == ["0", "1"]
    with pytest.raises(InvalidInput, match="16 is not a multiple of the 6 processes that share each step; use 12 or"):
        plan_ranks(TrainingSpec(batch_size=16), 2, 0, place)


def test_a_node_with_one_rank_trains_in_a_process_of_its_own(visible: pytest.MonkeyPatch) -> None:
    see(visible, 0)
    place = NodePlace(node=0, nodes=2, host="train-0.train", port=29500)

    assert plan_ranks(TrainingSpec(batch_size=4), 0, 0, place) == RankPlan(1, [], 0, 2)
