"""train on two nodes, each a process as in a Pod, with one store: equal to one process, one failure for one fault."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgetune_contract.digest import stage_digests
from edgetune_contract.request import Manifest
from edgetune_contract.stages import ExitCode, Stage
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.manifests import read_manifest
from support.node_conditions import CLOCK, WAIT
from support.node_stage import COMMAND, FAULT
from support.prepared_runs import prepared_runs
from support.server_process import free_port
from support.stage_runs import Ended, RunningStage, StageRuns
from support.tiny_runs import train

pytestmark = pytest.mark.slow

# As for ranks of one node: see test_train_ranks.
TOLERANCE = 1e-5
ADAPTER_TOLERANCE = 1e-3
STEPS = 6
TEN_MINUTES = 600
# Four processes that each load torch, on cores that other work may share.
LIMIT_SECONDS = 300
TRAINING = {"maxSteps": STEPS, "batchSize": 6, "microBatchSize": 3, "maxLength": 256}
GONE = "node 1 of 2 (rank 1) is gone without a word: its container was killed"


class Nodes:
    """Runs of a training on two nodes."""

    def __init__(self, runs: StageRuns) -> None:
        self.runs = runs
        runs.command = COMMAND
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        runs.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        runs.environment["OMP_NUM_THREADS"] = "1"

    def start(self, node: int, port: int, **environment: str) -> RunningStage:
        place = {"EDGETUNE_NODES": "2", "JOB_COMPLETION_INDEX": str(node), "EDGETUNE_RENDEZVOUS": f"127.0.0.1:{port}"}
        return self.runs.start(Stage.TRAIN, **place, **environment)

    def run(self, fault: str = "", seconds_ahead: int = 0) -> Sequence[Ended]:
        """Both nodes to their end; node 1 starts first, and its clock is ahead."""
        port = free_port()
        clocks = {1: {CLOCK: str(seconds_ahead)}, 0: {}}
        started = [self.start(node, port, **{FAULT: fault}, **clock) for node, clock in clocks.items()]
        return [stage.wait(LIMIT_SECONDS) for stage in reversed(started)]

    def run_alone(self, fault: str) -> Ended:
        """The same training in one process."""
        return self.runs.start(Stage.TRAIN, **{FAULT: fault}).wait(LIMIT_SECONDS)

    def checkpoints(self) -> set[str]:
        """Steps of the checkpoints in the store."""
        return {found.key.split("/")[2] for found in self.store.list("checkpoints")}

    @property
    def store(self) -> LocalFolderStore:
        return LocalFolderStore(self.runs.store.uri)

    def manifest(self) -> Manifest | None:
        """What node 0 has committed."""
        assert self.runs.resolved is not None
        digest = stage_digests(self.runs.parameters, self.runs.resolved, self.runs.name)[Stage.TRAIN]
        return read_manifest(self.store, Stage.TRAIN, digest)


@pytest.fixture
def nodes(tmp_path: Path, random_base: Path, few_rows: Path) -> Nodes:
    return Nodes(prepared_runs(tmp_path, random_base, few_rows, TRAINING))


def ends(found: Sequence[Ended]) -> list[tuple[int, str]]:
    """Exit codes and messages by node."""
    return [(each.exit_code, each.failure) for each in found]


def steps_of(adapter: Path, name: str) -> list[float]:
    lines = (adapter / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[name] for line in lines]


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Of the adapters' weights, relative to the largest one."""
    assert ours.keys() == theirs.keys()
    largest = max(float(weight.abs().max()) for weight in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours) / largest


