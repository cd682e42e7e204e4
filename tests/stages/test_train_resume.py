"""Training that is stopped and resumed: no step is lost, and the adapter equals that of an uninterrupted run."""

import time
from pathlib import Path

import pytest
import torch

from edgetune_contract.spec import Parameters
from edgetune_jobs.errors import Interrupted
from edgetune_jobs.stages import train as stage
from support.stage_context import FolderCheckpoints
from support.tiny_runs import TrainingRun, new_run, tiny_parameters, train

pytestmark = pytest.mark.usefixtures("two_threads")

STEPS = 6


def _parameters(method: str, optimizer: str, precision: str) -> Parameters:
    """Six steps across the end of an epoch, with dropout, so that random numbers and data order matter."""
    return tiny_parameters(
        method=method,
        lora={"dropout": 0.1, "rank": 32},
        training={
            "maxSteps": STEPS,
            "warmupRatio": 0,
            "batchSize": 8,
            "microBatchSize": 4,
            "optimizer": optimizer,
            "precision": precision,
            "checkpoint": {"everySteps": 2},
        },
    )


def _stop_after(run: TrainingRun, step: int) -> None:
    run.progress.on_update = lambda done: run.context.stop.set() if done >= step else None


def _assert_equal(resumed: TrainingRun, uninterrupted: TrainingRun) -> None:
    ours, theirs = resumed.weights(), uninterrupted.weights()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"{len(different)} of {len(ours)} tensors differ, such as {different[0]}"


@pytest.mark.parametrize(
    ("method", "optimizer", "precision", "stopped_after"),
    [
        ("QLoRA", "adamw_torch", "BF16", 1),
        ("QLoRA", "paged_adamw_8bit", "BF16", 3),  # the first step of the second epoch is the fourth
        ("LoRA", "adafactor", "FP32", 5),
    ],
)
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_adapter_bit_for_bit(
    tmp_path: Path, random_base: Path, few_rows: Path, method: str, optimizer: str, precision: str, stopped_after: int
) -> None:
    parameters = _parameters(method, optimizer, precision)
    uninterrupted = train(tmp_path / "whole", parameters, random_base, few_rows)
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")
    first = new_run(tmp_path / "first", parameters, random_base, few_rows, checkpoints=checkpoints)
    _stop_after(first, stopped_after)

    with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {stopped_after} of {STEPS}") as interruption:
        stage.run(first.context)
    between = time.time()
    resumed = train(tmp_path / "second", parameters, random_base, few_rows, checkpoints=checkpoints)

    assert interruption.value.step == stopped_after, "no finished step is lost"
    assert [update["done"] for update in resumed.progress.updates] == list(range(stopped_after + 1, STEPS + 1))
    assert resumed.figures("learningRate") == uninterrupted.figures("learningRate")[stopped_after:]
    assert resumed.figures("loss") == uninterrupted.figures("loss")[stopped_after:]
    assert resumed.output.metrics["resumedFromStep"] == stopped_after
    assert set(resumed.figures("resumedFromStep")) == {stopped_after}
    assert set(uninterrupted.figures("resumedFromStep")) == {0}
    (began,) = set(resumed.figures("startTimeSeconds"))
    assert between < began < time.time(), "the attempt's own first step"
    for name in ("loss", "firstLoss", "steps", "epochs"):
        assert resumed.output.metrics[name] == uninterrupted.output.metrics[name], name
    _assert_equal(resumed, uninterrupted)
    assert (resumed.adapter / "training.json").read_bytes() == (uninterrupted.adapter / "training.json").read_bytes()


def test_a_killed_run_resumes_from_the_newest_checkpoint_and_ends_with_the_same_adapter(
    tmp_path: Path, random_base: Path, few_rows: Path
) -> None:
    parameters = _parameters("QLoRA", "adamw_torch", "BF16")
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")
    uninterrupted = train(tmp_path / "whole", parameters, random_base, few_rows, checkpoints=checkpoints)
    assert checkpoints.steps() == [2, 4, 6]
    for step in (4, 6):
        checkpoints.remove(step)

    resumed = train(tmp_path / "again", parameters, random_base, few_rows, checkpoints=checkpoints)

    assert resumed.output.metrics["resumedFromStep"] == 2
    _assert_equal(resumed, uninterrupted)


def test_a_run_that_was_killed_after_its_last_step_only_saves_its_adapter(
    tmp_path: Path, random_base: Path, few_rows: Path
) -> None:
    parameters = _parameters("QLoRA", "adamw_torch", "BF16")
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")
    uninterrupted = train(tmp_path / "whole", parameters, random_base, few_rows, checkpoints=checkpoints)

    resumed = train(tmp_path / "again", parameters, random_base, few_rows, checkpoints=checkpoints)

    assert not resumed.progress.updates, "no step is trained twice"
    assert resumed.output.metrics["steps"] == STEPS
    _assert_equal(resumed, uninterrupted)


def test_a_stop_before_the_first_step_ends_at_once(tmp_path: Path, random_base: Path, few_rows: Path) -> None:
    run = new_run(tmp_path / "run", _parameters("LoRA", "adamw_torch", "FP32"), random_base, few_rows)
    run.context.stop.set()

    with pytest.raises(Interrupted, match="before the first step") as interruption:
        stage.run(run.context)

    assert interruption.value.step is None, "there is no checkpoint to resume from"
    assert not list(run.context.output.iterdir())


def test_a_run_that_is_stopped_in_its_last_step_succeeds(tmp_path: Path, random_base: Path, few_rows: Path) -> None:
    run = new_run(tmp_path / "run", _parameters("LoRA", "adamw_torch", "FP32"), random_base, few_rows)
    _stop_after(run, STEPS)

    assert stage.run(run.context).metrics["steps"] == STEPS


def test_a_checkpoint_has_the_files_for_resuming_and_no_pickled_arguments(
    tmp_path: Path, random_base: Path, few_rows: Path
) -> None:
    run = train(tmp_path / "run", _parameters("LoRA", "adamw_torch", "FP32"), random_base, few_rows)

    assert sorted(path.name for path in (run.checkpoints.root / "step-4").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.jsonl",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "step_fit.json",
        "trainer_state.json",
    ]
    assert not any(run.context.scratch.glob("checkpoints/*")), "uploaded checkpoints are not kept on disk"
