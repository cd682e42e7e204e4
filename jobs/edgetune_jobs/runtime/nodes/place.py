"""Which of the nodes of a training this container is, and where it finds the others."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgetune_jobs.errors import InvalidInput


@dataclass(frozen=True)
class NodePlace:
    """The place of a container among those that train together, its nodes 0 to `nodes` - 1."""

    node: int = 0
    nodes: int = 1
    host: str = ""
    """Name of node 0."""

    port: int = 0
    """TCP port of node 0 where the nodes meet."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "NodePlace":
        """The place by EDGETUNE_NODES, EDGETUNE_RENDEZVOUS and JOB_COMPLETION_INDEX, which Kubernetes sets.

        Raises:
            InvalidInput: one of them cannot be used.
        """
        nodes = environment.get("EDGETUNE_NODES", "1")
        if not nodes.isdecimal() or int(nodes) < 1:
            raise InvalidInput(f"EDGETUNE_NODES: {nodes!r} is not a number of nodes")
        if int(nodes) == 1:
            return cls()
        node = environment.get("JOB_COMPLETION_INDEX", "")
        if not node.isdecimal() or int(node) >= int(nodes):
            raise InvalidInput(
                f"JOB_COMPLETION_INDEX: {node!r} is none of the {nodes} nodes; run them as an Indexed Job with {nodes} "
                "completions"
            )
        meeting = environment.get("EDGETUNE_RENDEZVOUS", "")
        host, _, port = meeting.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
            raise InvalidInput(f"EDGETUNE_RENDEZVOUS: {meeting!r} is not the address of node 0; use <host>:<port>")
        return cls(int(node), int(nodes), host.strip("[]"), int(port))

    @property
    def address(self) -> str:
        """Where the nodes meet."""
        return f"{self.host}:{self.port}"

    def name_of(self, node: int, ranks: int) -> str:
        """A node's name in messages.

        Args:
            node: which one.
            ranks: number of ranks of each node.
        """
        first = node * ranks
        which = f"rank {first}" if ranks == 1 else f"ranks {first} to {first + ranks - 1}"
        return f"node {node} of {self.nodes} ({which})"
