"""The stage train on one of several nodes, without torch: its ranks meet in a folder and compute nothing.

python -m support.light_nodes         the stage's process; environment: EDGETUNE_TEST_FAULT, "<rank> <fault>" or empty
python -m support.light_nodes rank    the process of a rank

For every other stage, it is stage_process.py.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edgetune_contract.stages import Stage
from edgetune_jobs.__main__ import _end, _take_over, run_process
from edgetune_jobs.errors import Interrupted, OutOfGpuMemory, PeerLost, TrainingDiverged
from edgetune_jobs.runtime.ranks.plan import RankPlan
from edgetune_jobs.runtime.ranks.rank_process import run_rank
from edgetune_jobs.runtime.ranks.task import RankTask
from edgetune_jobs.runtime.stage_run import StageCode
from edgetune_jobs.stage import OneRank, StageContext, StageOutput
from support import stage_process
from support.node_conditions import apply_conditions

COMMAND = (sys.executable, "-m", "support.light_nodes")
FAULT = "EDGETUNE_TEST_FAULT"
FOLDER = "EDGETUNE_TEST_FOLDER"
"""Folder in which the ranks of all nodes meet."""

WORK = "working"
"""What rank 0 says once all ranks are there."""


class LightRanks(OneRank):
    """Ranks that see of each other whether they are there, and whether one was stopped."""

    def __init__(self, task: RankTask) -> None:
        self.rank = task.rank
        self.size = task.size
        self._folder = Path(os.environ[FOLDER])
        for rank in range(task.size):
            if rank == task.rank:
                (self._folder / f"{rank}.new").write_text(str(os.getpid()))
                (self._folder / f"{rank}.new").rename(self._folder / str(rank))
            self._wait_for(self._folder / str(rank))

    def gather(self, *values: float) -> Sequence[tuple[float, ...]]:
        """The own values; raises if another rank has ended without a word."""
        for rank in range(self.size):
            pid = int((self._folder / str(rank)).read_text())
            if not Path(f"/proc/{pid}").exists() and not self.is_stopped:
                raise PeerLost(f"rank {rank} of {self.size} has ended")
        return [values] * self.size

    @property
    def is_stopped(self) -> bool:
        """Whether a rank was stopped."""
        return (self._folder / "stopped").exists()

    def stop(self) -> None:
        """Let all ranks stop."""
        (self._folder / "stopped").touch()

    def wait_for_checkpoint(self) -> None:
        """Rank 0 has saved; the others wait until it has."""
        if self.rank == 0:
            (self._folder / "saved").touch()
        self._wait_for(self._folder / "saved")

    def _wait_for(self, path: Path) -> None:
        while not path.exists():
            time.sleep(0.01)


def body(context: StageContext) -> StageOutput:
    """Work until it is stopped or a fault occurs; without a fault, for a moment."""
    ranks = context.ranks
    assert isinstance(ranks, LightRanks)
    number, _, fault = os.environ.get(FAULT, "").partition(" ")
    context.progress.say(WORK)
    if fault == "diverge":
        raise TrainingDiverged("the loss is nan at step 3")
    if number == str(ranks.rank):
        _fail(fault)
    while fault:
        if context.stop.is_set():
            ranks.stop()
        if ranks.is_stopped:
            ranks.wait_for_checkpoint()
            raise Interrupted("stopped by SIGTERM after step 3 of 6; its checkpoint is in the store", 3)
        ranks.gather()
        time.sleep(0.02)
    if ranks.rank:
        return StageOutput()
    (context.output / "adapter").mkdir()
    (context.output / "adapter" / "weights.safetensors").write_bytes(b"weights")
    return StageOutput(("adapter",), {"worldSize": ranks.size})


def _fail(fault: str) -> None:
    if fault == "memory":
        raise OutOfGpuMemory("it does not fit")
    if fault == "kill":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "freeze":
        os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)


def load_code(stage: Stage) -> StageCode:
    """The body above for train."""
    if stage is not Stage.TRAIN:
        return stage_process.load_code(stage)
    return StageCode(
        stage_process.work,
        plan_ranks=lambda _training, _given, _processes, place: RankPlan(1, (), place.node, place.nodes),
        rank_command=(*COMMAND, "rank"),
    )


if __name__ == "__main__":
    apply_conditions()
    if sys.argv[1:] == ["rank"]:
        signals, stream = _take_over()
        _end(run_rank(signals, stream.buffer, sys.stdin.buffer, body, LightRanks))
    run_process(load_code)
