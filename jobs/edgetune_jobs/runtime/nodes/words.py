"""What the nodes of a training say to each other, as lines of JSON over TCP.

Each node says its phase whenever it changes, and every few seconds. Node 0 answers all of them with the words of all.
"""

from enum import StrEnum

from edgetune_contract.schema import Model
from edgetune_contract.stages import ExitCode


class Phase(StrEnum):
    """How far a node is."""

    COMING = "Coming"
    """It gets its inputs."""

    READY = "Ready"
    """Its ranks can start."""

    TRAINING = "Training"
    """Its ranks start: if it leaves from now on, it is lost."""

    DONE = "Done"
    """Node 0 only: the output is committed."""

    ENDED = "Ended"
    """It ends with a code and a message."""


class NodeIdentity(Model):
    """What has to be equal on all nodes of a training."""

    digest: str
    """Of the training."""

    nodes: int
    ranks: int
    """Number of ranks of one node."""

    version: str
    """Of the code."""

    image: str
    """Reference of the container image."""

    def difference_to(self, other: "NodeIdentity") -> str:
        """The first field with another value, and both values; empty if all are equal."""
        mine, theirs = self.model_dump(), other.model_dump()
        different = (name for name in mine if mine[name] != theirs[name])
        return next((f"{name}: {mine[name]!r} and {theirs[name]!r}" for name in different), "")


class NodeWord(Model):
    """What one node says."""

    node: int
    identity: NodeIdentity
    phase: Phase = Phase.COMING
    code: int = 0
    """Exit code, once it ends."""

    message: str = ""
    step: int | None = None
    """Step of the checkpoint that it was stopped with."""

    @property
    def is_fault(self) -> bool:
        """Whether it ends by a fault of its own."""
        return self.phase is Phase.ENDED and self.code not in (ExitCode.INTERRUPTED, ExitCode.PEER_LOST)

    @property
    def is_stopped(self) -> bool:
        """Whether it ends because it was stopped."""
        return self.phase is Phase.ENDED and self.code == ExitCode.INTERRUPTED

    def line(self) -> bytes:
        """The word as a line of JSON."""
        return self.model_dump_json(exclude_none=True).encode() + b"\n"


class GroupState(Model):
    """The words of all nodes."""

    refusal: str = ""
    """Why the node that asks cannot take part; then there is nothing else."""

    words: tuple[NodeWord, ...] = ()
    """The last word of each node that is there or has ended, by number."""

    port: int = 0
    """TCP port of node 0 where the ranks find each other; 0 until all nodes are ready."""

    lost: tuple[int, ...] = ()
    """Nodes that left while they trained."""

    owner: int | None = None
    """The node that first ended by a fault of its own: only it reports this fault."""

    def word_of(self, node: int) -> NodeWord | None:
        """The last word of a node."""
        return next((word for word in self.words if word.node == node), None)

    @property
    def is_done(self) -> bool:
        """Whether the output is committed."""
        return any(word.phase is Phase.DONE for word in self.words)

    def line(self) -> bytes:
        """The state as a line of JSON."""
        return self.model_dump_json(exclude_none=True).encode() + b"\n"
