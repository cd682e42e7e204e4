"""The stage train on one of several nodes, with ranks that fail as a test asks.

python -m support.node_stage         the stage's process; environment: EDGETUNE_TEST_FAULT, "<rank> <fault> <step>"
python -m support.node_stage rank    the process of a rank
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from edgetune_contract.stages import Stage
from edgetune_jobs.__main__ import run_process, run_rank_process
from edgetune_jobs.runtime.process import load_stage_code
from edgetune_jobs.runtime.stage_run import StageCode
from edgetune_jobs.stage import StageContext, StageOutput
from support.node_conditions import apply_conditions

FAULT = "EDGETUNE_TEST_FAULT"
# Not by its path: modules of this folder would then hide libraries of the same name.
COMMAND = (sys.executable, "-m", "support.node_stage")


def _stage_process() -> int:
    """The stage's process: this one, or the one that has started this rank."""
    return os.getppid() if sys.argv[1:] else os.getpid()


def _stop(_trainer: Any, context: StageContext) -> None:
    """Let SIGTERM reach this node within this step."""
    os.kill(_stage_process(), signal.SIGTERM)
    assert context.stop.wait(30)


def _kill(_trainer: Any, _context: StageContext) -> None:
    """Kill all processes of this node at once."""
    os.kill(_stage_process(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze(_trainer: Any, _context: StageContext) -> None:
    """Halt all processes of this node, as a machine that hangs does; their connections stay open."""
    os.kill(_stage_process(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


def _make_infinite(trainer: Any, _context: StageContext) -> None:
    next(each for each in trainer.model.parameters() if each.requires_grad).grad[0, 0] = float("inf")


def _run_out_of_memory(_trainer: Any, _context: StageContext) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


FAULTS: Mapping[str, Callable[[Any, StageContext], None]] = {
    "stop": _stop,
    "kill": _kill,
    "freeze": _freeze,
    "infinite": _make_infinite,
    "memory": _run_out_of_memory,
}


def body(context: StageContext) -> StageOutput:
    """Train, and fail in the step that the environment names."""
    from edgetune_jobs.stages import train

    rank, _, fault = os.environ.get(FAULT, "").partition(" ")
    if rank == str(context.ranks.rank):
        _fail_in_step(context, *fault.split())
    return train.run(context)


def _fail_in_step(context: StageContext, fault: str, step: str) -> None:
    from trl import SFTTrainer

    original = SFTTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        if self.state.global_step + 1 == int(step):
            FAULTS[fault](self, context)
        return loss

    SFTTrainer.training_step = training_step


def load_code(stage: Stage) -> StageCode:
    """The code of the stage with ranks that fail."""
    return replace(load_stage_code(stage), run=body, rank_command=(*COMMAND, "rank"))


if __name__ == "__main__":
    apply_conditions()
    if sys.argv[1:] == ["rank"]:
        run_rank_process(body)
    run_process(load_code)
