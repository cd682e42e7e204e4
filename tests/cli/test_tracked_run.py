"""`edgetune run --mlflow` with a real training that Ctrl-C stops and a second run resumes: one run on a real server."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from support import tiny_data
from support.stage_runs import wait_until
from support.trackers import MlflowServerProcess, RunOnServer, running_mlflow

pytestmark = pytest.mark.slow

STEPS = 120
CURVES = ("train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second")
_EXPERIMENT = "tickets"
_LIMIT_SECONDS = 300
OBJECT = {
    "apiVersion": "edgetune.dev/v1alpha1",
    "kind": "LoraFineTune",
    "metadata": {"name": "faults"},
    "spec": {
        "baseModel": {"uri": "./base"},
        "dataset": {"train": {"uri": "./train.jsonl"}},
        "lora": {"targetModules": "AllLinear"},
        "training": {"maxSteps": STEPS, "batchSize": 8, "maxLength": 256, "optimizer": "adamw_torch"},
        "evaluation": {"maxNewTokens": 2, "maxExamples": 2},
    },
}


@dataclass(frozen=True)
class Workplace:
    """A folder with an object, and the command that runs and tracks it."""

    folder: Path
    mlflow: MlflowServerProcess
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "edgetune_cli", "run", "-f", "object.yaml", "--mlflow", self.mlflow.uri]
        variables = {**os.environ, "MLFLOW_EXPERIMENT_NAME": _EXPERIMENT, "OMP_WAIT_POLICY": "PASSIVE"}
        process = subprocess.Popen(
            command, cwd=self.folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """End what a failed test has left."""
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=_LIMIT_SECONDS)

    def run(self) -> RunOnServer:
        return self.mlflow.run(_EXPERIMENT)

    def steps(self, curve: str = CURVES[0]) -> list[int]:
        return [step for run in self.mlflow.runs(_EXPERIMENT) for step, _ in self.mlflow.history(run, curve)]


@pytest.fixture
def workplace(tmp_path: Path, random_base: Path) -> Iterator[Workplace]:
    (tmp_path / "base").symlink_to(random_base)
    rows = [{"instruction": each.instruction, "response": each.response} for each in tiny_data.training_examples(64)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "object.yaml").write_text(yaml.safe_dump(OBJECT))
    with running_mlflow(tmp_path / "mlflow") as server:
        place = Workplace(tmp_path, server)
        yield place
        place.end()


def test_ctrl_c_in_training_and_the_same_command_again_are_one_run_with_every_step_once(workplace: Workplace) -> None:
    stopped = workplace.start()
    wait_until(lambda: bool(workplace.steps()), "a step is on the server", _LIMIT_SECONDS)
    stopped.send_signal(signal.SIGINT)
    output, _ = stopped.communicate(timeout=_LIMIT_SECONDS)

    assert stopped.returncode == 130, output
    first, steps = workplace.run(), workplace.steps()
    assert first.status == "KILLED"
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) < STEPS

    resumed = workplace.start()
    output, _ = resumed.communicate(timeout=_LIMIT_SECONDS)

    assert resumed.returncode == 0, output
    run = workplace.run()
    assert (run.id, run.status, run.tags["edgetune.attempts"]) == (first.id, "FINISHED", "2")
    for curve in CURVES:
        assert workplace.steps(curve) == list(range(1, STEPS + 1))
    assert run.parameters["training.maxSteps"] == str(STEPS)
    assert run.tags["edgetune.published"] == "true"
    assert run.metrics["loss/edge"] > 0
    assert Path(run.tags["edgetune.report"].removeprefix("file://")).is_file()

    done = workplace.start()
    output, _ = done.communicate(timeout=_LIMIT_SECONDS)
    assert "All stages were already done" in output
    assert workplace.run() == run, "a run that has nothing to do sends nothing"
