"""A stage on two nodes as processes, as in two Pods with one store: exit codes, termination messages, the commit."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgetune_contract.digest import stage_digests
from edgetune_contract.request import Manifest
from edgetune_contract.stages import ExitCode, Stage
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.manifests import read_manifest
from support import light_nodes
from support.light_nodes import FAULT, FOLDER, WORK
from support.local_runs import new_runs
from support.node_conditions import CLOCK, WAIT
from support.server_process import free_port
from support.stage_runs import Ended, RunningStage, StageRuns

# On cores that other work may share.
LIMIT_SECONDS = 120
RESUMES = "all nodes resume from the newest checkpoint"
STOPPED = "stopped by SIGTERM after step 3 of 6; its checkpoint is in the store"


class Nodes:
    """Two nodes of one training."""

    def __init__(self, runs: StageRuns, folder: Path) -> None:
        self.runs = runs
        self._folder = folder
        self._attempts = 0

    def start(self, fault: str = "", **environment: str) -> Sequence[RunningStage]:
        """Both nodes."""
        self._attempts += 1
        folder = self._folder / f"meeting-{self._attempts}"
        folder.mkdir()
        port = free_port()
        changes = {FAULT: fault, FOLDER: str(folder), **environment}
        return [self.start_one(node, port, **changes) for node in range(2)]

    def start_one(self, node: int, port: int, **environment: str) -> RunningStage:
        place = {"EDGETUNE_NODES": "2", "JOB_COMPLETION_INDEX": str(node), "EDGETUNE_RENDEZVOUS": f"127.0.0.1:{port}"}
        return self.runs.start(Stage.TRAIN, **place, **environment)

    def run(self, fault: str = "") -> Sequence[Ended]:
        return [stage.wait() for stage in self.start(fault)]

    def manifest(self) -> Manifest | None:
        """What node 0 has committed."""
        assert self.runs.resolved is not None
        digest = stage_digests(self.runs.parameters, self.runs.resolved, self.runs.name)[Stage.TRAIN]
        return read_manifest(LocalFolderStore(self.runs.store.uri), Stage.TRAIN, digest)


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    runs = new_runs(tmp_path)
    runs.command = light_nodes.COMMAND
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    runs.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    runs.run_up_to(Stage.PREPARE)
    return Nodes(runs, tmp_path)


def codes(found: Sequence[Ended]) -> list[int]:
    return [each.exit_code for each in found]


def test_both_nodes_succeed_once_node_0_has_committed_and_it_may_start_again(nodes: Nodes) -> None:
    first, other = nodes.start()

    ended = other.wait()
    assert ended.exit_code == 0, ended
    manifest = nodes.manifest()
    assert manifest is not None, "node 1 ends after the commit"
    assert (ended.result.stage, ended.result.artifacts) == (Stage.TRAIN, ())
    assert first.wait().result.metrics == manifest.result.metrics

    for node in range(2):
        again = nodes.start_one(node, free_port()).wait()
        assert (again.exit_code, again.result.cached) == (0, True), again
        assert again.result.artifacts == manifest.result.artifacts


@pytest.mark.parametrize("seconds_ahead", [600, -600])
def test_clocks_that_are_ten_minutes_apart_change_nothing(nodes: Nodes, tmp_path: Path, seconds_ahead: int) -> None:
    port, meeting = free_port(), str(tmp_path)
    stages = [
        nodes.start_one(node, port, **{FOLDER: meeting, CLOCK: str(node * seconds_ahead), WAIT: "20"})
        for node in range(2)
    ]

    assert codes([stage.wait() for stage in stages]) == [0, 0]


@pytest.mark.parametrize("node", [0, 1])
def test_the_node_that_is_stopped_is_interrupted_and_the_other_has_lost_it(nodes: Nodes, node: int) -> None:
    stages = nodes.start("- wait")
    stages[0].wait_for(WORK)
    stages[node].process.send_signal(signal.SIGTERM)

    found = [stage.wait() for stage in stages]

    failures = [each.result.failure for each in found]
    own, other = failures[node], failures[1 - node]
    assert own is not None
    assert other is not None
    assert (own.exit_code, own.reason, own.message, own.step) == (75, "Interrupted", STOPPED, 3), found
    name = f"node {node} of 2 (rank {node})"
    assert (other.exit_code, other.reason, other.message, other.step) == (76, "PeerLost", f"{name} was {STOPPED}", 3)
    assert nodes.runs.leftovers() == []


def test_a_queue_that_stops_all_nodes_at_once_gets_one_checkpoint_of_all(nodes: Nodes) -> None:
    stages = nodes.start("- wait")
    stages[0].wait_for(WORK)
    for stage in stages:
        stage.process.send_signal(signal.SIGTERM)

    found = [stage.wait() for stage in stages]

    failures = [each.result.failure for each in found]
    assert [failure and (failure.exit_code, failure.step) for failure in failures] == [(75, 3), (75, 3)], found


def test_a_node_whose_processes_are_all_killed_is_named(nodes: Nodes) -> None:
    found = nodes.run("1 kill")

    assert codes(found) == [ExitCode.PEER_LOST, -signal.SIGKILL], found
    assert found[0].failure.startswith("node 1 of 2 (rank 1) is gone without a word: its container was killed"), found


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_node_whose_processes_all_hang_is_named_within_a_bounded_time(nodes: Nodes, frozen: int) -> None:
    began = time.monotonic()
    stages = nodes.start(f"{frozen} freeze", **{WAIT: "2"})

    found = stages[1 - frozen].wait(LIMIT_SECONDS)

    assert found.exit_code == ExitCode.PEER_LOST, found
    assert found.failure.startswith(
        f"node {frozen} of 2 (rank {frozen}) is gone without a word: its container was killed or hangs, or its machine "
        "or the network between them failed"
    ), found
    assert time.monotonic() - began < LIMIT_SECONDS, "two seconds of silence, two to end, and words that nobody answers"
    stages[frozen].thaw()
    late = stages[frozen].wait(LIMIT_SECONDS)
    assert late.exit_code == ExitCode.PEER_LOST, late
    assert nodes.manifest() is None


def test_nobody_succeeds_if_node_0_is_killed_before_the_commit(nodes: Nodes) -> None:
    found = nodes.run("0 kill")

    assert codes(found) == [-signal.SIGKILL, ExitCode.PEER_LOST], found
    assert nodes.manifest() is None


def test_one_node_reports_a_fault(nodes: Nodes) -> None:
    found = nodes.run("1 memory")

    assert codes(found) == [ExitCode.PEER_LOST, ExitCode.OUT_OF_GPU_MEMORY], found
    assert found[1].failure == "rank 1 of 2: it does not fit"
    assert found[0].failure == f"node 1 of 2 (rank 1) failed: rank 1 of 2: it does not fit; {RESUMES}"


def test_one_node_reports_a_fault_that_both_see(nodes: Nodes) -> None:
    found = nodes.run("- diverge")

    assert sorted(codes(found)) == [ExitCode.DIVERGED, ExitCode.PEER_LOST], found


def test_a_node_that_waits_for_others_can_be_stopped(nodes: Nodes) -> None:
    stage = nodes.start_one(1, free_port())
    stage.wait_for("waiting for the other nodes")
    stage.process.send_signal(signal.SIGTERM)

    found = stage.wait()

    assert (found.exit_code, found.failure) == (75, "stopped by SIGTERM before the first step of this attempt")


def test_a_node_with_another_image_counts_as_an_attempt(nodes: Nodes) -> None:
    port = free_port()
    first = nodes.start_one(0, port, EDGETUNE_IMAGE="jobs:1")
    other = nodes.start_one(1, port, EDGETUNE_IMAGE="jobs:2")

    refused = other.wait()

    assert (refused.exit_code, refused.failure) == (
        ExitCode.TRANSIENT,
        "node 1 of 2 (rank 1) differs from node 0 in its image: 'jobs:2' and 'jobs:1'; all Pods of the Job must be "
        "alike",
    )
    first.process.send_signal(signal.SIGTERM)
    assert first.wait().exit_code == ExitCode.INTERRUPTED
