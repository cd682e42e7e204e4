"""Evaluation during training: the best step's adapter, early stopping, and resuming at any point of it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_contract.spec import Parameters
from edgetune_jobs.errors import Interrupted, TrainingDiverged
from edgetune_jobs.evaluation import inference
from edgetune_jobs.stages import train as stage
from support.stage_context import FolderCheckpoints
from support.tiny_runs import TrainingRun, new_run, tiny_parameters, train

pytestmark = pytest.mark.usefixtures("two_threads")

STEPS = 6
Losses = dict[int, float]


def _parameters(every_steps: int = 2, patience: int | None = None, method: str = "LoRA", **training: Any) -> Parameters:
    evaluation = {"everySteps": every_steps, **({} if patience is None else {"patience": patience})}
    return tiny_parameters(
        method=method,
        lora={"dropout": 0.1},
        training={
            "maxSteps": STEPS,
            "warmupRatio": 0,
            "checkpoint": {"everySteps": 1},
            "evaluation": evaluation,
            **training,
        },
    )


def _steps(run: TrainingRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.adapter / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _validation_losses(run: TrainingRun) -> Losses:
    return {line["step"]: line["validationLoss"] for line in _steps(run) if "validationLoss" in line}


def _same(one: TrainingRun, other: TrainingRun) -> bool:
    ours, theirs = one.weights(), other.weights()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def measured_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Losses], None]:
    """Replaces the measured losses by given ones, in the order of the evaluations; the real loss is still measured."""

    def replace(losses: Losses) -> None:
        rest = iter(losses.values())

        def measured(*args: Any, **options: Any) -> inference.TeacherForced:
            passed = inference.teacher_forced(*args, **options)
            assert passed.loss is not None
            return dataclasses.replace(passed, total=next(rest), tokens=1)

        monkeypatch.setattr("edgetune_jobs.stages.train.teacher_forced", measured)

    return replace


def test_the_validation_loss_is_that_of_the_evaluation_rows_and_changes_no_step(
    tmp_path: Path, random_base: Path, few_rows: Path
) -> None:
    from edgetune_jobs.data.prepared_data import read_eval_tokens
    from edgetune_jobs.models.loading import choose_device, load_tokenizer
    from edgetune_jobs.models.tuned_model import load_tuned

    parameters = _parameters(every_steps=4, method="QLoRA")
    result = train(tmp_path / "with", parameters, random_base, few_rows)
    without = train(tmp_path / "without", _parameters(evaluation=None, method="QLoRA"), random_base, few_rows)

    losses = _validation_losses(result)
    assert list(losses) == [4, STEPS], "every fourth step, and the last one"
    tuned = load_tuned(random_base, result.adapter, parameters.merge.base, choose_device())
    pad = load_tokenizer(random_base).pad_token_id
    expected = inference.teacher_forced(tuned, *read_eval_tokens(few_rows, 500), pad_token_id=pad, batch_size=4).loss
    assert result.output.metrics["validationLoss"] == pytest.approx(expected, rel=1e-5)
    assert result.output.metrics["validationLoss"] == min(losses.values())
    assert result.figures("loss") == without.figures("loss"), "an evaluation draws no random number"


def test_the_adapter_is_that_of_the_step_with_the_lowest_validation_loss(
    tmp_path: Path, random_base: Path, few_rows: Path, measured_as: Callable[[Losses], None]
) -> None:
    measured_as({2: 3.0, 4: 4.0, 6: 3.0})
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")
    result = train(tmp_path / "run", _parameters(), random_base, few_rows, checkpoints=checkpoints)

    from safetensors.torch import load_file

    of_step_2 = load_file(checkpoints.root / "step-2" / "adapter_model.safetensors")
    assert all(torch.equal(of_step_2[name], weight) for name, weight in result.weights().items())
    assert (result.output.metrics["bestStep"], result.output.metrics["validationLoss"]) == (2, 3.0)
    assert result.output.metrics["steps"] == STEPS
    assert result.output.facts["adapter"] == "of step 2, which has the lowest validation loss (3.0000)"


def test_training_stops_early_without_patience_left(
    tmp_path: Path, random_base: Path, few_rows: Path, measured_as: Callable[[Losses], None]
) -> None:
    measured_as({1: 3.0, 2: 2.0, 3: 2.5, 4: float("nan")})

    result = train(tmp_path / "run", _parameters(every_steps=1, patience=2), random_base, few_rows)

    assert [line["step"] for line in _steps(result)] == [1, 2, 3, 4]
    assert _validation_losses(result) == {1: 3.0, 2: 2.0, 3: 2.5, 4: None}
    assert (result.output.metrics["steps"], result.output.metrics["plannedSteps"]) == (4, STEPS)
    assert result.output.facts["adapter"] == (
        "of step 2, which has the lowest validation loss (2.0000); training stopped early after step 4 of 6"
    )


def test_a_validation_loss_that_is_never_finite_ends_in_a_failure(
    tmp_path: Path, random_base: Path, few_rows: Path, measured_as: Callable[[Losses], None]
) -> None:
    measured_as(dict.fromkeys((2, 4, 6), float("nan")))

    with pytest.raises(TrainingDiverged, match="validation loss was not finite after any step"):
        train(tmp_path / "run", _parameters(), random_base, few_rows)


@pytest.mark.parametrize("stopped_after", [1, 2, 6])
def test_a_run_that_is_stopped_even_in_an_evaluation_ends_with_the_same_adapter_and_log(
    tmp_path: Path, random_base: Path, few_rows: Path, stopped_after: int
) -> None:
    """Steps 2, 4 and 6 are evaluated; SIGTERM arrives before the evaluation of its step has ended."""
    parameters = _parameters()
    uninterrupted = train(tmp_path / "whole", parameters, random_base, few_rows)
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")
    first = new_run(tmp_path / "first", parameters, random_base, few_rows, checkpoints=checkpoints)
    first.progress.on_update = lambda done: first.context.stop.set() if done >= stopped_after else None

    with pytest.raises(Interrupted, match=f"after step {stopped_after} of {STEPS}"):
        stage.run(first.context)
    resumed = train(tmp_path / "second", parameters, random_base, few_rows, checkpoints=checkpoints)

    assert _same(resumed, uninterrupted)
    assert resumed.output.facts == uninterrupted.output.facts
    lines, expected = _steps(resumed), _steps(uninterrupted)
    assert [line.pop("attempt") for line in lines] == [1] * stopped_after + [2] * (STEPS - stopped_after)
    assert {line.pop("attempt") for line in expected} == {1}
    for line in (*lines, *expected):
        del line["time"], line["tokensPerSecond"]
    assert lines == expected, "every step once, with its figures"


def test_a_run_that_was_killed_after_it_stopped_early_trains_no_further_step(
    tmp_path: Path, random_base: Path, few_rows: Path, measured_as: Callable[[Losses], None]
) -> None:
    measured_as({1: 2.0, 2: 2.5})
    parameters = _parameters(every_steps=1, patience=1)
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")
    first = train(tmp_path / "first", parameters, random_base, few_rows, checkpoints=checkpoints)

    again = train(tmp_path / "again", parameters, random_base, few_rows, checkpoints=checkpoints)

    assert not again.progress.updates
    assert _same(again, first)
    assert again.output.facts["adapter"] == first.output.facts["adapter"]
    assert (again.adapter / "metrics.jsonl").read_bytes() == (first.adapter / "metrics.jsonl").read_bytes()


def test_killed_runs_log_every_step_once_with_its_attempt(tmp_path: Path, random_base: Path, few_rows: Path) -> None:
    parameters = _parameters(checkpoint={"everySteps": 2}, evaluation=None)
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")
    whole = train(tmp_path / "whole", parameters, random_base, few_rows, checkpoints=checkpoints)
    for step in (4, 6):
        checkpoints.remove(step)

    resumed = train(tmp_path / "again", parameters, random_base, few_rows, checkpoints=checkpoints)

    assert [(line["step"], line["attempt"]) for line in _steps(resumed)] == [
        *((step, 1) for step in (1, 2)),
        *((step, 2) for step in (3, 4, 5, 6)),
    ]
    figures = ("step", "epoch", "loss", "learningRate", "gradientNorm")
    assert [[line[name] for name in figures] for line in _steps(resumed)] == [
        [line[name] for name in figures] for line in _steps(whole)
    ]
    assert [line["loss"] for line in _steps(whole)] == whole.figures("loss")
    assert [line["learningRate"] for line in _steps(whole)] == whole.figures("learningRate")
    assert all(line["gradientNorm"] > 0 for line in _steps(whole))
