"""Stage processes over a real S3 server: kills, signals, lost answers and denied access at each kind of request."""

import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgetune_contract.request import Result
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.store.manifests import read_manifest
from edgetune_jobs.store.s3.store import S3Store
from support.fault_proxy import Fault, FaultProxy
from support.stage_runs import RunningStage, StageRuns
from support.versitygw import S3Server, credentials_folder

# More than one part of an upload.
LARGE = str(66 * 2**20)


@pytest.fixture
def runs(s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path) -> StageRuns:
    """A run whose base, data and store are in one bucket behind the proxy."""
    files = {
        "base/config.json": b"{}",
        "base/model.safetensors": b"weights",
        "base/consolidated.safetensors": b"the same weights in another layout",
        "base/pytorch_model.bin": b"a pickle",
        "train.jsonl": b'{"instruction": "a", "response": "b"}\n',
    }
    for path, content in files.items():
        s3_server.client().put_object(Bucket=s3_server.bucket, Key=f"{s3_prefix}-inputs/{path}", Body=content)
    inputs = f"s3://{s3_server.bucket}/{s3_prefix}-inputs"
    parameters = {"baseModel": {"uri": f"{inputs}/base"}, "dataset": {"train": {"uri": f"{inputs}/train.jsonl"}}}
    return StageRuns(
        folder=tmp_path,
        store=s3_server.location(f"{s3_prefix}/team-a", s3_proxy.endpoint),
        parameters=Parameters.model_validate(parameters),
        credentials_folder=credentials_folder(tmp_path, s3_server.admin),
    )


def open_store(server: S3Server, runs: StageRuns) -> S3Store:
    return S3Store(runs.store.uri, server.client())


def stored_keys(server: S3Server, runs: StageRuns) -> set[str]:
    return {found.key for found in open_store(server, runs).list("stages")}


def unfinished_uploads(server: S3Server, runs: StageRuns) -> list[str]:
    prefix = runs.store.uri.removeprefix(f"s3://{server.bucket}/")
    found = server.client().list_multipart_uploads(Bucket=server.bucket, Prefix=prefix)
    return [upload["Key"] for upload in found.get("Uploads", ())]


def verify(server: S3Server, runs: StageRuns, result: Result) -> None:
    """The manifest is there, all its files are intact, and there is nothing else."""
    store = open_store(server, runs)
    manifest = read_manifest(store, result.stage, result.digest)
    assert manifest is not None
    folder = f"stages/{result.stage}/{result.digest}"
    store.fetch_folder(folder, manifest.files, runs.folder / "verified")
    named = {f"{folder}/{entry.path}" for entry in manifest.files}
    assert stored_keys(server, runs) == named | {f"{folder}/manifest.json"}
    assert unfinished_uploads(server, runs) == []


@pytest.fixture
def signal_at(runs: StageRuns, s3_proxy: FaultProxy) -> Callable[[int, str, str, str], RunningStage]:
    """Starts prepare and sends its process a signal before or after the first matching request to the server."""

    def start(number: int, when: str, method: str, path_part: str) -> RunningStage:
        started: list[RunningStage] = []

        def send() -> None:
            process = started[0].process
            process.send_signal(number)
            if number == signal.SIGKILL:
                process.wait()

        before, after = (send, None) if when == "before" else (None, send)
        s3_proxy.faults.append(
            Fault(
                method,
                path_part,
                times=1,
                before_forwarding=before,
                forwarded=when == "after" or number != signal.SIGKILL,
                after_forwarding=after,
            )
        )
        size = LARGE if path_part in ("partNumber=2", "uploadId") else "10"
        started.append(runs.start(Stage.PREPARE, EDGETUNE_TEST_ARTIFACT_BYTES=size))
        return started[0]

    return start


