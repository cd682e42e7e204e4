"""Nodes that meet over TCP, as threads of one process: who waits for whom, and who is named."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from edgetune_contract.stages import ExitCode
from edgetune_jobs.errors import (
    Interrupted,
    NodeLost,
    OutOfGpuMemory,
    PeerLost,
    StageError,
    TrainingDiverged,
    TransientError,
)
from edgetune_jobs.runtime.nodes.group import NodeGroup
from edgetune_jobs.runtime.nodes.hub import Timing
from edgetune_jobs.runtime.nodes.place import NodePlace
from edgetune_jobs.runtime.nodes.words import GroupState, NodeIdentity, NodeWord, Phase
from support.server_process import free_port

TIMING = Timing(patience=60, beat=0.1, silence=60, retry=0.05, farewell=10)
RESUMES = "all nodes resume from the newest checkpoint"
STOPPED = Interrupted("stopped by SIGTERM after step 2 of 6; its checkpoint is in the store", 2)
LIMIT = 50
BEGUN = "tcp://127.0.0.1:"


class Nodes:
    """Two nodes on this machine."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.port = free_port()
        self.said: list[str] = []
        self.pool = pool
        self._started: list[NodeGroup] = []

    def start(self, node: int, timing: Timing = TIMING, **changes: Any) -> NodeGroup:
        place = NodePlace(node, 2, changes.pop("host", "127.0.0.1"), self.port)
        identity = NodeIdentity(digest="a" * 64, nodes=2, ranks=1, version="1", image="jobs:1")
        deadline = changes.pop("deadline", None)
        group = NodeGroup(place, identity.model_copy(update=changes), timing, deadline)
        self._started.append(group)
        return group

    def gather(self, group: NodeGroup, stop: threading.Event | None = None) -> "Future[str]":
        return self.pool.submit(group.gather, stop or threading.Event(), self.said.append)

    def end(self, group: NodeGroup, error: BaseException, *, was_stopped: bool = False) -> "Future[BaseException]":
        return self.pool.submit(group.end, error, was_stopped)

    def begin(self) -> tuple[NodeGroup, NodeGroup]:
        """Two nodes whose ranks train."""
        groups = self.start(0), self.start(1)
        for begun in [self.gather(group) for group in groups]:
            assert begun.result(LIMIT).startswith(BEGUN)
        return groups

    def close(self) -> None:
        for group in self._started:
            group.leave()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with ThreadPoolExecutor(8) as pool:
        nodes = Nodes(pool)
        yield nodes
        nodes.close()


def shown(error: BaseException) -> tuple[type[BaseException], str]:
    return type(error), str(error)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nodes_begin_once_all_have_their_inputs(nodes: Nodes) -> None:
    late = nodes.start(1)  # before there is anything to connect to
    first = nodes.start(0)
    waiting = nodes.gather(first)
    wait_until(lambda: bool(nodes.said))

    assert not waiting.done()
    assert nodes.gather(late).result(LIMIT) == waiting.result(LIMIT)
    assert nodes.said[0] == "waiting for the other nodes of the 2"
    assert not first.is_broken
    assert not late.is_broken


def test_a_node_that_leaves_before_all_are_ready_may_come_back(nodes: Nodes) -> None:
    first, gone = nodes.start(0), nodes.start(1)
    waiting = nodes.gather(first)
    full = TransientError("the disk is full")
    assert nodes.end(gone, full).result(LIMIT) is full

    assert nodes.gather(nodes.start(1)).result(LIMIT) == waiting.result(LIMIT)


def test_node_0_may_start_again_while_the_others_get_their_inputs(nodes: Nodes) -> None:
    first, other = nodes.start(0), nodes.start(1)
    waiting = nodes.gather(other)
    nodes.end(first, TransientError("the disk is full")).result(LIMIT)

    assert nodes.gather(nodes.start(0)).result(LIMIT) == waiting.result(LIMIT)


def test_a_node_that_does_not_come_is_named(nodes: Nodes) -> None:
    with pytest.raises(NodeLost) as raised:
        nodes.gather(nodes.start(0, replace(TIMING, patience=0.3))).result(LIMIT)

    assert str(raised.value) == (
        "node 1 of 2 (rank 1) did not come within 0.3 s: their containers have not started, or they cannot connect to "
        f"TCP port {nodes.port} of node 0: a NetworkPolicy must allow all TCP between the Pods of this Job"
    )


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (
            "127.0.0.1",
            "127.0.0.1:{port} cannot be reached (Connection refused): the container of node 0 has not started, or a "
            "NetworkPolicy is in between, which must allow all TCP between the Pods of this Job: port {port}, and the "
            "ports that Gloo and NCCL choose",
        ),
        ("train-0.invalid", "the name train-0.invalid cannot be resolved ("),
    ],
    ids=["refused", "not resolved"],
)
def test_a_node_without_node_0_says_why(nodes: Nodes, host: str, reason: str) -> None:
    waiting = nodes.gather(nodes.start(1, replace(TIMING, patience=1), host=host))

    with pytest.raises(NodeLost) as raised:
        waiting.result(LIMIT)

    expected = f"node 0 of 2 (rank 0) did not come within 1 s: {reason.format(port=nodes.port)}"
    assert str(raised.value).startswith(expected)
    assert raised.value.exit_code == 76


