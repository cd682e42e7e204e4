"""How a training in several ranks ended: from the ends of all processes to one output or one error."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgetune_contract.request import Failure
from edgetune_contract.stages import ExitCode
from edgetune_jobs.errors import (
    AccessDenied,
    Interrupted,
    InvalidInput,
    OutOfGpuMemory,
    PeerLost,
    ReportedBug,
    StageError,
    TrainingDiverged,
    TransientError,
)
from edgetune_jobs.runtime.ranks.task import RankMessage
from edgetune_jobs.runtime.usage import USED_MEMORY
from edgetune_jobs.stage import StageOutput

_CLASSES: Mapping[int, type[StageError]] = {
    each.exit_code: each for each in (InvalidInput, AccessDenied, OutOfGpuMemory, TrainingDiverged, TransientError)
}
_RESUMES = "the next attempt resumes from the newest checkpoint"


@dataclass(frozen=True)
class EndOfRank:
    """How one rank ended."""

    rank: int
    size: int
    """Number of ranks on all nodes."""

    code: int
    """Exit code; negative: the signal that killed it."""

    last: RankMessage | None
    """Its output or its failure; None if it ended without."""

    was_killed: bool
    """Whether it did not end by itself after another rank had failed."""

    was_stopped: bool
    """Whether the stage's process sent it SIGTERM."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"rank {self.rank} of {self.size}"

    @property
    def failure(self) -> Failure | None:
        """What it reported, if it failed."""
        return None if self.last is None else self.last.failure

    @property
    def was_stopped_in_start(self) -> bool:
        """Whether SIGTERM ended it before it had a handler: then no rank has trained, as ranks wait for each other."""
        return self.was_stopped and self.last is None and self.code == -signal.SIGTERM

    @property
    def was_interrupted(self) -> bool:
        """Whether it reported that it was stopped."""
        return self.failure is not None and self.failure.exit_code == ExitCode.INTERRUPTED

    @property
    def lost_peer(self) -> bool:
        """Whether it failed because of another rank."""
        return self.last is not None and self.last.peer_lost


def outcome_of(ends: Sequence[EndOfRank]) -> StageOutput:
    """The output of a node's first rank with the memory that all its ranks used, or the error of the training.

    The error is that of the rank that failed first by itself. The training was interrupted only if the first rank says
    so, which is rank 0 that saves the checkpoint, or knows it to be saved; or if a rank was stopped in its start.

    Args:
        ends: of all ranks of a node, in the order in which they ended.

    Raises:
        StageError: the training failed.
        ReportedBug: a rank failed with an error of no such class.
    """
    first = min(ends, key=lambda end: end.rank)
    if first.last is not None and first.last.output is not None:
        output = first.last.output.restored()
        memory = sum(end.last.memory_bytes for end in ends if end.last is not None)
        return replace(output, metrics={**output.metrics, USED_MEMORY: memory})
    own = [end for end in ends if end.failure is not None and not end.lost_peer]
    if not first.was_interrupted:
        own = [end for end in own if not end.was_interrupted]
    if own:
        raise _error_of(own, first)
    silent = [end for end in ends if end.failure is None and not end.was_killed and end.code]
    died = next((end for end in silent if not end.was_stopped_in_start), None)
    hung = ", ".join(str(end.rank) for end in ends if end.was_killed)
    killed = f"; rank {hung} had to be killed" if hung else ""
    if died is not None:
        # NCCL aborts a rank that waits for another one in vain: then the one that was killed matters.
        raise TransientError(f"{_words_for(died)}{killed if died.code == -signal.SIGABRT else ''}; {_RESUMES}")
    if silent:
        raise Interrupted("stopped by SIGTERM before the first step of this attempt")
    lost = first if first.lost_peer else next((end for end in ends if end.lost_peer), None)
    reason = "it ended without a result" if lost is None or lost.failure is None else lost.failure.message
    raise PeerLost(f"{reason}{killed}: {_RESUMES}", killed=bool(hung))


def _error_of(own: Sequence[EndOfRank], first: EndOfRank) -> Exception:
    """The error that the first of these ranks reported; if the node's first one reported the like, its own."""
    chosen = first if first in own and first.code == own[0].code else own[0]
    failure = chosen.failure
    assert failure is not None  # noqa: S101 - of those that reported one
    if chosen.was_interrupted:
        return Interrupted(failure.message, failure.step)
    # What several report alike concerns all of them.
    message = failure.message if len(own) == first.size else f"{chosen.name}: {failure.message}"
    kind = _CLASSES.get(failure.exit_code)
    return ReportedBug(message) if kind is None else kind(message)


def _words_for(died: EndOfRank) -> str:
    """Why a rank ended that has said nothing."""
    if died.code == -signal.SIGKILL:
        return (
            f"{died.name} was killed (SIGKILL), probably because the container ran out of memory: raise the memory of "
            "the stage train in the profile if it happens again"
        )
    if died.code < 0:
        return f"{died.name} was ended by {signal.Signals(-died.code).name}"
    return f"{died.name} ended with exit code {died.code} and no report; its log says why"
