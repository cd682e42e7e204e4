"""Runs on a real MLflow server: every step once, whatever happens, and all that the document of a version says."""

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_jobs.reporting.run_record import RunRecord
from edgetune_jobs.runtime.progress import ProgressUpdate
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.tracking.live import Destination, LiveTracker
from edgetune_jobs.tracking.parameters import flat_parameters
from edgetune_jobs.tracking.published import track_version
from edgetune_jobs.tracking.runs import RunKey
from edgetune_jobs.tracking.settings import TrackingSettings
from edgetune_jobs.tracking.status import RunStatus
from support.broken_trackers import closed_port
from support.fault_proxy import Fault, running_proxy
from support.reported_runs import PARAMETERS, STEPS, fixed_runs
from support.stage_runs import wait_until
from support.trackers import MlflowServerProcess, running_mlflow

REVISION = "main@sha1:" + "7" * 40
CURVES = ("train/loss", "train/learning_rate", "train/grad_norm")

AWAY = closed_port()


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServerProcess]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def versions(place: Path) -> tuple[RunRecord, RunRecord]:
    """Two versions, the newer one first."""
    return fixed_runs(LocalFolderStore((place / "store").as_uri()), place / "files")


@dataclasses.dataclass(frozen=True)
class Tracked:
    """An object that is tracked in an experiment of its own."""

    name: str
    store: StoreLocation

    def destination(self, uri: str, record: RunRecord) -> Destination:
        key = RunKey("team-a", self.name, record.document.version, REVISION)
        parameters = flat_parameters(Parameters.model_validate(PARAMETERS))
        return Destination(TrackingSettings(uri=uri, experiment=self.name, answer_seconds=60), key, parameters)

    def train(
        self,
        server: MlflowServerProcess,
        record: RunRecord,
        steps: Sequence[int],
        uri: str | None = None,
    ) -> tuple[str, ...]:
        """Train some steps as an attempt; its warnings."""
        tracker = LiveTracker(self.destination(uri or server.uri, record), interval=0.02, pause=0.02)
        for step in steps:
            found = record.steps[step - 1]
            assert found.loss is not None
            figures = {
                "loss": found.loss,
                "learningRate": found.learning_rate or 0.0,
                "gradientNorm": found.gradient_norm or 0.0,
            }
            tracker.observe(ProgressUpdate(step, STEPS, "steps", figures))
        if uri != AWAY:
            wait_until(lambda: self.steps(server)[-1:] == [steps[-1]], f"step {steps[-1]} is on the server", 120)
        return tracker.close(seconds=120)

    def status(self, server: MlflowServerProcess, record: RunRecord) -> RunStatus:
        return RunStatus(self.destination(server.uri, record))

    def publish(self, server: MlflowServerProcess, record: RunRecord) -> tuple[str, ...]:
        return track_version(self.destination(server.uri, record), record, self.store, seconds=200)

    def steps(self, server: MlflowServerProcess) -> list[int]:
        """The steps that the server has of the object's runs; empty before there is one."""
        found = server.runs(self.name)
        return [step for run in found for step, _ in server.history(run, "train/loss")]


@pytest.fixture
def tracked(place: Path) -> Tracked:
    return Tracked(f"object-{time.time_ns()}", StoreLocation(uri=(place / "store").as_uri()))


def losses(record: RunRecord) -> list[tuple[int, float]]:
    return [(step.step, step.loss) for step in record.steps if step.loss is not None]


def test_a_run_has_parameters_and_curves_while_it_trains(
    tracked: Tracked, mlflow: MlflowServerProcess, versions: tuple[RunRecord, RunRecord]
) -> None:
    record = versions[0]

    assert tracked.train(mlflow, record, range(1, 11)) == ()

    run = mlflow.run(tracked.name)
    assert (run.name, run.status) == (f"{tracked.name}/{record.document.version[:12]}", "RUNNING")
    assert mlflow.history(run, "train/loss") == losses(record)[:10]
    assert run.parameters["training.learningRate"] == "0.0004"
    assert run.parameters["evaluation.gates.minScore"] == "0.85"
    assert run.parameters["quantization.formats"] == '["BitsAndBytesInt8", "GGUF-Q8_0"]'
    assert run.tags["edgetune.version"] == record.document.version
    assert run.tags["edgetune.attempts"] == "1"
    assert run.tags["mlflow.source.git.commit"] == REVISION


