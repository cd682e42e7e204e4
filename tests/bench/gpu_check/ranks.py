"""Two ranks on one GPU: their losses must be those of one process.

python -m bench.gpu_check.ranks      the process of a rank
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from bench.gpu_check.machine import allow_older_torch
from bench.gpu_check.training import finish, start
from edgetune_contract.spec import Method
from support.stage_context import RecordedProgress, stage_context

if TYPE_CHECKING:
    from bench.gpu_check.inputs import Inputs
    from bench.gpu_check.runner import Figures

_RANKS = 2
# Dropout draws other numbers on each rank.
_LORA = {"targetModules": "AllLinear", "dropout": 0.0}
_REPOSITORY = Path(__file__).resolve().parents[3]


def two_ranks(inputs: "Inputs") -> "Figures":
    """Losses and tokens per second of one process, and of two that share the device and each step's rows."""
    from edgetune_contract.stages import Stage
    from edgetune_jobs.models import loading
    from edgetune_jobs.runtime.ranks.plan import RankPlan
    from edgetune_jobs.runtime.ranks.supervisor import Patience, StoreOfRanks, train_in_ranks

    alone, _ = start(inputs, Method.QLORA, {}, inputs.long_rows, lora=_LORA)
    finish(alone)
    losses_alone, speed_alone = alone.figures("loss"), alone.output.metrics["tokensPerSecond"]
    loading.free_memory()
    progress = RecordedProgress()
    context = stage_context(
        Stage.TRAIN,
        inputs.parameters(Method.QLORA, {}, lora=_LORA),
        inputs.new_folder("ranks") / "run",
        {"base": inputs.base, "prepared": inputs.long_rows},
        progress=progress,
    )
    paths = [str(_REPOSITORY / name) for name in ("tests", "jobs", "operator")]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    command = (sys.executable, "-m", "bench.gpu_check.ranks")
    plan = RankPlan(_RANKS, only_gpu(os.environ) if inputs.on_gpu else ())
    with patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(paths)}):
        output = train_in_ranks(context, plan, StoreOfRanks("0" * 64), command, Patience(for_answers=120))
    losses = [update["loss"] for update in progress.updates]
    return {
        "ranks": output.facts["ranks"],
        "microBatchSize": output.facts["microBatchSize"],
        "losses": losses,
        "largestLossDifference": max(abs(ours - theirs) for ours, theirs in zip(losses, losses_alone, strict=True)),
        "tokensPerSecond": round(output.metrics["tokensPerSecond"], 1),
        "tokensPerSecondAlone": round(speed_alone, 1),
        "peakMemoryBytes": output.metrics["peakMemoryBytes"],
    }


def only_gpu(environment: Mapping[str, str]) -> Sequence[str]:
    """Name of the GPU that both ranks share: that on which this process computes. NCCL would refuse two on one GPU."""
    return (environment.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0],)


if __name__ == "__main__":
    from edgetune_jobs.__main__ import run_rank_process
    from edgetune_jobs.stage import StageContext, StageOutput

    def train(context: StageContext) -> StageOutput:
        """The stage's body, also with an older torch."""
        from edgetune_jobs.models.libraries import prepare_torch
        from edgetune_jobs.stages import train as stage

        prepare_torch()
        allow_older_torch()
        return stage.run(context)

    run_rank_process(train)
