"""How one of three nodes reports its end, by what it knows of the others."""

import pytest

from edgetune_contract.stages import ExitCode
from edgetune_jobs.errors import Interrupted, NodeLost, PeerLost, TransientError
from edgetune_jobs.runtime.nodes.place import NodePlace
from edgetune_jobs.runtime.nodes.verdict import View, verdict
from edgetune_jobs.runtime.nodes.words import GroupState, NodeIdentity, NodeWord, Phase
from edgetune_jobs.runtime.signals import Stopped

IDENTITY = NodeIdentity(digest="a" * 64, nodes=3, ranks=2, version="1", image="")
LOST = PeerLost("another rank of 6 has ended")
KILLED = PeerLost("it ended without a result; rank 3 had to be killed", killed=True)


def word(node: int, code: int | None = None, message: str = "") -> NodeWord:
    """A word of a node that trains, or of one that ends with this code."""
    phase = Phase.READY if code is None else Phase.ENDED
    return NodeWord(node=node, identity=IDENTITY, phase=phase, code=code or 0, message=message)


FAULT = word(2, ExitCode.TRANSIENT, "the disk is full")
PEER_LOST = word(0, ExitCode.PEER_LOST, "node 1 of 3 (rank 3) did not answer within 600 s")


def view(*words: NodeWord, is_connected: bool = True, **state: object) -> View:
    """That of node 1."""
    return View(NodePlace(1, 3), 2, GroupState(port=1, words=words).model_copy(update=state), is_connected)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (view(word(0), FAULT, owner=2), "node 2 of 3 (ranks 4 to 5) failed: the disk is full; all nodes resume"),
        (view(PEER_LOST, FAULT, owner=2), "node 2 of 3 (ranks 4 to 5) failed: the disk is full; all nodes resume"),
        (view(word(0), word(2), lost=(2,)), "node 2 of 3 (ranks 4 to 5) is gone without a word"),
        (view(word(0), word(2), is_connected=False), "node 0 of 3 (ranks 0 to 1) is gone without a word"),
        (view(PEER_LOST, word(2)), "node 0 of 3 (ranks 0 to 1) ended: node 1 of 3 (rank 3) did not answer"),
        (view(word(0), word(2)), "another rank of 6 has ended"),
    ],
    ids=["fault", "fault of one, loss of another", "gone", "node 0 gone", "loss of another", "unknown"],
)
def test_a_node_that_lost_a_rank_names_the_node_that_explains_it(found: View, message: str) -> None:
    error = verdict(LOST, False, found)

    assert isinstance(error, NodeLost)
    assert str(error).startswith(message)


def test_a_rank_that_had_to_be_killed_is_no_fault_if_another_node_has_one() -> None:
    for found in (view(word(0), FAULT, owner=2), view(word(0), word(2), lost=(2,)), view(is_connected=False)):
        assert isinstance(verdict(KILLED, False, found), NodeLost)
    assert type(verdict(KILLED, False, view(PEER_LOST, word(2)))) is TransientError


def test_a_fault_is_reported_unless_another_node_was_first() -> None:
    own = TransientError("the disk is full")

    assert verdict(own, False, view(word(0), word(2), owner=1)) is own
    assert verdict(own, False, view(is_connected=False)) is own, "nobody has answered"
    assert isinstance(verdict(own, False, view(word(0), FAULT, owner=2)), NodeLost)


def test_a_stop_is_an_interruption_only_where_the_signal_arrived() -> None:
    stopped = Interrupted("stopped by SIGTERM after step 2 of 6", 2)
    other = word(2, ExitCode.INTERRUPTED, "stopped by SIGTERM after step 2 of 6")

    assert verdict(stopped, True, view(word(0), other)) is stopped
    assert str(verdict(stopped, False, view(word(0), other))) == f"node 2 of 3 (ranks 4 to 5) was {other.message}"
    unexplained = verdict(stopped, False, view(word(0), word(2)))
    assert isinstance(unexplained, NodeLost)
    assert unexplained.step == 2
    signal = Stopped()
    assert verdict(signal, True, view()) is signal


@pytest.mark.parametrize(
    ("found", "is_broken"),
    [
        (view(word(0), word(2)), False),
        (view(word(0), FAULT), True),
        (view(word(0), word(2), lost=(2,)), True),
        (view(word(0).model_copy(update={"phase": Phase.DONE}), word(2), lost=(2,)), False),
        (view(word(0).model_copy(update={"phase": Phase.DONE}), is_connected=False), False),
    ],
    ids=["all there", "one failed", "one gone", "one gone after the commit", "node 0 gone after the commit"],
)
def test_an_attempt_is_broken_if_a_node_ends_before_the_commit(found: View, is_broken: bool) -> None:
    assert found.is_broken is is_broken
