"""A rank without a training: it exchanges numbers with the others, and fails as a test asks.

python rank_faults.py      environment: EDGETUNE_TEST_FAULT, "<rank> <fault>" or empty
"""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress

from edgetune_jobs.__main__ import run_rank_process
from edgetune_jobs.errors import AccessDenied, Interrupted, OutOfGpuMemory, PeerLost, TrainingDiverged
from edgetune_jobs.stage import StageContext, StageOutput

FAULT = "EDGETUNE_TEST_FAULT"
STEPS = 6
AT_STEP = 3


def fail_with(error: Exception) -> None:
    """Raise an error."""
    raise error


def hang() -> None:
    """Say nothing more, and do not end on SIGTERM."""
    while True:
        signal.pause()


FAULTS: Mapping[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(1),
    "hang": hang,
    "memory": lambda: fail_with(OutOfGpuMemory("it does not fit")),
    "bug": lambda: fail_with(KeyError("no such layer")),
}

SAVE_FAULTS: Mapping[str, Callable[[], None]] = {
    "denied save": lambda: fail_with(AccessDenied("the store denies access to checkpoints/")),
    "killed save": FAULTS["kill"],
}
"""Faults after the last step of a training that is stopped."""


def body(context: StageContext) -> StageOutput:
    """Take some steps with the other ranks; until stopped, if the fault is `wait` or one of saving."""
    ranks = context.ranks
    number, _, fault = os.environ.get(FAULT, "").partition(" ")
    step = 0
    while step < STEPS or fault == "wait" or fault in SAVE_FAULTS:
        step += 1
        context.progress.update(step, STEPS, "steps", loss=1.0 / step)
        if step == AT_STEP and str(ranks.rank) == number and fault in FAULTS:
            FAULTS[fault]()
        found = ranks.gather(ranks.rank, step, context.stop.is_set())
        assert [row[:2] for row in found] == [(rank, step) for rank in range(ranks.size)], found
        if any(stopped for _, _, stopped in found):
            if str(ranks.rank) == number and fault in SAVE_FAULTS:
                with suppress(PeerLost):  # the others end first
                    ranks.gather(0)
                SAVE_FAULTS[fault]()
            raise Interrupted(f"stopped after step {step}", step)
        if step == AT_STEP and fault == "diverge":
            raise TrainingDiverged("the loss is nan at step 3")
    return StageOutput(("adapter",), {"steps": step}, {"ranks": ranks.described}, ("a warning",))


if __name__ == "__main__":
    run_rank_process(body)
