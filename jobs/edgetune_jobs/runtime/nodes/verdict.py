"""How a node reports its end, so that one incident counts once: by its own fault, or by that of another node.

own fault ─── another node had one first? ── no ──► its own error (10, 12, 13, 14, …)
                        └── yes ──────────────────┐
stopped here ───────────────────────────────────► │ Interrupted (75)
all stopped, but not here ────────────────────────┤
a rank is lost ─── of this node, it hangs? ─ no ──┴► NodeLost (76), which names the other node
                              └── yes ─────────────► TransientError (14)
"""

from dataclasses import dataclass

from edgetune_jobs.errors import Interrupted, NodeLost, PeerLost, TransientError
from edgetune_jobs.runtime.nodes.place import NodePlace
from edgetune_jobs.runtime.nodes.words import GroupState, Phase

RESUMES = "all nodes resume from the newest checkpoint"


@dataclass(frozen=True)
class View:
    """What a node knows of the others when it ends."""

    place: NodePlace
    ranks: int
    """Number of ranks of each node."""

    state: GroupState
    is_connected: bool
    """Whether node 0 is there."""

    def name_of(self, node: int) -> str:
        """A node's name in messages."""
        return self.place.name_of(node, self.ranks)

    @property
    def have_all_ended(self) -> bool:
        """Whether there is nothing more to hear from the others."""
        ended = {word.node for word in self.state.words if word.phase is Phase.ENDED}
        others = set(range(self.place.nodes)) - {self.place.node}
        return not self.is_connected or others <= {*ended, *self.state.lost}

    @property
    def is_broken(self) -> bool:
        """Whether the attempt cannot be finished, because another node has ended."""
        return not self.state.is_done and self.loss() is not None

    @property
    def is_explained(self) -> bool:
        """Whether another node has ended for a reason of its own."""
        has_stopped = any(word.is_stopped for word in self.state.words)
        return has_stopped or bool(self.state.lost) or self.state.owner is not None or not self.is_connected

    def loss(self) -> NodeLost | None:
        """The end of another node, the one that matters most; None if all others are there."""
        others = [word for word in self.state.words if word.node != self.place.node]
        fault = next((word for word in others if word.node == self.state.owner and word.is_fault), None)
        if fault is not None:
            name = self.name_of(fault.node)
            what = fault.message if fault.message.startswith(name) else f"{name} failed: {fault.message}"
            return NodeLost(f"{what}; {RESUMES}")
        stopped = next((word for word in others if word.is_stopped), None)
        if stopped is not None:
            return NodeLost(f"{self.name_of(stopped.node)} was {stopped.message}", stopped.step)
        lost = self.state.lost if self.is_connected else (0,)
        if lost:
            return NodeLost(
                f"{self.name_of(lost[0])} is gone without a word: its container was killed or hangs, or its "
                f"machine or the network between them failed; {RESUMES}"
            )
        ended = next((word for word in others if word.phase is Phase.ENDED), None)
        return None if ended is None else NodeLost(f"{self.name_of(ended.node)} ended: {ended.message}")


def verdict(error: BaseException, was_stopped: bool, view: View) -> BaseException:
    """The error that this node reports.

    Args:
        error: with which its work ended.
        was_stopped: SIGTERM has arrived here.
        view: of the other nodes.
    """
    if isinstance(error, NodeLost) or not isinstance(error, Exception):
        return error
    if isinstance(error, Interrupted):
        return error if was_stopped else (view.loss() or NodeLost(str(error), error.step))
    if isinstance(error, PeerLost):
        if error.killed and not view.is_explained:
            return TransientError(f"{view.name_of(view.place.node)} did not answer the others: {error}")
        return view.loss() or NodeLost(str(error))
    owner = view.state.owner
    if owner is not None and owner != view.place.node:
        return view.loss() or error
    return error