def test_a_resumed_training_continues_its_run_with_every_step_once(
    tracked: Tracked, mlflow: MlflowServerProcess, versions: tuple[RunRecord, RunRecord]
) -> None:
    """The first attempt was killed after step 15, and the newest checkpoint is that of step 10."""
    record = versions[0]
    tracked.train(mlflow, record, range(1, 16))
    first = mlflow.run(tracked.name)

    assert tracked.train(mlflow, record, range(11, 31)) == ()
    assert tracked.publish(mlflow, record) == ()

    run = mlflow.run(tracked.name)
    assert (run.id, run.status, run.tags["edgetune.attempts"]) == (first.id, "FINISHED", "2")
    for curve in CURVES:
        assert [step for step, _ in mlflow.history(run, curve)] == list(range(1, STEPS + 1))
    assert mlflow.history(run, "train/loss") == losses(record)


def test_publish_sends_scores_sizes_speeds_gates_and_addresses(
    tracked: Tracked, mlflow: MlflowServerProcess, versions: tuple[RunRecord, RunRecord]
) -> None:
    record = versions[0]
    document = record.document

    assert tracked.publish(mlflow, record) == ()
    assert tracked.publish(mlflow, record) == (), "a second time, nothing is doubled"

    run = mlflow.run(tracked.name)
    assert run.status == "FINISHED"
    for model, details in document.scores.details.items():
        assert run.metrics[f"score/{model}"] == details.score
        assert run.metrics[f"loss/{model}"] == details.loss
        assert len(mlflow.history(run, f"score/{model}")) == 1
    assert run.metrics["score/improvement"] == document.scores.improvement
    assert run.metrics["score/drop"] == document.scores.drop
    assert {name: run.metrics[f"size_bytes/{name}"] for name in ("adapter", "merged")} == {
        each.name: each.bytes for each in document.artifacts if each.name in ("adapter", "merged")
    }
    assert document.measurement is not None
    assert run.metrics["generation_tokens_per_second/edge"] == document.measurement.generation_tokens_per_second
    assert run.metrics["peak_memory_bytes/base"] > 0
    assert run.metrics["seconds/train"] > 0
    assert run.tags["edgetune.published"] == "true"
    assert "minScore of edge model: 0.979, at least 0.85, passed" in run.tags["edgetune.gates"]
    assert run.tags["edgetune.artifact.edge-bnb-int8"] == f"{tracked.store.uri}/{document.edge.artifact.key}"
    assert Path(run.tags["edgetune.document"].removeprefix("file://")).is_file()
    note = run.tags["mlflow.note.content"]
    assert note.startswith("**Published.**")
    assert run.tags["edgetune.artifact.adapter"] in note


def test_a_refused_version_says_why(
    tracked: Tracked, mlflow: MlflowServerProcess, versions: tuple[RunRecord, RunRecord]
) -> None:
    refusal = "the edge model's score 97.9% is below 99.0%"
    refused = versions[0].document.model_copy(update={"published": False, "refusals": (refusal,)})

    assert tracked.publish(mlflow, dataclasses.replace(versions[0], document=refused)) == ()

    run = mlflow.run(tracked.name)
    assert (run.status, run.tags["edgetune.published"]) == ("FINISHED", "false")
    assert run.tags["edgetune.refusals"] == refusal
    assert run.tags["mlflow.note.content"].startswith(f"**Refused by its gates.** {refusal}\n")


def test_each_version_has_a_run_of_its_own(
    tracked: Tracked, mlflow: MlflowServerProcess, versions: tuple[RunRecord, RunRecord]
) -> None:
    for record in versions:
        assert tracked.publish(mlflow, record) == ()

    runs = {run.tags["edgetune.version"]: run for run in mlflow.runs(tracked.name)}
    assert set(runs) == {record.document.version for record in versions}
    for record in versions:
        assert mlflow.history(runs[record.document.version], "train/loss") == losses(record)


