"""The GPU check, rehearsed on a CPU: every step runs with tiny shapes, so that none fails first on a GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu_check.goals import GOALS, print_goals
from bench.gpu_check.inputs import Inputs, shape_of_8b
from bench.gpu_check.ranks import only_gpu
from bench.gpu_check.runner import Outcome, Step, read_results, run_steps
from bench.gpu_check.steps import all_steps
from cluster.folders import REPOSITORY
from edgetune_jobs.runtime.ranks.plan import RankPlan

CHECK = [sys.executable, str(REPOSITORY / "tests/bench/gpu_check")]


def check(*options: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "OMP_NUM_THREADS": "2"}
    return subprocess.run([*CHECK, *options], cwd=folder, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_step_can_be_rehearsed_and_leaves_a_complete_line(tmp_path: Path) -> None:
    done = check("--device", "cpu", "--scale", "100", folder=tmp_path)

    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(each["step"], each["status"], each["error"]) for each in lines] == [
        (step.name, "ok", "") for step in all_steps()
    ]
    assert all(each.keys() == {"at", "step", "status", "seconds", "figures", "error"} for each in lines)
    assert all(each["figures"] for each in lines)
    figures = {each["step"]: each["figures"] for each in lines}
    assert all(goal.figure(figures) >= 0 for goal in GOALS)
    assert figures["without a C compiler"]["isSeen"]
    assert figures["SIGTERM and resume"]["isBitwiseEqual"]
    assert figures["out-of-memory healing"]["microBatchSize"].startswith("2 x 2 accumulated, instead of 4")
    assert done.returncode == 0, done.stderr
    assert all(f"{goal.name} " in done.stdout and goal.bounds in done.stdout for goal in GOALS)
    assert "rehearsed" in done.stdout
    assert "MISSED" not in done.stdout


def test_without_a_gpu_nothing_runs_and_the_rehearsal_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = check("--only", "environment", folder=tmp_path)

    assert done.returncode == 1
    assert done.stderr == (
        "CUDA sees no GPU on this machine; --device cpu --scale 100 rehearses the steps without one\n"
    )


def test_both_ranks_share_the_gpu_that_this_process_sees() -> None:
    assert only_gpu({}) == ("0",)
    assert only_gpu({"CUDA_VISIBLE_DEVICES": "GPU-8f2a,GPU-17c0"}) == ("GPU-8f2a",)
    shared = RankPlan(2, only_gpu({"CUDA_VISIBLE_DEVICES": "3"}))
    assert shared.per_device == 2, "so that Gloo carries the gradients"
    assert [shared.environment(rank, {})["CUDA_VISIBLE_DEVICES"] for rank in shared.ranks] == ["3", "3"]


def test_a_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    done = check("--wheels", str(tmp_path), folder=tmp_path)

    assert done.returncode == 1
    assert "there are no wheels; docs/benchmarks.md says how to fill this folder" in done.stderr


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(torch.device("cpu"), 100, tmp_path)


def fail(_: Inputs) -> dict[str, Any]:
    raise RuntimeError("CUDA error:\n an illegal memory access")


def never_end(_: Inputs) -> dict[str, Any]:
    while True:
        time.sleep(0.01)


def test_a_step_that_fails_or_takes_too_long_keeps_no_other_from_running(inputs: Inputs, tmp_path: Path) -> None:
    steps = [Step("a", 9, fail), Step("b", 0.05, never_end), Step("c", 9, lambda _: {"figure": 1})]

    run_steps(steps, inputs, tmp_path / "results.jsonl", 99)

    failed, late, last = read_results(tmp_path / "results.jsonl")
    assert (failed.status, failed.error.partition(" (")[0]) == (
        "failed",
        "RuntimeError: CUDA error: an illegal memory access",
    )
    assert (late.status, late.error.partition(" (")[0]) == ("failed", "OutOfTime: not done after 0 s")
    assert (last.status, last.figures) == ("ok", {"figure": 1})


def test_a_step_for_which_no_time_is_left_is_named(inputs: Inputs, tmp_path: Path) -> None:
    run_steps([Step("a", 9, fail)], inputs, tmp_path / "results.jsonl", 0)

    assert [each.status for each in read_results(tmp_path / "results.jsonl")] == ["left out"]


def test_steps_that_run_again_replace_their_lines_and_use_the_others(inputs: Inputs, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    run_steps([Step("a", 9, lambda _: {"figure": 1}), Step("b", 9, fail)], inputs, results, 99)

    run_steps([Step("b", 9, lambda given: {"figure": 1 + given.figure("a", "figure")})], inputs, results, 99)

    assert {each.step: each.figures for each in read_results(results)} == {"a": {"figure": 1}, "b": {"figure": 2}}


def test_the_table_says_which_goals_are_met(capsys: pytest.CaptureFixture[str]) -> None:
    speeds = {"QLoRA, ours": 10_000.0, "QLoRA, bare trl": 8_000.0}
    outcomes = [Outcome(step, "ok", 1, {"tokensPerSecond": speed}) for step, speed in speeds.items()]

    print_goals(outcomes, is_rehearsal=False)

    rows = {line[:36].strip(): line[36:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["QLoRA, tokens/s (for an H100)"] == ["10,000", "at", "least", "9,500", "met"]
    assert rows["QLoRA, ours / bare trl"] == ["1.25", "at", "least", "1.6", "MISSED"]
    assert rows["LoRA, as trl / bare trl"] == ["-", "at", "least", "0.98", "not", "measured"]


def test_at_scale_1_the_shape_is_that_of_8_billion_parameters() -> None:
    shape = shape_of_8b(1)
    linears = sum(outputs * features for outputs, features in shape.linears.values())

    assert shape.layers * linears + 2 * shape.vocabulary * shape.hidden == pytest.approx(8.03e9, rel=1e-3)
