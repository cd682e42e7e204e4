"""From the ends of all ranks to one error: whose end decides, in whatever order they ended."""

import signal
from collections.abc import Sequence
from itertools import permutations

import pytest

from edgetune_contract.request import Failure
from edgetune_contract.stages import ExitCode
from edgetune_jobs.errors import AccessDenied, Interrupted, PeerLost, StageError, TransientError
from edgetune_jobs.runtime.failures import failure_of
from edgetune_jobs.runtime.ranks.outcome import EndOfRank, outcome_of
from edgetune_jobs.runtime.ranks.task import RankMessage

STOPPED = Interrupted("stopped by SIGTERM after step 2 of 6; its checkpoint is in the store", 2)
DENIED = AccessDenied("the store denies access to checkpoints/")
LOST = PeerLost("rank 1 of 2 has ended")
KILLED = -signal.SIGKILL
ENDED_BY_STOP = -signal.SIGTERM


def end(rank: int, how: StageError | int, *, was_killed: bool = False, was_stopped: bool = True) -> EndOfRank:
    """An end with this error, or by this signal and without a report."""
    if isinstance(how, int):
        return EndOfRank(rank, 2, how, None, was_killed, was_stopped)
    failure: Failure = failure_of(how)
    last = RankMessage(failure=failure, peer_lost=how is LOST)
    return EndOfRank(rank, 2, failure.exit_code, last, was_killed, was_stopped)


def errors_of(*ends: EndOfRank) -> Sequence[Exception]:
    """The error for each order of these ends."""
    errors = []
    for ordered in permutations(ends):
        with pytest.raises(StageError) as raised:
            outcome_of(ordered)
        errors.append(raised.value)
    return errors


@pytest.mark.parametrize(
    ("first", "error", "message"),
    [
        (end(0, DENIED), AccessDenied, "rank 0 of 2: the store denies access"),
        (end(0, KILLED), TransientError, "rank 0 of 2 was killed (SIGKILL)"),
        (end(0, KILLED, was_killed=True), PeerLost, "it ended without a result; rank 0 had to be killed"),
        (end(0, LOST), PeerLost, "rank 1 of 2 has ended"),
    ],
    ids=["denied", "killed", "hung", "lost"],
)
def test_a_stop_without_the_checkpoint_of_rank_0_is_no_interruption(
    first: EndOfRank, error: type[StageError], message: str
) -> None:
    for found in errors_of(end(1, STOPPED), first):
        assert type(found) is error
        assert str(found).startswith(message)


def test_a_stop_is_an_interruption_if_rank_0_saved_the_checkpoint() -> None:
    for found in errors_of(end(0, STOPPED), end(1, STOPPED)):
        assert isinstance(found, Interrupted)
        assert (found.exit_code, found.step, str(found)) == (ExitCode.INTERRUPTED, 2, str(STOPPED))


@pytest.mark.parametrize(
    "first",
    [end(0, ENDED_BY_STOP), end(0, KILLED, was_killed=True), end(0, LOST)],
    ids=["starting", "waiting for the other", "noticed the end of the other"],
)
def test_a_stop_while_a_rank_starts_is_an_interruption(first: EndOfRank) -> None:
    for found in errors_of(end(1, ENDED_BY_STOP), first):
        assert isinstance(found, Interrupted)
        assert (found.step, str(found)) == (None, "stopped by SIGTERM before the first step of this attempt")


@pytest.mark.parametrize(("first", "error"), [(DENIED, AccessDenied), (KILLED, TransientError)])
def test_a_rank_that_fails_while_the_other_is_stopped_in_its_start_decides(
    first: StageError | int, error: type[StageError]
) -> None:
    for found in errors_of(end(1, ENDED_BY_STOP), end(0, first)):
        assert type(found) is error
        assert str(found).startswith("rank 0 of 2")


def test_a_sigterm_from_elsewhere_is_no_interruption() -> None:
    for found in errors_of(end(1, ENDED_BY_STOP, was_stopped=False), end(0, LOST)):
        assert type(found) is TransientError
        assert str(found).startswith("rank 1 of 2 was ended by SIGTERM")


def test_a_rank_that_hangs_is_named_beside_one_that_nccl_has_aborted() -> None:
    for found in errors_of(end(0, -signal.SIGABRT), end(1, KILLED, was_killed=True)):
        assert type(found) is TransientError
        assert str(found) == (
            "rank 0 of 2 was ended by SIGABRT; rank 1 had to be killed; the next attempt resumes from the newest "
            "checkpoint"
        )
