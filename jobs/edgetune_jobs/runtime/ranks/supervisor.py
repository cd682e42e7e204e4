"""Starts the ranks of a training, watches them, and decides how it ended.

The stage's process computes nothing itself: it passes on a signal, and when a rank fails it ends the others, which
wait for it. Nothing outlives it: a rank ends when its standard input does.
"""

import logging
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from edgetune_contract.stages import ExitCode
from edgetune_jobs.runtime.nodes.group import NodeGroup
from edgetune_jobs.runtime.ranks.outcome import EndOfRank, outcome_of
from edgetune_jobs.runtime.ranks.plan import RankPlan
from edgetune_jobs.runtime.ranks.task import RankMessage, RankTask
from edgetune_jobs.stage import Progress, StageContext, StageOutput
from edgetune_jobs.store.s3.traffic import Traffic

logger = logging.getLogger(__name__)

RANK_COMMAND = (sys.executable, "-P", "-m", "edgetune_jobs", "rank")

# How often a signal to this process is looked for.
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class StoreOfRanks:
    """How ranks reach the checkpoints of a training."""

    train_digest: str
    credentials_folder: Path | None = None
    traffic: Traffic = field(default_factory=Traffic)
    """Counts what ranks move."""


@dataclass(frozen=True)
class Patience:
    """How long is waited for ranks, in seconds."""

    for_answers: float = 600.0
    """By other ranks: longer than a checkpoint takes to be saved, and than ranks load apart."""

    for_end: float = 10.0
    """By this process, once one rank has failed or the first one is done; then the others are killed."""

    for_saving: float = 120.0
    """By this process, once another node is gone: rank 0 may be about to save the checkpoint with which all stop."""


@dataclass
class _Rank:
    number: int
    process: "subprocess.Popen[bytes]"
    last: RankMessage | None = None
    was_killed: bool = False
    """By this process."""

    was_stopped: bool = False
    """This process sent it SIGTERM."""


def train_in_ranks(
    context: StageContext,
    plan: RankPlan,
    store: StoreOfRanks,
    command: Sequence[str] = RANK_COMMAND,
    patience: Patience = Patience(),
    group: NodeGroup | None = None,
) -> StageOutput:
    """Run the stage train in several processes; the output of the first one.

    Args:
        context: of the stage. Its checkpoints are not used: rank 0 has its own.
        plan: how many processes, and on which GPUs.
        store: of the checkpoints.
        command: starts the process of a rank.
        patience: how long is waited for ranks.
        group: of this node and others; None if there are no others.

    Raises:
        NodeLost: another node did not come.
        StageError: the training failed, with the error of the rank that failed first.
        ReportedBug: a rank failed with an error of no such class.
    """
    rendezvous = None if group is None else group.gather(context.stop, context.progress.say)
    supervisor = _Supervisor(context.progress, context.stop, patience, plan.world, group)
    try:
        for task in _tasks(context, plan, store, patience.for_answers, rendezvous):
            supervisor.start(command, task, plan.environment(task.rank, os.environ))
        ends = supervisor.watch()
    finally:
        supervisor.close()
    store.traffic.sent += sum(end.last.sent_bytes for end in ends if end.last)
    store.traffic.received += sum(end.last.received_bytes for end in ends if end.last)
    return outcome_of(ends)


def _tasks(
    context: StageContext, plan: RankPlan, store: StoreOfRanks, timeout_seconds: float, rendezvous: str | None
) -> Sequence[RankTask]:
    shared = context.scratch / "shared"
    shared.mkdir()
    tasks = []
    for rank in plan.ranks:
        scratch = context.scratch / f"rank-{rank}"
        scratch.mkdir()
        tasks.append(
            RankTask(
                request=context.request,
                rank=rank,
                size=plan.world,
                nodes=plan.nodes,
                per_device=plan.per_device,
                rendezvous=rendezvous or str(shared / "rendezvous"),
                timeout_seconds=timeout_seconds,
                inputs=dict(context.inputs),
                output=context.output,
                scratch=scratch,
                shared=shared,
                deadline=context.deadline,
                train_digest=store.train_digest,
                base_copy_uri=context.base_copy_uri,
                credentials_folder=store.credentials_folder,
            )
        )
    return tasks