def test_nobody_is_awaited_beyond_the_deadline(nodes: Nodes) -> None:
    waiting = nodes.gather(nodes.start(0, deadline=time.monotonic() + 10.5))

    with pytest.raises(NodeLost, match=r"^node 1 of 2 \(rank 1\) did not come within 0\.[345]\d* s"):
        waiting.result(LIMIT)


def test_a_stop_while_nodes_wait_is_an_interruption(nodes: Nodes) -> None:
    stop = threading.Event()
    waiting = nodes.gather(nodes.start(0), stop)
    stop.set()

    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM before the first step of this attempt$"):
        waiting.result(LIMIT)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"image": "jobs:2"}, "image: 'jobs:2' and 'jobs:1'"),
        ({"version": "2"}, "version: '2' and '1'"),
        ({"ranks": 2}, "ranks: 2 and 1"),
    ],
)
def test_a_node_with_another_image_is_refused_by_name(nodes: Nodes, change: dict[str, Any], difference: str) -> None:
    nodes.start(0)
    with pytest.raises(TransientError) as raised:
        nodes.gather(nodes.start(1, **change)).result(LIMIT)

    assert str(raised.value) == (
        f"node 1 of 2 (rank 1) differs from node 0 in its {difference}; all Pods of the Job must be alike"
    )


def test_others_end_only_after_node_0_has_committed(nodes: Nodes) -> None:
    first, other = nodes.begin()
    waiting = nodes.pool.submit(other.wait_for_commit)

    with pytest.raises(TimeoutError):
        waiting.result(0.3)
    first.commit()

    assert waiting.result(LIMIT) is None


def test_others_do_not_end_well_if_node_0_ends_without_a_commit(nodes: Nodes) -> None:
    first, other = nodes.begin()
    nodes.end(first, TransientError("the store does not answer")).result(LIMIT)

    with pytest.raises(NodeLost) as raised:
        other.wait_for_commit()

    assert str(raised.value) == f"node 0 of 2 (rank 0) failed: the store does not answer; {RESUMES}"


@pytest.mark.parametrize("failed", [0, 1])
def test_only_the_node_with_the_fault_reports_it(nodes: Nodes, failed: int) -> None:
    groups = nodes.begin()
    peer = nodes.end(groups[1 - failed], PeerLost("another rank of 2 has ended"))
    own = nodes.end(groups[failed], OutOfGpuMemory(f"rank {failed} of 2: it does not fit"))

    assert shown(own.result(LIMIT)) == (OutOfGpuMemory, f"rank {failed} of 2: it does not fit")
    assert shown(peer.result(LIMIT)) == (
        NodeLost,
        f"node {failed} of 2 (rank {failed}) failed: rank {failed} of 2: it does not fit; {RESUMES}",
    )


def test_a_fault_that_all_nodes_see_is_reported_once(nodes: Nodes) -> None:
    ends = [nodes.end(group, TrainingDiverged("the loss is nan at step 3")) for group in nodes.begin()]

    kinds = sorted(type(end.result(LIMIT)).__name__ for end in ends)

    assert kinds == ["NodeLost", "TrainingDiverged"]


@pytest.mark.parametrize("stopped", [0, 1])
def test_only_the_node_that_was_stopped_is_interrupted(nodes: Nodes, stopped: int) -> None:
    groups = nodes.begin()
    other = nodes.end(groups[1 - stopped], STOPPED)
    own = nodes.end(groups[stopped], STOPPED, was_stopped=True)

    assert own.result(LIMIT) is STOPPED
    lost = other.result(LIMIT)
    assert isinstance(lost, NodeLost)
    assert (str(lost), lost.step) == (f"node {stopped} of 2 (rank {stopped}) was {STOPPED}", 2)


@pytest.mark.parametrize("gone", [0, 1])
def test_a_node_that_is_killed_is_named(nodes: Nodes, gone: int) -> None:
    groups = nodes.begin()
    groups[gone].leave()  # as the kernel does for a process that is killed: connections end without a word
    wait_until(lambda: groups[1 - gone].is_broken)

    found = nodes.end(groups[1 - gone], PeerLost("another rank of 2 has ended")).result(LIMIT)

    assert shown(found) == (
        NodeLost,
        f"node {gone} of 2 (rank {gone}) is gone without a word: its container was killed or hangs, or its "
        f"machine or the network between them failed; {RESUMES}",
    )


