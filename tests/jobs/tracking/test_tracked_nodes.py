"""A tracked training on two nodes: only node 0, which has the first process, sends anything."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from edgetune_jobs.tracking.server import MlflowServer
from edgetune_jobs.tracking.settings import TrackingSettings
from support.fault_proxy import FaultProxy, running_proxy
from support.node_stage import COMMAND, FAULT
from support.prepared_runs import prepared_runs
from support.server_process import free_port
from support.stage_runs import Ended, StageRuns
from support.trackers import MlflowServerProcess, running_mlflow

pytestmark = pytest.mark.slow

STEPS = 6
TRAINING = {"maxSteps": STEPS, "batchSize": 6, "microBatchSize": 3, "maxLength": 256}
EXPERIMENT = "team-a/sensor-faults"
_LIMIT_SECONDS = 300


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[MlflowServerProcess]:
    with running_mlflow(tmp_path / "mlflow") as server:
        # Its first answer takes seconds, of which the end of a stage has few.
        MlflowServer(TrackingSettings(uri=server.uri, answer_seconds=60)).post("experiments/create", {"name": "first"})
        yield server


@pytest.fixture
def runs(tmp_path: Path, random_base: Path, few_rows: Path) -> StageRuns:
    """A prepared run, whose training runs on two nodes."""
    (tmp_path / "run").mkdir()
    found = prepared_runs(tmp_path / "run", random_base, few_rows, TRAINING)
    found.command = COMMAND
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    found.environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    return found


def train(runs: StageRuns, proxies: list[FaultProxy], fault: str = "") -> list[Ended]:
    """Both nodes to their end, each with a way of its own to the server."""
    port = free_port()
    started = [
        runs.start(
            Stage.TRAIN,
            EDGETUNE_NODES="2",
            JOB_COMPLETION_INDEX=str(node),
            EDGETUNE_RENDEZVOUS=f"127.0.0.1:{port}",
            EDGETUNE_MLFLOW_URI=proxies[node].endpoint,
            **{FAULT: fault},
        )
        for node in (1, 0)
    ]
    return [stage.wait(_LIMIT_SECONDS) for stage in reversed(started)]


def test_only_the_first_process_sends_and_a_stopped_node_makes_one_run_killed_until_it_resumes(
    runs: StageRuns, mlflow: MlflowServerProcess
) -> None:
    with running_proxy(mlflow.uri) as first, running_proxy(mlflow.uri) as other:
        stopped = train(runs, [first, other], "1 stop 3")
        assert [each.exit_code for each in stopped] == [76, 75], stopped
        killed = mlflow.run(EXPERIMENT)
        assert (killed.status, killed.tags["edgetune.attempts"]) == ("KILLED", "1")

        done = train(runs, [first, other])
        assert [each.exit_code for each in done] == [0, 0], done
        assert other.requests == []
        assert sum("runs/create" in path for _, path in first.requests) == 1

    run = mlflow.run(EXPERIMENT)
    assert (run.id, run.status, run.tags["edgetune.attempts"]) == (killed.id, "RUNNING", "2")
    for curve in ("train/loss", "train/learning_rate", "train/grad_norm"):
        assert [step for step, _ in mlflow.history(run, curve)] == list(range(1, STEPS + 1))
