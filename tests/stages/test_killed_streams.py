"""merge and quantize as processes from S3 to S3, killed in the middle of an upload: the next attempt completes."""

import signal
import sys
from pathlib import Path

import pytest

from edgetune_contract.pipeline import ADAPTER
from edgetune_contract.request import Manifest, Resolved, Result
from edgetune_contract.spec import EdgeFormat, Method
from edgetune_contract.stages import Stage
from edgetune_jobs.publishing.addresses import StageAddress
from edgetune_jobs.publishing.verification import verify
from edgetune_jobs.runtime.outputs import StageUpload
from edgetune_jobs.stage import StageOutput
from edgetune_jobs.store.s3.source import S3Source
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.sources.source import SourceKind
from support.families import make_adapter, make_model
from support.fault_proxy import Fault, FaultProxy
from support.stage_runs import Ended, RunningStage, StageRuns
from support.tiny_runs import tiny_parameters
from support.versitygw import S3Server

pytestmark = pytest.mark.slow

# Embedding and output head have 18 MB each: several parts of an upload.
VOCABULARY = 70_000


@pytest.fixture
def runs(s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path) -> StageRuns:
    """A run behind the proxy with a finished train stage."""
    base = make_model(tmp_path / "base", "llama", tied=False, dtype="bfloat16", vocab_size=VOCABULARY)
    options = {"base_dtype": "bfloat16", "dtype": "float32", "target_modules": "all-linear"}
    make_adapter(tmp_path / "adapter", base, method=Method.QLORA, **options)
    client, uri = s3_server.client(), f"s3://{s3_server.bucket}/{s3_prefix}/base"
    for path in base.iterdir():
        client.upload_file(str(path), s3_server.bucket, f"{s3_prefix}/base/{path.name}")
    digest = S3Source(uri, "spec.baseModel", SourceKind.MODEL, client, tmp_path / "fetched").digest
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "AWS_ACCESS_KEY_ID").write_text(s3_server.admin.access_key_id)
    (secret / "AWS_SECRET_ACCESS_KEY").write_text(s3_server.admin.secret_access_key)
    formats = [EdgeFormat.BITSANDBYTES_INT8, EdgeFormat.COMPRESSED_TENSORS_W8A8]
    runs = StageRuns(
        folder=tmp_path,
        store=s3_server.location(f"{s3_prefix}/store", s3_proxy.endpoint),
        parameters=tiny_parameters(baseModel={"uri": uri}, quantization={"formats": formats}),
        credentials_folder=secret,
        resolved=Resolved(base=digest, train="1" * 64),
        command=(sys.executable, "-m", "edgetune_jobs"),
    )
    finish_training(open_store(s3_server, runs), runs)
    return runs


def open_store(server: S3Server, runs: StageRuns) -> S3Store:
    return S3Store(runs.store.uri, server.client())


def finish_training(store: S3Store, runs: StageRuns) -> None:
    digest = runs.request(Stage.TRAIN).digest
    attempt = StageUpload(store, Stage.TRAIN, digest)
    artifacts, files = attempt.add_artifacts(StageOutput((ADAPTER,)), runs.folder)
    result = Result(stage=Stage.TRAIN, digest=digest, artifacts=artifacts)
    attempt.commit(Manifest(result=result, files=files, created_at="2026-11-24T08:00:00Z"))


def kill_after_second_part(runs: StageRuns, proxy: FaultProxy, stage: Stage) -> Ended:
    """Run a stage and kill its process after the second part of an upload."""
    started: list[RunningStage] = []

    def kill() -> None:
        started[0].process.kill()
        started[0].process.wait()

    proxy.faults.append(Fault("PUT", "partNumber=2", times=1, after_forwarding=kill))
    started.append(runs.start(stage))
    return started[0].wait()


def unfinished_uploads(server: S3Server, runs: StageRuns) -> list[str]:
    found = server.client().list_multipart_uploads(Bucket=server.bucket, Prefix=runs.store.uri.split("/", 3)[3])
    return [upload["Key"] for upload in found.get("Uploads", ())]


def test_merge_and_quantize_that_are_killed_while_streaming_are_completed_by_the_next_attempts(
    runs: StageRuns, s3_server: S3Server, s3_proxy: FaultProxy
) -> None:
    store = open_store(s3_server, runs)
    for stage, uploads in ((Stage.MERGE, 1), (Stage.QUANTIZE, 2)):
        killed = kill_after_second_part(runs, s3_proxy, stage)
        assert killed.exit_code == -signal.SIGKILL
        assert len(unfinished_uploads(s3_server, runs)) == uploads, "it was in the middle of an upload"
        folder = f"stages/{stage}/{runs.request(stage).digest}"
        assert list(store.list(folder)) == [], "no partial output is visible"

        completed = runs.run(stage)

        assert completed.exit_code == 0, completed.stderr
        assert completed.result.facts["path"] == "streaming"
        assert not completed.result.cached
        verification = verify(store, StageAddress(store.uri, stage, completed.result.digest, None))
        assert verification.problems == ()
        assert verification.manifest is not None
        files = {f"{folder}/{entry.path}" for entry in verification.manifest.files}
        assert {found.key for found in store.list(folder)} == {*files, f"{folder}/manifest.json"}
        assert unfinished_uploads(s3_server, runs) == []