def test_a_training_that_is_evicted_and_killed_on_two_nodes_and_one_equals_one_that_is_not(
    nodes: Nodes, tmp_path: Path, random_base: Path, few_rows: Path
) -> None:
    evicted = nodes.run("1 stop 2", seconds_ahead=TEN_MINUTES)
    saved = "stopped by SIGTERM after step 2 of 6; its checkpoint is in the store, and the next attempt resumes from it"
    assert ends(evicted) == [(76, f"node 1 of 2 (rank 1) was {saved}"), (75, saved)], evicted
    assert [each.result.failure and each.result.failure.reason for each in evicted] == ["PeerLost", "Interrupted"]
    assert [each.result.failure and each.result.failure.step for each in evicted] == [2, 2]
    assert nodes.checkpoints() == {"step-2"}

    alone = nodes.run_alone("0 stop 4")
    assert alone.exit_code == ExitCode.INTERRUPTED, alone.stderr
    assert alone.failure.startswith("stopped by SIGTERM after step 4 of 6")

    killed = nodes.run("1 kill 5")
    assert [each.exit_code for each in killed] == [76, -9], killed
    assert killed[0].failure.startswith(GONE), killed
    assert nodes.manifest() is None

    first, other = nodes.run(seconds_ahead=-TEN_MINUTES)
    assert (first.exit_code, other.exit_code) == (0, 0), (first, other)
    assert first.result.metrics["resumedFromStep"] == 4
    assert first.result.metrics["worldSize"] == 2
    assert first.result.facts["ranks"].startswith(
        "2 on 2 nodes, on CPUs, gradients by Gloo; the most memory is that of"
    )
    assert other.result.artifacts == ()
    assert nodes.runs.leftovers() != [], "the killed node left its folder"
    manifest = nodes.manifest()
    assert manifest is not None
    assert manifest.result == first.result.model_copy(update={"cached": False})

    again = nodes.start(0, free_port()).wait()
    assert (again.exit_code, again.result.cached) == (0, True), again
    assert again.result.metrics == first.result.metrics

    expected = train(tmp_path / "expected", nodes.runs.parameters, random_base, few_rows)
    (artifact,) = first.result.artifacts
    adapter = Path(artifact.uri.removeprefix("file://"))
    assert steps_of(adapter, "loss") == pytest.approx(expected.figures("loss"), rel=TOLERANCE)
    theirs = steps_of(expected.adapter, "gradientNorm")
    assert steps_of(adapter, "gradientNorm") == pytest.approx(theirs, rel=TOLERANCE)
    weights = load_file(adapter / "adapter_model.safetensors")
    assert largest_difference(weights, expected.weights()) < ADAPTER_TOLERANCE
    assert first.result.metrics["quantizedShare"] == expected.output.metrics["quantizedShare"] > 0


@pytest.mark.parametrize(
    ("fault", "code", "owner", "message"),
    [
        # Of every size: smaller ones are tried first, in the same processes.
        ("1 memory 1", ExitCode.INVALID, 1, "rank 1 of 2: the GPU ran out of memory with a micro-batch of 1 example"),
        ("1 infinite 2", ExitCode.DIVERGED, None, "the gradient norm is (inf|nan) at step 2 of 6"),
    ],
    ids=["out of memory", "infinite"],
)
def test_a_fault_is_reported_by_one_node(
    nodes: Nodes, fault: str, code: ExitCode, owner: int | None, message: str
) -> None:
    found = nodes.run(fault)

    assert sorted(each.exit_code for each in found) == [code, ExitCode.PEER_LOST], found
    reporting = next(node for node, each in enumerate(found) if each.exit_code == code)
    assert owner in (None, reporting)
    assert message.split(" (")[0] in found[reporting].failure
    name = f"node {reporting} of 2 (rank {reporting}) failed: {found[reporting].failure}"
    assert found[1 - reporting].failure.startswith(name), found


def test_a_node_that_hangs_in_mid_training_is_named_and_the_next_attempt_resumes(nodes: Nodes) -> None:
    checkpoint = nodes.runs.parameters.training.checkpoint.model_copy(update={"every_steps": 1})
    training = nodes.runs.parameters.training.model_copy(update={"checkpoint": checkpoint})
    nodes.runs.parameters = nodes.runs.parameters.model_copy(update={"training": training})
    port = free_port()
    first, frozen = [nodes.start(node, port, **{FAULT: "1 freeze 3", WAIT: "5"}) for node in range(2)]

    found = first.wait(LIMIT_SECONDS)

    assert (found.exit_code, found.failure.partition(",")[0]) == (ExitCode.PEER_LOST, f"{GONE} or hangs"), found
    assert found.result.failure is not None
    assert found.result.failure.reason == "PeerLost"
    frozen.thaw()
    assert frozen.wait(LIMIT_SECONDS).exit_code == ExitCode.PEER_LOST

    resumed, other = nodes.run()

    assert (resumed.exit_code, other.exit_code) == (0, 0), (resumed, other)
    assert resumed.result.metrics["resumedFromStep"] == 2


def test_a_node_whose_peer_does_not_come_names_it(nodes: Nodes) -> None:
    # Ten seconds of the deadline are left for the end.
    waiting: Any = [
        nodes.start(0, free_port(), EDGETUNE_DEADLINE_SECONDS="11"),
        nodes.start(1, free_port(), EDGETUNE_DEADLINE_SECONDS="11"),
    ]
    first, other = [stage.wait(LIMIT_SECONDS) for stage in waiting]

    assert (first.exit_code, other.exit_code) == (76, 76), (first, other)
    assert first.failure.startswith("node 1 of 2 (rank 1) did not come within "), first
    assert "a NetworkPolicy must allow all TCP between the Pods of this Job" in first.failure
    assert other.failure.startswith("node 0 of 2 (rank 0) did not come within "), other
    assert "cannot be reached (Connection refused)" in other.failure