MOMENTS = [
    pytest.param("before", "GET", "list-type=2", id="before the first listing"),
    pytest.param("after", "PUT", "probe.txt", id="after the probe"),
    pytest.param("before", "PUT", "origin.txt", id="before a small file"),
    pytest.param("before", "PUT", "partNumber=2", id="between two parts"),
    pytest.param("after", "POST", "uploadId", id="after a multipart upload"),
    pytest.param("before", "PUT", "manifest.json", id="before the manifest"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("when", "method", "path_part"), [*MOMENTS, pytest.param("after", "PUT", "manifest.json")])
def test_a_stage_that_is_killed_at_any_request_is_completed_by_the_next_attempt(
    runs: StageRuns,
    s3_server: S3Server,
    signal_at: Callable[[int, str, str, str], RunningStage],
    when: str,
    method: str,
    path_part: str,
) -> None:
    killed = signal_at(signal.SIGKILL, when, method, path_part).wait()
    has_manifest = any(key.endswith("manifest.json") for key in stored_keys(s3_server, runs))
    completed = runs.run(Stage.PREPARE)

    assert killed.exit_code == -signal.SIGKILL
    assert has_manifest == (when == "after" and path_part == "manifest.json")
    assert completed.exit_code == 0, completed.stderr
    assert completed.result.cached == has_manifest
    verify(s3_server, runs, completed.result)


@pytest.mark.slow
@pytest.mark.parametrize(("when", "method", "path_part"), MOMENTS)
def test_a_stage_that_is_stopped_at_any_request_before_its_manifest_ends_with_75_and_leaves_nothing(
    runs: StageRuns,
    s3_server: S3Server,
    signal_at: Callable[[int, str, str, str], RunningStage],
    when: str,
    method: str,
    path_part: str,
) -> None:
    stopped = signal_at(signal.SIGTERM, when, method, path_part).wait()

    manifest = any(key.endswith("manifest.json") for key in stored_keys(s3_server, runs))
    if path_part == "manifest.json":
        # The write of the manifest is not interrupted, and then the stage is done.
        assert (stopped.exit_code, manifest) == (0, True)
        return
    assert stopped.exit_code == 75, stopped.stderr
    assert stored_keys(s3_server, runs) == set()
    assert unfinished_uploads(s3_server, runs) == []


def test_a_manifest_that_was_written_without_an_answer_counts_as_written(
    runs: StageRuns, s3_server: S3Server, s3_proxy: FaultProxy
) -> None:
    s3_proxy.faults.append(Fault("PUT", "manifest.json", times=1, loses_answer=True))

    ended = runs.run(Stage.PREPARE)

    assert ended.exit_code == 0, ended.stderr
    assert not ended.result.cached, "this attempt wrote it"
    verify(s3_server, runs, ended.result)


@pytest.mark.slow
def test_a_manifest_that_may_have_been_written_keeps_its_files(
    runs: StageRuns, s3_server: S3Server, s3_proxy: FaultProxy
) -> None:
    s3_proxy.faults.append(Fault("PUT", "manifest.json", loses_answer=True))
    s3_proxy.faults.append(Fault("GET", "manifest.json", status=503, after=1))

    failed = runs.run(Stage.PREPARE)
    s3_proxy.faults.clear()
    again = runs.run(Stage.PREPARE)

    assert failed.exit_code == 14, failed.stderr
    assert again.result.cached
    verify(s3_server, runs, again.result)


def test_an_attempt_whose_files_the_winner_removes_returns_the_winners_result(
    runs: StageRuns, s3_server: S3Server, s3_proxy: FaultProxy
) -> None:
    winner: list[Result] = []

    def win() -> None:
        direct = replace(runs, store=s3_server.location(runs.store.uri.split("/", 3)[3]))
        winner.append(direct.run(Stage.PREPARE).result)

    s3_proxy.faults.append(Fault("PUT", "partNumber=2", times=1, before_forwarding=win))
    loser = runs.run(Stage.PREPARE, EDGETUNE_TEST_ARTIFACT_BYTES=LARGE)

    assert loser.exit_code == 0, loser.stderr
    assert loser.result.cached
    assert loser.result.artifacts == winner[0].artifacts
    verify(s3_server, runs, loser.result)


def test_read_only_credentials_are_refused_before_the_work(runs: StageRuns, s3_server: S3Server) -> None:
    runs.credentials_folder = credentials_folder(runs.folder, s3_server.reader)

    ended = runs.run(Stage.PREPARE, EDGETUNE_TEST_BEHAVIOUR="bug")

    assert ended.exit_code == 11
    assert f"lack s3:PutObject on {runs.store.uri}/uses/prepare/" in ended.failure


def test_a_store_that_is_down_is_a_transient_error(runs: StageRuns, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("HEAD", "", forwarded=False))
    s3_proxy.faults.append(Fault("GET", "", forwarded=False))

    ended = runs.run(Stage.PREPARE)

    assert ended.exit_code == 14
    assert "cannot reach the store at s3://" in ended.failure


def test_the_base_is_fetched_without_pickles_and_unused_weights(runs: StageRuns, s3_proxy: FaultProxy) -> None:
    runs.run_up_to(Stage.PREPARE)
    s3_proxy.requests.clear()

    assert runs.run(Stage.TRAIN).exit_code == 0

    fetched = {path.rpartition("/")[2] for method, path in s3_proxy.requests if method == "GET" and "/base/" in path}
    assert fetched == {"config.json", "model.safetensors"}


def test_a_full_work_volume_is_a_transient_error(runs: StageRuns) -> None:
    runs.run_up_to(Stage.PREPARE)
    small = runs.folder / "work"
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.decode().strip()}")
    try:
        ended = runs.run(Stage.TRAIN)
    finally:
        subprocess.run(["umount", str(small)], check=True)

    assert ended.exit_code == 14
    assert ended.failure.startswith("the disk is full: ")
