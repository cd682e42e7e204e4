"""The processes of train and publish with a tracker: a killed training, credentials, and a server that hangs."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from support.broken_trackers import hanging
from support.fault_proxy import running_proxy
from support.local_runs import manifest_of, new_runs, version_at_pointer
from support.stage_process import BEHAVIOUR, KILL_AT, LOGGED_STEPS
from support.stage_runs import Ended, StageRuns, wait_until
from support.trackers import MlflowServerProcess, running_mlflow

SECRET = "a-token-that-nobody-may-see"
EXPERIMENT = "team-a/sensor-faults"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServerProcess]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


def tracked(runs: StageRuns, stage: Stage, **environment: str) -> Ended:
    return runs.start(stage, **{BEHAVIOUR: "train_with_log"}, **environment).wait()


def test_a_killed_training_continues_its_run_and_the_token_is_in_the_header_and_nowhere_else(
    tmp_path: Path, mlflow: MlflowServerProcess
) -> None:
    """The training is killed after step 5, which the server has; the newest checkpoint is that of step 4."""
    runs = new_runs(tmp_path)
    runs.run(Stage.PREPARE)
    secret = tmp_path / "tracking"
    secret.mkdir()
    (secret / "MLFLOW_TRACKING_TOKEN").write_text(f"{SECRET}\n")
    with running_proxy(mlflow.uri) as proxy:
        runs.environment |= {
            "EDGETUNE_MLFLOW_URI": f"{proxy.endpoint}/",
            "EDGETUNE_TRACKING_CREDENTIALS_DIR": str(secret),
        }
        killed = runs.start(Stage.TRAIN, **{BEHAVIOUR: "train_with_log", KILL_AT: "5"})
        killed.wait_for("waiting to be killed")
        wait_until(lambda: steps_on(mlflow) == [1, 2, 3, 4, 5], "five steps are on the server", 120)
        killed.process.kill()
        killed.wait()
        ended = [tracked(runs, Stage.TRAIN)]
        ended += [runs.run(stage) for stage in (Stage.MERGE, Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH)]
        assert proxy.authorizations == {f"Bearer {SECRET}"}

    assert [each.exit_code for each in ended] == [0] * 5, [each.stderr for each in ended]
    run = mlflow.run(EXPERIMENT)
    assert (run.status, run.tags["edgetune.attempts"]) == ("FINISHED", "2")
    assert mlflow.history(run, "train/loss") == [(step, 1 / step) for step in range(1, LOGGED_STEPS + 1)]
    assert mlflow.history(run, "eval/loss") == [(step, 2 / step) for step in range(2, LOGGED_STEPS + 1, 2)]
    assert len(mlflow.history(run, "train/tokens_per_second")) == LOGGED_STEPS
    evaluated = manifest_of(runs, Stage.EVALUATE)
    assert evaluated is not None
    assert evaluated.result.scores is not None
    assert run.metrics["score/drop"] == evaluated.result.scores.drop
    assert Path(run.tags["edgetune.report"].removeprefix("file://")).is_file()
    assert ended[-1].result.warnings == ()
    said = "".join(each.stdout + each.stderr + each.message.decode() for each in ended)
    assert SECRET not in said
    assert SECRET not in mlflow.everything()
    kept = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]


def steps_on(mlflow: MlflowServerProcess, experiment: str = EXPERIMENT) -> list[int]:
    return [step for run in mlflow.runs(experiment) for step, _ in mlflow.history(run, "train/loss")]


def test_a_stage_after_the_training_that_fails_or_is_stopped_ends_the_run_until_it_works_again(
    tmp_path: Path, mlflow: MlflowServerProcess
) -> None:
    runs = StageRuns(tmp_path, *inputs_of(tmp_path), name="valves")
    runs.run(Stage.PREPARE)
    runs.environment["EDGETUNE_MLFLOW_URI"] = mlflow.uri

    def status() -> str:
        return mlflow.run("team-a/valves").status

    assert [tracked(runs, Stage.TRAIN).exit_code, status()] == [0, "RUNNING"]
    assert [runs.run(Stage.MERGE, **{BEHAVIOUR: "memory"}).exit_code, status()] == [14, "FAILED"]
    hanging_merge = runs.start(Stage.MERGE, **{BEHAVIOUR: "hang"})
    hanging_merge.wait_for("hanging")
    wait_until(lambda: status() == "RUNNING", "the run is RUNNING again", 60)
    hanging_merge.process.terminate()
    assert [hanging_merge.wait().exit_code, status()] == [75, "KILLED"]
    ended = [runs.run(stage) for stage in (Stage.MERGE, Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH)]

    assert [each.exit_code for each in ended] == [0] * 4, [each.stderr for each in ended]
    assert [each.result.warnings for each in ended] == [("few rows",)] * 3 + [()]
    assert status() == "FINISHED"


def test_a_training_that_is_stopped_is_a_killed_run_with_the_steps_of_its_checkpoint(
    tmp_path: Path, mlflow: MlflowServerProcess
) -> None:
    runs = StageRuns(tmp_path, *inputs_of(tmp_path), name="fans")
    runs.run(Stage.PREPARE)
    runs.environment |= {"EDGETUNE_MLFLOW_URI": mlflow.uri, BEHAVIOUR: "train_until_stopped"}
    stopped = runs.start(Stage.TRAIN)
    wait_until(lambda: bool(steps_on(mlflow, "team-a/fans")), "a step is on the server", 60)
    stopped.process.terminate()
    failure = stopped.wait().result.failure

    assert failure is not None
    assert mlflow.run("team-a/fans").status == "KILLED"
    assert failure.step is not None
    assert steps_on(mlflow, "team-a/fans") == list(range(1, failure.step + 1))


def inputs_of(folder: Path) -> tuple[StoreLocation, Parameters]:
    """Store and parameters of new runs."""
    runs = new_runs(folder)
    return runs.store, runs.parameters


def test_a_server_that_hangs_adds_seconds_to_a_stage_and_no_more(tmp_path: Path) -> None:
    runs = new_runs(tmp_path)
    runs.run_up_to(Stage.EVALUATE)
    shutil.rmtree(tmp_path / "store" / "team-a" / "stages" / "train")
    runs.environment[BEHAVIOUR] = "train_with_log"
    with hanging() as uri:
        runs.environment["EDGETUNE_MLFLOW_URI"] = uri
        trained = timed(runs, Stage.TRAIN)
        published = timed(runs, Stage.PUBLISH)
        shutil.rmtree(tmp_path / "store" / "team-a" / "stages" / "merge")
        failed, seconds = timed(runs, Stage.MERGE, exit_code=14, **{BEHAVIOUR: "memory"})

    assert seconds < 30
    assert f"MLflow at {uri}: it did not answer within 5 s" in failed.stderr
    train, publish = trained[0].result, published[0].result
    assert trained[1] - train.seconds < 30
    few_rows, warning = train.warnings
    assert few_rows == "few rows"
    assert warning.startswith(f"MLflow at {uri}: it did not ")
    manifest = manifest_of(runs, Stage.TRAIN)
    assert manifest is not None
    assert manifest.result.warnings == ("few rows",), "the other is about the attempt, and not about its output"
    (warning,) = publish.warnings
    assert warning.endswith("it did not answer within 5 s; scores, addresses or steps of this version were not sent")
    assert publish.publication is not None
    assert version_at_pointer(runs) == publish.publication.version


def timed(runs: StageRuns, stage: Stage, exit_code: int = 0, **environment: str) -> tuple[Ended, float]:
    started = time.monotonic()
    ended = runs.run(stage, **environment)
    assert ended.exit_code == exit_code, ended.stderr
    return ended, time.monotonic() - started
