"""The event file of a real training, as TensorBoard reads it."""

import json
from pathlib import Path

import pytest

from support.tiny_runs import tiny_parameters, train
from support.trackers import read_event_files

CURVES = {
    "train/loss": "loss",
    "train/learning_rate": "learningRate",
    "train/grad_norm": "gradientNorm",
    "train/tokens_per_second": "tokensPerSecond",
    "eval/loss": "validationLoss",
}


def test_tensorboard_shows_the_steps_of_the_log_at_their_times(
    tmp_path: Path, random_base: Path, few_rows: Path
) -> None:
    parameters = tiny_parameters(training={"maxSteps": 4, "evaluation": {"everySteps": 2}})
    run = train(tmp_path / "run", parameters, random_base, few_rows)

    (file,) = run.adapter.glob("*tfevents*")
    assert file.name == "events.out.tfevents.edgetune", "it does not name this machine"
    lines = [json.loads(line) for line in (run.adapter / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = read_event_files(run.adapter)
    assert set(shown) == set(CURVES)
    for name, figure in CURVES.items():
        expected = [line for line in lines if line.get(figure) is not None]
        assert [step for step, _, _ in shown[name]] == [line["step"] for line in expected]
        assert [at for _, at, _ in shown[name]] == [line["time"] for line in expected]
        assert [value for _, _, value in shown[name]] == pytest.approx([line[figure] for line in expected], rel=1e-6)
    assert [step for step, _, _ in shown["eval/loss"]] == [2, 4]
