"""Clean-ups and stages as processes: results, signals, and the marks that stages write."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgetune_contract.clean_up import CleanUpRequest, CleanUpResult
from edgetune_contract.digest import pointer_key
from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.runtime.clean_up import clean_up
from edgetune_jobs.store.artifact_uses import Uses
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import Store
from support.fault_proxy import Fault, FaultProxy
from support.stage_runs import StageRuns
from support.used_stages import FIRST, SECOND, keys, make_model
from support.versitygw import S3Server


@dataclass
class CleanUpRuns:
    """Starts clean-ups as processes, as a Job's container does."""

    folder: Path
    location: StoreLocation
    credentials_folder: Path | None = None

    def start(self, request: str | None = None) -> "subprocess.Popen[bytes]":
        valid = CleanUpRequest(namespace="team-a", name="sensor-faults", store=self.location)
        environment = {
            "EDGETUNE_REQUEST": valid.encode() if request is None else request,
            "EDGETUNE_WORK_DIR": str(self.folder),
            "EDGETUNE_TERMINATION_LOG": str(self.log),
            "PYTHONWARNINGS": "error",
        }
        if self.credentials_folder is not None:
            environment["EDGETUNE_CREDENTIALS_DIR"] = str(self.credentials_folder)
        self.log.unlink(missing_ok=True)
        return subprocess.Popen([sys.executable, "-m", "edgetune_jobs", "clean-up"], env=environment)

    @property
    def log(self) -> Path:
        return self.folder / "termination-log"

    @property
    def result(self) -> CleanUpResult:
        return CleanUpResult.decode(self.log.read_text())


@pytest.fixture
def runs(s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path) -> CleanUpRuns:
    """Clean-ups in a bucket behind the proxy."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "AWS_ACCESS_KEY_ID").write_text(s3_server.admin.access_key_id)
    (secret / "AWS_SECRET_ACCESS_KEY").write_text(s3_server.admin.secret_access_key)
    return CleanUpRuns(tmp_path, s3_server.location(s3_prefix, s3_proxy.endpoint), secret)


@pytest.fixture
def bucket(s3_server: S3Server, runs: CleanUpRuns) -> Store:
    """The store of `runs`, without the proxy."""
    return S3Store(runs.location.uri, s3_server.client())


def test_the_termination_message_counts_what_was_removed(runs: CleanUpRuns, bucket: Store) -> None:
    make_model(bucket, "sensor-faults", FIRST)
    make_model(bucket, "pump-faults", SECOND)

    assert runs.start().wait(60) == 0

    assert json.loads(runs.log.read_text()) == {
        "removedObjects": 5,
        "removedBytes": runs.result.removed_bytes,
        "sharedStages": 3,
    }


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_clean_up_that_was_killed_between_two_deletions_is_completed_by_the_next(
    runs: CleanUpRuns, bucket: Store, s3_proxy: FaultProxy, number: signal.Signals
) -> None:
    make_model(bucket, "sensor-faults", FIRST)
    started: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        started[0].send_signal(number)

    s3_proxy.faults.append(Fault("DELETE", "/stages/", times=1, after=3, after_forwarding=kill))
    started.append(runs.start())
    assert started[0].wait(60) == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert keys(bucket) != set()
    assert runs.start().wait(60) == 0

    assert keys(bucket) == set()


def test_a_store_that_denies_access_fails_the_clean_up_with_the_reason(
    runs: CleanUpRuns, bucket: Store, s3_proxy: FaultProxy
) -> None:
    make_model(bucket, "sensor-faults", FIRST)
    s3_proxy.faults.append(Fault("DELETE", "/models/", status=403))

    assert runs.start().wait(60) == 11

    failure = runs.result.failure
    assert failure is not None
    assert failure.reason == "AccessDenied"
    assert f"lack s3:DeleteObject on {runs.location.uri}/{pointer_key('sensor-faults')}" in failure.message


def test_an_invalid_request_fails_the_clean_up_with_the_reason(tmp_path: Path) -> None:
    runs = CleanUpRuns(tmp_path, StoreLocation(uri=(tmp_path / "store").as_uri()))

    assert runs.start('{"name": ""}').wait(60) == 10

    failure = runs.result.failure
    assert failure is not None
    assert failure.message.startswith("EDGETUNE_REQUEST is not a valid request for this image: namespace: ")


def stage_runs(folder: Path, name: str) -> StageRuns:
    """A run whose inputs and store are shared by all runs of the folder."""
    for path, content in (("base/config.json", "{}"), ("base/model.safetensors", "weights"), ("train.jsonl", "{}\n")):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(content)
    parameters = {
        "baseModel": {"uri": (folder / "base").as_uri()},
        "dataset": {"train": {"uri": (folder / "train.jsonl").as_uri()}},
    }
    own = folder / name
    own.mkdir()
    return StageRuns(
        own, StoreLocation(uri=(folder / "store").as_uri()), Parameters.model_validate(parameters), name=name
    )


def test_stages_mark_the_output_that_they_use_also_that_of_another_object(tmp_path: Path) -> None:
    first, second = stage_runs(tmp_path, "first"), stage_runs(tmp_path, "second")
    store = LocalFolderStore(first.store.uri)
    first.run_up_to(Stage.TRAIN)
    after_first = [use.stage for use in Uses(store, "first").own()]

    prepare = second.run(Stage.PREPARE)
    assert [done.stage for done in prepare.result.done] == [Stage.TRAIN]
    clean_up(store, "first")
    train = second.run(Stage.TRAIN, EDGETUNE_TEST_BEHAVIOUR="bug")

    assert after_first == list(Stage)
    assert train.exit_code == 0, train.stderr
    assert train.result.cached
    assert {key.rpartition("/")[2] for key in keys(store) if key.startswith("uses/")} == {"second"}
    assert clean_up(store, "second").shared_stages == 0
    assert keys(store) == set()


def test_a_stage_of_a_later_generation_marks_its_output(tmp_path: Path) -> None:
    runs = stage_runs(tmp_path, "first")
    store = LocalFolderStore(runs.store.uri)
    runs.run_up_to(Stage.TRAIN)
    runs.parameters = runs.parameters.model_copy(update={"lora": runs.parameters.lora.model_copy(update={"rank": 8})})
    assert runs.run(Stage.TRAIN).exit_code == 0

    uses = [use for use in Uses(store, "first").own() if use.stage is Stage.TRAIN]

    assert len(uses) == 2
    clean_up(store, "first")
    assert keys(store) == set()