class _Supervisor:
    """The processes of this node's ranks."""

    def __init__(
        self, progress: Progress, stop: threading.Event, patience: Patience, world: int, group: NodeGroup | None
    ) -> None:
        self._progress = progress
        self._patience = patience
        self._stop = stop
        self._world = world
        self._group = group
        self._broken_at: float | None = None
        self._ranks: list[_Rank] = []
        self._events: queue.Queue[tuple[_Rank, bytes | None]] = queue.Queue()

    def start(self, command: Sequence[str], task: RankTask, environment: Mapping[str, str]) -> None:
        """Start a rank, and read what it reports."""
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            process_group=0,  # Ctrl-C reaches only the stage's process, which passes it on
        )
        rank = _Rank(task.rank, process)
        self._ranks.append(rank)
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - pipes were asked for
        with suppress(BrokenPipeError):  # it has ended already, which is noticed when it is waited for
            process.stdin.write(task.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        threading.Thread(target=self._read, args=(rank, process.stdout), daemon=True).start()

    def _read(self, rank: _Rank, stream: BinaryIO) -> None:
        with stream:
            for line in stream:
                self._events.put((rank, line))
        rank.process.wait()
        self._events.put((rank, None))

    def watch(self) -> Sequence[EndOfRank]:
        """Pass on progress and signals until all ranks have ended; their ends, in this order.

        Once one has failed, the first one is done, or another node has ended, they end by themselves or are killed.
        """
        ends: list[EndOfRank] = []
        kill_at, is_stopping = math.inf, False
        while len(ends) < len(self._ranks):
            if self._stop.is_set() and not is_stopping:
                is_stopping = True
                self._terminate()
            kill_at = min(kill_at, self._end_by_others())
            if time.monotonic() >= kill_at:
                kill_at = math.inf
                self._kill()
            try:
                rank, line = self._events.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            if line is not None:
                self._note(rank, line)
                continue
            end = self._end_of(rank)
            ends.append(end)
            # A rank that was stopped may end while rank 0 still saves the checkpoint.
            if rank is self._ranks[0] or end.code not in (ExitCode.DONE, ExitCode.INTERRUPTED):
                kill_at = min(kill_at, time.monotonic() + self._patience.for_end)
        return ends

    def _end_by_others(self) -> float:
        """When the ranks are killed because another node has ended, by time.monotonic()."""
        if self._group is None or not self._group.is_broken:
            return math.inf
        if self._broken_at is None:
            self._broken_at = time.monotonic()
        patience = self._patience
        return self._broken_at + (patience.for_end if self._group.has_heard_why else patience.for_saving)

    def _end_of(self, rank: _Rank) -> EndOfRank:
        code = rank.process.returncode
        return EndOfRank(rank.number, self._world, code, rank.last, rank.was_killed, rank.was_stopped)

    def _note(self, rank: _Rank, line: bytes) -> None:
        message = RankMessage.decode(line.decode())
        if message.progress is not None:
            done = message.progress
            self._progress.update(done.done, done.total, done.unit, **done.figures)
        elif message.say is not None:
            self._progress.say(message.say)
        else:
            rank.last = message

    def _terminate(self) -> None:
        for rank in self._ranks:
            if rank.process.poll() is None:
                rank.was_stopped = True
                rank.process.terminate()

    def _kill(self) -> None:
        for rank in self._ranks:
            if rank.process.poll() is None and not rank.was_killed:
                logger.warning("rank %d did not end by itself and is killed", rank.number)
                rank.was_killed = True
                rank.process.kill()

    def close(self) -> None:
        """End all processes that are left."""
        for rank in self._ranks:
            if rank.process.poll() is None:
                rank.process.kill()
            rank.process.wait()
            if rank.process.stdin is not None:
                rank.process.stdin.close()
