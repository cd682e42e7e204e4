"""One node of a training on several: it meets the others, waits for them, and ends with them.

coming ── inputs are here ──► ready ── all are ready: the ranks train ──► node 0 commits: done
   ▲                            │                    │
   └── another node leaves ─────┘                    └── another node ends or leaves: NodeLost
"""

import socket
import threading
import time
from collections.abc import Callable

from edgetune_contract.stages import ExitCode, Stage
from edgetune_jobs.errors import Interrupted, NodeLost, PeerLost, TransientError
from edgetune_jobs.runtime.failures import failure_of
from edgetune_jobs.runtime.nodes.hub import MAX_LINE, Hub, Timing, hang_up
from edgetune_jobs.runtime.nodes.place import NodePlace
from edgetune_jobs.runtime.nodes.verdict import View, verdict
from edgetune_jobs.runtime.nodes.words import GroupState, NodeIdentity, NodeWord, Phase
from edgetune_jobs.runtime.outputs import library_versions

_LOOPBACK = "127.0.0.1"
_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 0.1
# What is needed of the deadline to end with a message.
_SECONDS_TO_END = 10.0


class NodeGroup:
    """This node and its connection to the others. Thread-safe; used for one attempt."""

    def __init__(self, place: NodePlace, identity: NodeIdentity, timing: Timing, deadline: float | None = None) -> None:
        """Begin to meet the others, in the background.

        Args:
            place: of this node.
            identity: what all nodes must have in common.
            timing: how long is waited.
            deadline: when the stage is ended at the latest, by time.monotonic().

        Raises:
            TransientError: the port of the meeting is in use on node 0.
        """
        self.place = place
        self._ranks = identity.ranks
        self._timing = timing
        self._deadline = deadline
        self._changed = threading.Condition()
        self._state = GroupState()
        self._word = NodeWord(node=place.node, identity=identity)
        self._connection: socket.socket | None = None
        self._why = ""
        self._complete_at = 0.0
        self._closed = threading.Event()
        self._hub = Hub(place, identity, timing) if place.node == 0 else None
        for work in (self._stay_connected, self._beat):
            threading.Thread(target=work, name="node", daemon=True).start()

    @property
    def is_broken(self) -> bool:
        """Whether another node has ended, so that this attempt cannot be finished."""
        with self._changed:
            return bool(self._state.port) and self._view.is_broken

    @property
    def has_heard_why(self) -> bool:
        """Whether that node has ended with a word: then rank 0 has nothing more to save."""
        with self._changed:
            return any(word.phase is Phase.ENDED for word in self._state.words if word.node != self.place.node)

    def gather(self, stop: threading.Event, say: Callable[[str], None]) -> str:
        """Wait until all nodes have their inputs; where their ranks find each other, as tcp://host:port.

        Raises:
            NodeLost: a node did not come in time, or the others began without this one; the message names it.
            TransientError: this node's image is another than that of node 0.
            Interrupted: `stop` was set.
        """
        self._say(phase=Phase.READY)
        began, has_said = time.monotonic(), False
        patience = self._timing.patience
        if self._deadline is not None:
            patience = max(0.0, min(patience, self._deadline - began - _SECONDS_TO_END))
        with self._changed:
            while not self._state.port:
                if self._state.refusal:
                    raise TransientError(self._state.refusal)
                if stop.is_set():
                    raise Interrupted("stopped by SIGTERM before the first step of this attempt")
                missing = self._missing()
                if missing and time.monotonic() > max(began, self._complete_at) + patience:
                    raise NodeLost(self._described_absence(missing, patience))
                if not has_said:
                    has_said = True
                    say(f"waiting for the other nodes of the {self.place.nodes}")
                self._changed.wait(_LOOK_SECONDS)
            self._say(phase=Phase.TRAINING)
            self._wait(self._is_heard)
            if self._connection is None:
                raise NodeLost(
                    f"{self.place.name_of(0, self._ranks)} left as the ranks were about to start: {self._why}"
                )
            return f"tcp://{_LOOPBACK if self.place.node == 0 else self.place.host}:{self._state.port}"

    def wait_for_commit(self) -> None:
        """Wait until node 0 has committed the output.

        Raises:
            NodeLost: it did not.
        """
        with self._changed:
            while not self._state.is_done:
                if self._view.is_broken:
                    loss = self._view.loss()
                    assert loss is not None  # noqa: S101 - that is what broken means
                    raise loss
                self._changed.wait(_LOOK_SECONDS)
        self.leave()

    def commit(self) -> None:
        """Let the others know that the output is committed; for node 0."""
        self._say(phase=Phase.DONE)
        self._wait(self._is_heard)
        self.leave()

    def end(self, error: BaseException, was_stopped: bool) -> BaseException:
        """Let the others know how this node ends; the error that it reports.

        Args:
            error: with which its work ended.
            was_stopped: SIGTERM has arrived here.
        """
        is_by_another = isinstance(error, PeerLost) or (isinstance(error, Interrupted) and not was_stopped)
        # A rank that had to be killed may be what the others have ended for: only their words can say.
        is_open = isinstance(error, PeerLost) and error.killed
        if not is_open:
            self._end_with(error, is_by_another)
        if is_by_another:
            self._wait(lambda: self._view.have_all_ended)
        with self._changed:
            found = verdict(error, was_stopped, self._view)
        if is_open:
            self._end_with(found)
            with self._changed:
                found = verdict(found, was_stopped, self._view)
        self.leave()
        return found

    def _end_with(self, error: BaseException, is_by_another: bool = False) -> None:
        failure = failure_of(error, Stage.TRAIN)
        code = ExitCode.PEER_LOST if is_by_another else failure.exit_code
        self._say(phase=Phase.ENDED, code=int(code), message=failure.message, step=failure.step)
        # Then this node knows whose fault was first.
        self._wait(self._is_heard)

    def _is_heard(self) -> bool:
        """Whether node 0 has answered the last word, so that all know it, or is gone."""
        return self._connection is None or self._state.word_of(self.place.node) == self._word

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(condition, self._timing.farewell)

    def leave(self) -> None:
        """End the connection."""
        self._closed.set()
        with self._changed:
            if self._connection is not None:
                hang_up(self._connection)
        if self._hub is not None:
            self._hub.close()

    @property
    def _view(self) -> View:
        return View(self.place, self._ranks, self._state, self._connection is not None)

    def _missing(self) -> list[int]:
        return [node for node in range(self.place.nodes) if self._state.word_of(node) is None]

    def _described_absence(self, missing: list[int], patience: float) -> str:
        place = self.place
        if self._connection is None or place.node in missing:
            # Not even this node is among those that node 0 knows.
            missing, why = [0], self._why
        else:
            why = (
                f"their containers have not started, or they cannot connect to TCP port {place.port} of node 0: a "
                "NetworkPolicy must allow all TCP between the Pods of this Job"
            )
        names = ", ".join(place.name_of(node, self._ranks) for node in missing)
        return f"{names} did not come within {patience:g} s: {why}"

    def _say(self, **changes: object) -> None:
        with self._changed:
            self._word = self._word.model_copy(update=changes)
            self._send()

    def _send(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.sendall(self._word.line())
        except OSError:
            self._connection = None

    def _beat(self) -> None:
        while not self._closed.wait(self._timing.beat):
            with self._changed:
                self._send()

    def _stay_connected(self) -> None:
        """Connect to node 0 and hear it, again and again until the ranks have started."""
        host = _LOOPBACK if self.place.node == 0 else self.place.host
        while not (self._closed.is_set() or self._state.refusal or self._word.phase is Phase.TRAINING):
            try:
                connection = socket.create_connection((host, self.place.port), timeout=_CONNECT_SECONDS)
            except OSError as error:
                self._why = _why_not_connected(error, self.place)
            else:
                self._why = (
                    f"{self.place.address} accepts connections and does not answer: node 0 is still ending its earlier "
                    "attempt, or its process hangs"
                )
                self._listen(connection)
            self._closed.wait(self._timing.retry)

    def _listen(self, connection: socket.socket) -> None:
        connection.settimeout(None if self.place.node == 0 else self._timing.silence)
        with connection, connection.makefile("rb") as lines:
            with self._changed:
                self._connection = connection
                self._send()
            try:
                while line := lines.readline(MAX_LINE):
                    self._note(GroupState.decode(line.decode()))
            except (OSError, ValueError) as error:
                self._why = f"the connection to {self.place.address} failed: {error}"
        with self._changed:
            self._connection = None
            if not self._state.port and not self._state.refusal:
                self._state = GroupState()
            self._changed.notify_all()

    def _note(self, state: GroupState) -> None:
        with self._changed:
            self._state = state
            if not self._missing():
                self._complete_at = time.monotonic()
            self._changed.notify_all()


def meet(place: NodePlace, ranks: int, digest: str, image: str, deadline: float | None) -> NodeGroup:
    """Begin to meet the other nodes of a training.

    Args:
        place: of this node.
        ranks: number of ranks of each node.
        digest: of the training.
        image: reference of the container image.
        deadline: when the stage is ended at the latest, by time.monotonic().

    Raises:
        TransientError: the port of the meeting is in use on node 0.
    """
    version = library_versions().get("edgetune", "")
    identity = NodeIdentity(digest=digest, nodes=place.nodes, ranks=ranks, version=version, image=image)
    return NodeGroup(place, identity, Timing(), deadline)


def _why_not_connected(error: OSError, place: NodePlace) -> str:
    if isinstance(error, socket.gaierror):
        return (
            f"the name {place.host} cannot be resolved ({error.strerror}): the Job's headless Service is missing, or "
            "the Pod of node 0 does not exist"
        )
    reason = "timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return (
        f"{place.address} cannot be reached ({reason}): the container of node 0 has not started, or a NetworkPolicy is "
        f"in between, which must allow all TCP between the Pods of this Job: port {place.port}, and the ports that "
        "Gloo and NCCL choose"
    )
