"""Runs that are tracked on a real MLflow server: every step once, the scores of the status, and no secret."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from support.local_runs import manifest_of, new_runs, parameters
from support.stage_process import BEHAVIOUR, LOGGED_STEPS, STEP_SECONDS
from support.stage_runs import Ended, StageRuns
from support.trackers import MlflowServerProcess, running_mlflow

STEPS = range(1, LOGGED_STEPS + 1)
REVISION = "main@sha1:" + "7" * 40
SECRET = "a-token-that-nobody-may-see"
CURVES = ("train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second")


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServerProcess]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def runs(tmp_path: Path, mlflow: MlflowServerProcess) -> StageRuns:
    """A run of an object of its own, of which train is next."""
    prepared = new_runs(tmp_path)
    prepared.name = f"object-{time.time_ns()}"
    gates = {"gates": {"minScore": 0.85, "maxDrop": 0.05}}
    prepared.parameters = parameters(tmp_path, evaluation=gates, training={"learningRate": 0.0003})
    assert prepared.run(Stage.PREPARE).exit_code == 0
    prepared.environment |= {"EDGETUNE_MLFLOW_URI": f"{mlflow.uri}/", BEHAVIOUR: "train_with_log", STEP_SECONDS: "0.3"}
    return prepared


def tracked(runs: StageRuns, stage: Stage, **environment: str) -> Ended:
    """A stage with a request as the operator sends it for a tracked run."""
    request = runs.request(stage, source_revision=REVISION).encode()
    return runs.start(stage, request=request, **environment).wait()


def finished(runs: StageRuns) -> Ended:
    """The stages after train, to the end."""
    for stage in (Stage.MERGE, Stage.QUANTIZE, Stage.EVALUATE):
        ended = runs.run(stage, **{BEHAVIOUR: "work"})
        assert ended.exit_code == 0, ended.stderr
    ended = tracked(runs, Stage.PUBLISH)
    assert ended.exit_code == 0, ended.stderr
    return ended


def experiment_of(runs: StageRuns) -> str:
    return f"team-a/{runs.name}"


def losses() -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in STEPS]


def test_a_run_has_curves_while_it_trains_and_scores_gates_and_addresses_at_the_end(
    runs: StageRuns, mlflow: MlflowServerProcess
) -> None:
    trained = tracked(runs, Stage.TRAIN)

    assert trained.exit_code == 0, trained.stderr
    assert trained.result.warnings == ("few rows",)
    live = mlflow.run(experiment_of(runs))
    version = runs.request(Stage.PUBLISH).digest
    assert (live.name, live.status) == (f"{runs.name}/{version[:12]}", "RUNNING")
    assert mlflow.history(live, "train/loss") == losses()
    assert live.tags["edgetune.attempts"] == "1"
    assert live.tags["mlflow.source.git.commit"] == REVISION
    assert live.parameters["training.learningRate"] == "0.0003"
    assert live.parameters["evaluation.gates.minScore"] == "0.85"
    assert live.parameters["quantization.formats"] == '["BitsAndBytesInt8"]'

    published = finished(runs)

    assert published.result.warnings == ()
    run = mlflow.run(experiment_of(runs))
    assert (run.id, run.status) == (live.id, "FINISHED")
    for curve in CURVES:
        assert [step for step, _ in mlflow.history(run, curve)] == list(STEPS)
    assert mlflow.history(run, "eval/loss") == [(step, 2 / step) for step in STEPS if step % 2 == 0]
    evaluated = manifest_of(runs, Stage.EVALUATE)
    assert evaluated is not None
    scores = evaluated.result.scores
    assert scores is not None
    assert run.metrics["score/improvement"] == pytest.approx(scores.improvement)
    assert run.metrics["score/drop"] == pytest.approx(scores.drop)
    assert run.metrics["size_bytes/adapter"] > 0
    assert run.tags["edgetune.version"] == version
    assert run.tags["edgetune.published"] == "true"
    assert run.tags["edgetune.gates"].startswith("minScore of edge model: 89.0%")
    assert run.tags["edgetune.artifact.edge-bnb-int8"].startswith(f"{runs.store.uri}/stages/quantize/")
    assert Path(run.tags["edgetune.report"].removeprefix("file://")).is_file()
    assert Path(run.tags["edgetune.document"].removeprefix("file://")).is_file()
    assert run.tags["mlflow.note.content"].startswith("**Published.**")
