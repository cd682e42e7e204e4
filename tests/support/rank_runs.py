"""Trainings of a tiny model in two ranks: several in one pair of processes, which take most of their time to start.

python rank_runs.py      a rank's process; environment: EDGETUNE_TEST_RUNS, a JSON list of RankRun
"""

import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from edgetune_contract.schema import Model
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.__main__ import run_rank_process
from edgetune_jobs.errors import StageError
from edgetune_jobs.runtime.ranks.plan import RankPlan
from edgetune_jobs.runtime.ranks.shared_checkpoints import SharedCheckpoints
from edgetune_jobs.runtime.ranks.supervisor import Patience, StoreOfRanks, train_in_ranks
from edgetune_jobs.stage import OneRank, StageContext, StageOutput
from support.stage_context import FolderCheckpoints, RecordedProgress, stage_context

RUNS = "EDGETUNE_TEST_RUNS"


class RankRun(Model):
    """One training."""

    name: str
    parameters: Parameters
    ranks: int = 2
    """1: only rank 0 trains, alone."""

    checkpoints: str = ""
    """Name that runs have in common which resume each other; empty: its own."""

    stop_after: int | None = None
    """Rank 1, or the only one, is asked to stop in this step."""

    too_many: int | None = None
    """A forward pass of rank 1 with so many examples runs out of memory."""

    infinite_step: int | None = None
    """A gradient of rank 1 is infinite in this step."""

    scaled: bool = False
    """The loss is scaled, by 1, as with FP16, which accelerate refuses on a CPU."""


class RankResult(Model):
    """What came out of a training."""

    steps: list[dict[str, Any]] = []
    """Lines of metrics.jsonl."""

    updates: list[dict[str, Any]] = []
    said: list[str] = []
    metrics: dict[str, float] = {}
    facts: dict[str, str] = {}
    error: str = ""
    """Name of the class and message."""

    stopped_at: int | None = None
    adapter: Path
    """Folder of the adapter, if the training ended."""

    checkpoints: Path
    """Folder with the checkpoints."""

    def weights(self) -> dict[str, Any]:
        """The adapter's tensors."""
        from safetensors.torch import load_file

        return dict(load_file(self.adapter / "adapter_model.safetensors"))

    def trained_tokens(self) -> float:
        """Tokens of all steps up to the newest checkpoint."""
        step = FolderCheckpoints(self.checkpoints).steps()[-1]
        return trained_tokens(self.checkpoints / f"step-{step}")

    def figures(self, name: str) -> list[float]:
        """A figure of each step."""
        return [line[name] for line in self.steps]


def trained_tokens(checkpoint: Path) -> float:
    """Tokens of all steps up to a checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return float(state["log_history"][-1]["num_tokens"])


def train_all(
    folder: Path, runs: Sequence[RankRun], base: Path, prepared: Path, monkeypatch: Any
) -> dict[str, RankResult]:
    """Run these trainings one after the other in two ranks; their results on rank 0 by name."""
    context = stage_context(Stage.TRAIN, runs[0].parameters, folder, {"base": base, "prepared": prepared})
    monkeypatch.setenv(RUNS, json.dumps([run.model_dump(mode="json") for run in runs]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    command = (sys.executable, "-m", "support.rank_runs")
    train_in_ranks(context, RankPlan(2), StoreOfRanks("a" * 64), command, Patience(for_answers=120, for_end=5))
    return {
        run.name: RankResult.model_validate_json((context.output / run.name / "result-0.json").read_bytes())
        for run in runs
    }


def body(context: StageContext) -> StageOutput:
    """All trainings, on this rank."""
    _fail_as_asked(context.ranks.rank)
    _scale_as_asked()
    for run in TypeAdapter(list[RankRun]).validate_json(os.environ[RUNS]):
        if run.ranks > 1 or context.ranks.rank == 0:
            _train(context, run)
        context.ranks.gather(0)
    return StageOutput()


_current: list[RankRun] = []


def _train(context: StageContext, run: RankRun) -> None:
    from edgetune_jobs.stages import train

    _current[:] = [run]
    stop, progress = threading.Event(), RecordedProgress()
    if run.stop_after is not None and context.ranks.rank == run.ranks - 1:
        progress.on_update = lambda done: stop.set() if done == run.stop_after else None
    ranks = context.ranks if run.ranks > 1 else OneRank()
    shared = context.output / run.name / "shared"
    shared.mkdir(parents=True, exist_ok=True)
    kept = FolderCheckpoints(context.output / "checkpoints" / (run.checkpoints or run.name))
    own = stage_context(
        Stage.TRAIN,
        run.parameters,
        context.output / run.name / f"rank-{ranks.rank}",
        context.inputs,
        progress=progress,
        checkpoints=SharedCheckpoints(kept, ranks, shared),
        stop=stop,
    )
    found: dict[str, Any] = {}
    try:
        output = train.run(replace(own, ranks=ranks))
        found = {"metrics": dict(output.metrics), "facts": dict(output.facts)}
    except StageError as error:
        found = {"error": f"{type(error).__name__}: {error}", "stopped_at": getattr(error, "step", None)}
    log = own.scratch / "metrics.jsonl"
    steps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    places = {"adapter": own.output / "adapter", "checkpoints": kept.root}
    result = RankResult(steps=steps, updates=progress.updates, said=progress.said, **places, **found)
    target = context.output / run.name / f"result-{ranks.rank}.json"
    target.write_text(result.model_dump_json(), encoding="utf-8")


def _fail_as_asked(rank: int) -> None:
    """Fail in the forward and backward passes of rank 1 as the current run asks."""
    import torch
    from trl import SFTTrainer

    original = SFTTrainer.training_step

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        (run,) = _current
        examples = len(inputs["cu_seq_lens_q"]) - 1 if "cu_seq_lens_q" in inputs else len(inputs["input_ids"])
        loss = original(self, model, inputs, *args, **kwargs)
        if rank == 1 and run.too_many is not None and examples >= run.too_many:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if rank == 1 and run.infinite_step == self.state.global_step + 1:
            next(each for each in self.model.parameters() if each.requires_grad).grad[0, 0] = float("inf")
        return loss

    SFTTrainer.training_step = training_step


def _scale_as_asked() -> None:
    """Scale losses with torch's scaler if the current run asks."""
    import torch
    from trl import SFTTrainer

    original = SFTTrainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        (run,) = _current
        if run.scaled:
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        return original(self, *args, **kwargs)

    SFTTrainer.train = train


if __name__ == "__main__":
    run_rank_process(body)