def test_a_node_that_says_nothing_any_more_is_gone(nodes: Nodes) -> None:
    first = nodes.start(0, replace(TIMING, silence=0.5))
    silent = nodes.start(1, replace(TIMING, beat=60))
    for begun in [nodes.gather(first), nodes.gather(silent)]:
        begun.result(LIMIT)

    wait_until(lambda: first.is_broken)


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_rank_that_hangs_is_the_fault_of_its_node(nodes: Nodes, hanging: int) -> None:
    groups = nodes.begin()
    waiting = nodes.end(groups[1 - hanging], PeerLost(f"node {hanging} of 2 (rank {hanging}) did not answer in 3 s"))
    wait_until(lambda: groups[hanging].is_broken)
    killed: StageError = PeerLost(f"it ended without a result; rank {hanging} had to be killed", killed=True)
    own = nodes.end(groups[hanging], killed)

    name = f"node {hanging} of 2 (rank {hanging})"
    assert shown(own.result(LIMIT)) == (TransientError, f"{name} did not answer the others: {killed}")
    found = waiting.result(LIMIT)
    assert isinstance(found, NodeLost)
    assert str(found) == f"{name} did not answer the others: {killed}; {RESUMES}"


def test_a_node_that_comes_while_the_others_train_has_replaced_one_that_is_lost(nodes: Nodes) -> None:
    first, other = nodes.begin()
    nodes.start(1)

    wait_until(lambda: first.is_broken)
    assert "is gone without a word" in str(nodes.end(first, PeerLost("another rank of 2 has ended")).result(LIMIT))
    wait_until(lambda: other.is_broken)


def test_a_node_that_comes_once_its_predecessor_has_failed_waits_for_the_next_attempt(nodes: Nodes) -> None:
    first, failed = nodes.begin()
    nodes.end(failed, OutOfGpuMemory("rank 1 of 2: it does not fit")).result(LIMIT)
    waiting = nodes.gather(nodes.start(1))

    with pytest.raises(TimeoutError):
        waiting.result(0.5)
    assert first.is_broken
    found = nodes.end(first, PeerLost("another rank of 2 has ended")).result(LIMIT)
    assert str(found) == f"node 1 of 2 (rank 1) failed: rank 1 of 2: it does not fit; {RESUMES}"
    assert nodes.gather(nodes.start(0)).result(LIMIT) == waiting.result(LIMIT)


def test_words_of_an_earlier_process_of_a_node_are_void(nodes: Nodes) -> None:
    first = nodes.start(0)
    waiting = nodes.gather(first)
    identity = NodeIdentity(digest="a" * 64, nodes=2, ranks=1, version="1", image="jobs:1")
    ended = NodeWord(node=1, identity=identity, phase=Phase.ENDED, code=ExitCode.INVALID, message="of the earlier one")
    with socket.create_connection(("127.0.0.1", nodes.port)) as earlier:
        earlier.sendall(NodeWord(node=1, identity=identity).line())
        heard = earlier.makefile("rb")
        while GroupState.decode(heard.readline().decode()).word_of(1) is None:
            pass
        earlier.sendall(ended.line().rstrip())  # without its end, it is read once the connection ends
        other = nodes.start(1)
        while heard.readline():
            pass

    assert nodes.gather(other).result(LIMIT) == waiting.result(LIMIT)
    nodes.end(other, PeerLost("node 0 of 2 (rank 0) did not answer in 3 s"))
    own = nodes.end(first, PeerLost("it ended without a result; rank 0 had to be killed", killed=True))
    assert type(own.result(LIMIT)) is TransientError, "it is not explained by the earlier process"


def test_a_sign_of_life_is_no_news_for_the_others(nodes: Nodes) -> None:
    nodes.start(0, replace(TIMING, beat=60))
    identity = NodeIdentity(digest="a" * 64, nodes=2, ranks=1, version="1", image="jobs:1")
    with socket.create_connection(("127.0.0.1", nodes.port)) as connection:
        connection.settimeout(0.3)
        heard = connection.makefile("rb")
        connection.sendall(NodeWord(node=1, identity=identity).line())
        while GroupState.decode(heard.readline().decode()).word_of(1) is None:
            pass

        connection.sendall(NodeWord(node=1, identity=identity).line())

        with pytest.raises(TimeoutError):
            heard.readline()


def test_a_node_0_that_hangs_is_named_although_it_accepts_connections(nodes: Nodes) -> None:
    with socket.create_server(("127.0.0.1", nodes.port)):
        waiting = nodes.gather(nodes.start(1, replace(TIMING, patience=1)))

        with pytest.raises(NodeLost) as raised:
            waiting.result(LIMIT)

    assert str(raised.value) == (
        f"node 0 of 2 (rank 0) did not come within 1 s: 127.0.0.1:{nodes.port} accepts connections and does not "
        "answer: node 0 is still ending its earlier attempt, or its process hangs"
    )


def test_a_port_in_use_is_named(nodes: Nodes) -> None:
    with (
        socket.create_server(("", nodes.port)),
        pytest.raises(TransientError, match=f"^cannot listen on TCP port {nodes.port} for the other nodes: Address"),
    ):
        nodes.start(0, replace(TIMING, silence=0.2))


def test_noise_on_the_port_changes_nothing(nodes: Nodes) -> None:
    waiting = nodes.gather(nodes.start(0))
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b'{"node": 7}\n', b""):
        with socket.create_connection(("127.0.0.1", nodes.port)) as connection:
            connection.sendall(noise)

    assert nodes.gather(nodes.start(1)).result(LIMIT) == waiting.result(LIMIT)
