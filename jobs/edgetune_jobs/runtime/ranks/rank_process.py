"""The process of one rank: it runs the stage's body with the other ranks, and reports to the stage's process."""

import logging
import os
import threading
from collections.abc import Callable
from typing import BinaryIO

from edgetune_contract.stages import ExitCode, Stage
from edgetune_jobs.errors import Interrupted, PeerLost
from edgetune_jobs.models.loading import peak_resident_bytes
from edgetune_jobs.runtime.failures import BUG, failure_of
from edgetune_jobs.runtime.outputs import StageUpload
from edgetune_jobs.runtime.ranks.communication import connect
from edgetune_jobs.runtime.ranks.shared_checkpoints import SharedCheckpoints
from edgetune_jobs.runtime.ranks.task import RankMessage, RankOutput, RankProgress, RankTask
from edgetune_jobs.runtime.signals import StopSignals
from edgetune_jobs.stage import OneRank, Ranks, StageContext, StageOutput
from edgetune_jobs.store.access import StorageAccess
from edgetune_jobs.training.checkpoints import StoreCheckpoints

logger = logging.getLogger(__name__)

RankBody = Callable[[StageContext], StageOutput]


class LinesOfRank:
    """Progress of rank 0, as lines to the stage's process; of the other ranks, nothing."""

    def __init__(self, stream: BinaryIO, rank: int) -> None:
        self._stream = stream
        self._rank = rank

    def update(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Report `done` of `total` units and current figures."""
        if self._rank == 0:
            self.write(RankMessage(progress=RankProgress(done=done, total=total, unit=unit, figures=figures)))

    def say(self, message: str) -> None:
        """Report what starts now."""
        if self._rank == 0:
            self.write(RankMessage(say=message))

    def write(self, message: RankMessage) -> None:
        """Write a line at once."""
        self._stream.write(message.line())
        self._stream.flush()


def run_rank(
    signals: StopSignals,
    stream: BinaryIO,
    lifeline: BinaryIO,
    body: RankBody,
    connect_ranks: Callable[[RankTask], Ranks] = connect,
) -> int:
    """Run the body as the rank that the task names; the exit code of the contract.

    Args:
        signals: installed signal handlers; a signal sets the context's `stop`.
        stream: gets the messages to the stage's process.
        lifeline: has the task as its first line, and ends when the stage's process does: then this one ends, too.
        body: the stage's body.
        connect_ranks: connects to the other ranks.
    """
    task = RankTask.decode(lifeline.readline().decode())
    threading.Thread(target=_end_with_stage, args=(lifeline,), name="lifeline", daemon=True).start()
    lines = LinesOfRank(stream, task.rank)
    _name_in_log(task)
    access = StorageAccess(task.request.store, task.credentials_folder)
    try:
        ranks = OneRank() if task.size == 1 else connect_ranks(task)
        output = _run(body, _context(task, access, lines, signals, ranks))
    except BaseException as error:
        failure = failure_of(error, Stage.TRAIN)
        logger.error("%s", failure.message, exc_info=failure.exit_code == BUG)
        lines.write(RankMessage(failure=failure, peer_lost=isinstance(error, PeerLost)))
        return failure.exit_code
    sent, received = access.traffic.sent, access.traffic.received
    memory = peak_resident_bytes()
    lines.write(RankMessage(output=output, memory_bytes=memory, sent_bytes=sent, received_bytes=received))
    return ExitCode.DONE


def _run(body: RankBody, context: StageContext) -> RankOutput:
    """Run the body. All ranks are stopped after the same step, and end once rank 0 has saved the checkpoint.

    Raises:
        PeerLost: rank 0 has not.
    """
    try:
        return RankOutput.of(body(context))
    except Interrupted:
        try:
            context.ranks.gather(0)
        except PeerLost:
            if context.ranks.rank:
                raise  # rank 0 has saved it, whatever has become of the others
        raise


def _name_in_log(task: RankTask) -> None:
    """Begin each line of the log with the rank, as all ranks of a node write to the same stream."""

    def name(record: logging.LogRecord) -> bool:
        record.name = f"{task.name_of(task.rank)}: {record.name}"
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(name)


def _end_with_stage(lifeline: BinaryIO) -> None:
    lifeline.read()
    os._exit(ExitCode.TRANSIENT)


def _context(
    task: RankTask, access: StorageAccess, lines: LinesOfRank, signals: StopSignals, ranks: Ranks
) -> StageContext:
    store = access.open_store()
    keep = task.request.parameters.training.checkpoint.keep
    checkpoints = StoreCheckpoints(store, task.train_digest, keep)
    return StageContext(
        request=task.request,
        inputs=task.inputs,
        output=task.output,
        streams=StageUpload(store, task.request.stage, task.train_digest),
        scratch=task.scratch,
        progress=lines,
        stop=signals.event,
        deadline=task.deadline,
        checkpoints=SharedCheckpoints(checkpoints, ranks, task.shared, task.first_of_node),
        ranks=ranks,
        base_copy_uri=task.base_copy_uri,
    )