def test_publish_sends_what_train_could_not(
    tracked: Tracked, mlflow: MlflowServerProcess, versions: tuple[RunRecord, RunRecord]
) -> None:
    record = versions[0]
    (warning,) = tracked.train(mlflow, record, range(1, STEPS + 1), AWAY)
    assert "it refuses connections; publish sends the 264 steps that it lacks, if it can" in warning

    assert tracked.publish(mlflow, record) == ()

    run = mlflow.run(tracked.name)
    assert mlflow.history(run, "train/loss") == losses(record)
    assert run.parameters["training.learningRate"] == "0.0004"
    assert "edgetune.attempts" not in run.tags


def test_lost_answers_and_a_server_that_is_away_for_a_while_double_no_step_and_lose_none(
    tracked: Tracked, mlflow: MlflowServerProcess, versions: tuple[RunRecord, RunRecord]
) -> None:
    record = versions[0]
    with running_proxy(mlflow.uri) as proxy:
        proxy.faults += [
            Fault("POST", "runs/create", times=1, loses_answer=True),
            Fault("POST", "runs/log-batch", after=2, times=2, loses_answer=True),
            Fault("POST", "runs/log-batch", times=2, status=503),
        ]
        assert tracked.train(mlflow, record, range(1, 11), proxy.endpoint) == ()
        assert tracked.train(mlflow, record, range(6, STEPS + 1), proxy.endpoint) == ()

    assert mlflow.history(mlflow.run(tracked.name), "train/loss") == losses(record)
    assert sum("runs/create" in path for _, path in proxy.requests) == 1, "the run was found after the lost answer"


def test_a_stage_that_fails_or_is_stopped_ends_its_run_until_one_works_again(
    tracked: Tracked, mlflow: MlflowServerProcess, versions: tuple[RunRecord, RunRecord]
) -> None:
    record = versions[0]
    tracked.train(mlflow, record, range(1, 4))
    for stopped, status in ((False, "FAILED"), (True, "KILLED")):
        tracked.status(mlflow, record).end(stopped=stopped, seconds=120)
        assert mlflow.run(tracked.name).status == status

        again = tracked.status(mlflow, record)
        again.resume()
        wait_until(lambda: mlflow.run(tracked.name).status == "RUNNING", "the run is RUNNING again", 120)

    tracked.status(mlflow, record).end(stopped=False, seconds=120)
    tracked.train(mlflow, record, range(1, 6))
    run = mlflow.run(tracked.name)
    assert (run.status, run.tags["edgetune.attempts"]) == ("RUNNING", "2")


def test_a_stage_that_fails_begins_no_run_and_leaves_one_that_is_finished(
    tracked: Tracked, mlflow: MlflowServerProcess, versions: tuple[RunRecord, RunRecord]
) -> None:
    tracked.status(mlflow, versions[0]).end(stopped=False, seconds=120)
    assert mlflow.runs(tracked.name) == []

    tracked.publish(mlflow, versions[0])
    for record in versions:
        tracked.status(mlflow, record).end(stopped=False, seconds=120)
    assert mlflow.run(tracked.name).status == "FINISHED"


def test_the_status_is_set_last_by_the_end_of_a_stage(
    tracked: Tracked, mlflow: MlflowServerProcess, versions: tuple[RunRecord, RunRecord]
) -> None:
    """The stage fails while its beginning is still on the way to the server."""
    tracked.train(mlflow, versions[0], range(1, 4))
    tracked.status(mlflow, versions[0]).end(stopped=True, seconds=120)
    has_ended = threading.Event()

    def hold() -> None:
        has_ended.wait(1)

    with running_proxy(mlflow.uri) as proxy:
        proxy.faults += [
            Fault("POST", "runs/update", times=1, before_forwarding=hold),
            Fault("POST", "runs/update", after_forwarding=has_ended.set),
        ]
        status = RunStatus(tracked.destination(proxy.endpoint, versions[0]))
        status.resume()
        status.end(stopped=False, seconds=120)

    assert mlflow.run(tracked.name).status == "FAILED"
