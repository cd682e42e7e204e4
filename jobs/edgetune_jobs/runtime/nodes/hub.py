"""Where the nodes of a training meet: a TCP server in the stage's process of node 0, for one attempt."""

import errno
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from edgetune_jobs.errors import TransientError
from edgetune_jobs.runtime.nodes.place import NodePlace
from edgetune_jobs.runtime.nodes.words import GroupState, NodeIdentity, NodeWord, Phase

MAX_LINE = 1 << 20
"""Bytes of the longest line that is read."""

_BEFORE_TRAINING = (Phase.COMING, Phase.READY)


@dataclass(frozen=True)
class Timing:
    """How the nodes wait for each other, in seconds."""

    patience: float = 600.0
    """For nodes that are not there: longer than a Pod takes to be scheduled, pulled and started."""

    beat: float = 5.0
    """Between two words of a node that has nothing new to say."""

    silence: float = 60.0
    """Without a word, after which a node is lost."""

    retry: float = 1.0
    """Between two attempts to connect."""

    farewell: float = 15.0
    """For the last words of the others, when this node ends."""


class Hub:
    """Collects the nodes' words and sends all of them to each node.

    A node may leave and come back until its ranks start. If it leaves then, it is lost, and one that comes in its place
    is sent away until node 0 has started again.
    """

    def __init__(self, place: NodePlace, identity: NodeIdentity, timing: Timing) -> None:
        """
        Args:
            place: of node 0.
            identity: that all nodes must have.
            timing: how long is waited.

        Raises:
            TransientError: the port is in use.
        """
        self._place = place
        self._identity = identity
        self._timing = timing
        self._changed = threading.Condition()
        self._connections: dict[int, socket.socket] = {}
        self._state = GroupState()
        self._closed = threading.Event()
        self._server = _listen(place.port, timing)
        for work in (self._accept, self._beat):
            threading.Thread(target=work, name="nodes", daemon=True).start()

    def close(self) -> None:
        """Let every node have the last words, and end."""
        self._closed.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes up `accept`
        self._server.close()
        with self._changed:
            for connection in self._connections.values():
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            self._changed.wait_for(lambda: not self._connections, self._timing.retry)
            for connection in self._connections.values():
                hang_up(connection)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                self._closed.wait(self._timing.retry)
                continue
            threading.Thread(target=self._serve, args=(connection,), name="node", daemon=True).start()

    def _beat(self) -> None:
        while not self._closed.wait(self._timing.beat):
            with self._changed:
                self._send()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(self._timing.silence)
        with connection, suppress(OSError, ValueError), connection.makefile("rb") as lines:
            word = NodeWord.decode(lines.readline(MAX_LINE).decode())
            if word.node == 0:
                connection.settimeout(None)  # this process
            with self._admitted(word, connection) as is_in:
                while is_in and (line := lines.readline(MAX_LINE)):
                    self._note(NodeWord.decode(line.decode()), connection)

    @contextmanager
    def _admitted(self, word: NodeWord, connection: socket.socket) -> Iterator[bool]:
        """Whether a node takes part, as long as the block lasts."""
        with self._changed:
            is_in = self._admit(word, connection)
        try:
            yield is_in
        finally:
            with self._changed:
                if self._connections.get(word.node) is connection:
                    self._lose(word.node)

    def _admit(self, word: NodeWord, connection: socket.socket) -> bool:
        difference = word.identity.difference_to(self._identity)
        if difference:
            name = self._place.name_of(word.node, self._identity.ranks)
            refusal = f"{name} differs from node 0 in its {difference}; all Pods of the Job must be alike"
            connection.sendall(GroupState(refusal=refusal).line())
            return False
        earlier = self._connections.get(word.node)
        if earlier is not None:
            # A node that comes once more has a new process: the earlier one is gone, with or without a farewell.
            self._lose(word.node)
            hang_up(earlier)
        is_late = self._closed.is_set() or self._has_left(word.node) or word.phase not in _BEFORE_TRAINING
        if is_late or not 0 <= word.node < self._place.nodes:
            return False
        self._connections[word.node] = connection
        self._change(word, owner=None if self._state.owner == word.node else self._state.owner)
        return True

    def _has_left(self, node: int) -> bool:
        """Whether a node has trained in this attempt and does no more: it is gone, or has said how it ended."""
        state, word = self._state, self._state.word_of(node)
        has_ended = word is not None and word.phase is Phase.ENDED
        return node in state.lost or (state.port != 0 and has_ended)

    def _note(self, word: NodeWord, connection: socket.socket) -> None:
        with self._changed:
            # Another process of the node may have come since: the words that were still on their way are void.
            if self._connections.get(word.node) is not connection:
                return
            owner = self._state.owner
            self._change(word, owner=word.node if owner is None and word.is_fault else owner)

    def _lose(self, node: int) -> None:
        """Note that a node's connection has ended."""
        del self._connections[node]
        word = self._state.word_of(node)
        phase = Phase.COMING if word is None else word.phase
        if phase is Phase.TRAINING:
            self._state = self._state.model_copy(update={"lost": (*self._state.lost, node)})
        elif phase in _BEFORE_TRAINING or not self._state.port:
            words = tuple(each for each in self._state.words if each.node != node)
            self._state = self._state.model_copy(update={"words": words})
        self._send()

    def _change(self, word: NodeWord, owner: int | None) -> None:
        others = (each for each in self._state.words if each.node != word.node)
        words = tuple(sorted((*others, word), key=lambda each: each.node))
        is_ready = len(words) == self._place.nodes and all(each.phase is Phase.READY for each in words)
        port = self._state.port or (_free_port() if is_ready else 0)
        state = self._state.model_copy(update={"words": words, "owner": owner, "port": port})
        if state != self._state:  # with 64 nodes, answers to mere signs of life would be a megabyte a second
            self._state = state
            self._send()

    def _send(self) -> None:
        line = self._state.line()
        for connection in self._connections.values():
            try:
                connection.sendall(line)
            except OSError:
                hang_up(connection)  # the thread that reads from it notices
        self._changed.notify_all()


def _listen(port: int, timing: Timing) -> socket.socket:
    """A server on all addresses of this machine."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    until = time.monotonic() + timing.silence
    while True:
        try:
            return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise TransientError(
                    f"cannot listen on TCP port {port} for the other nodes: {error.strerror}; another process of the "
                    "Pod, or of the machine with hostNetwork, has it"
                ) from error
        time.sleep(timing.retry)


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def hang_up(connection: socket.socket) -> None:
    """End a connection, also for a thread that reads from it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
