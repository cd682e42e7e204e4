"""Merge and quantize from S3 to S3: output equal to that from local folders, and no leftovers after a fault."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_contract.request import FileEntry
from edgetune_contract.spec import Method
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import AccessDenied, Interrupted, InvalidInput, StageError, TransientError
from edgetune_jobs.models.folder import ModelFolder, SourceModelFolder, StoredModelFolder
from edgetune_jobs.runtime.outputs import StageUpload
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.stages import merge, quantize
from edgetune_jobs.store.files import fingerprint, list_files
from edgetune_jobs.store.s3.source import S3Source
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.sources.source import SourceKind
from edgetune_jobs.store.store import DamagedObject
from support.families import add_unused_tensors, make_adapter, make_model
from support.fault_proxy import Fault, FaultProxy
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters
from support.versitygw import S3Server

pytestmark = pytest.mark.usefixtures("two_threads")

DIGEST = "d" * 64


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base in four shards, an adapter, and the merged model from local folders."""
    folder = tmp_path_factory.mktemp("inputs")
    base = make_model(folder / "base", "qwen3", tied=False, dtype="bfloat16", shards=4)
    options = {"base_dtype": "bfloat16", "dtype": "float32", "target_modules": "all-linear"}
    adapter = make_adapter(folder / "adapter", base, method=Method.QLORA, **options)
    context = stage_context(Stage.MERGE, tiny_parameters(), folder / "merge", {"base": base, "adapter": adapter})
    merge.run(context)
    return {"base": base, "adapter": adapter, "merged": context.output / "merged"}


@dataclass
class Bucket:
    """The part of a bucket that one test uses, behind a proxy that injects faults."""

    server: S3Server
    proxy: FaultProxy
    prefix: str
    folder: Path

    def upload(self, folder: Path, name: str) -> None:
        for path in list_files(folder):
            self.put(f"{name}/{path}", (folder / path).read_bytes())

    def put(self, key: str, content: bytes | bytearray) -> None:
        self.server.client().put_object(Bucket=self.server.bucket, Key=f"{self.prefix}/{key}", Body=bytes(content))

    def source(self, name: str) -> S3Source:
        client = self.server.client(self.proxy.endpoint, attempts=3)
        uri = f"s3://{self.server.bucket}/{self.prefix}/{name}"
        return S3Source(uri, "spec.baseModel", SourceKind.MODEL, client, self.folder / f"fetched-{name}")

    def base(self) -> ModelFolder:
        return SourceModelFolder(self.source("base"), "spec.baseModel")

    def merged(self, folder: Path) -> ModelFolder:
        entries = []
        for path in list_files(folder):
            found = fingerprint(folder / path)
            entries.append(FileEntry(path=path, bytes=found.bytes, sha256=found.sha256))
        source = self.source("merged")
        return StoredModelFolder(
            source, "the merged model", entries, lambda wanted: source.fetch([entry.path for entry in wanted])
        )

    def store(self) -> S3Store:
        client = self.server.client(self.proxy.endpoint, attempts=3)
        return S3Store(f"s3://{self.server.bucket}/{self.prefix}/store", client, part_bytes=5 * 2**20)

    def leftovers(self) -> list[str]:
        """Objects and unfinished uploads below the store."""
        found = self.server.client().list_multipart_uploads(Bucket=self.server.bucket, Prefix=f"{self.prefix}/store")
        return [upload["Key"] for upload in found.get("Uploads", ())] + [
            each.key for each in self.store().list("stages")
        ]


@pytest.fixture
def bucket(s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path) -> Bucket:
    """An empty part of a bucket."""
    return Bucket(s3_server, s3_proxy, s3_prefix, tmp_path)


@contextmanager
def attempt_at(context: StageContext, bucket: Bucket) -> Iterator[tuple[StageContext, StageUpload]]:
    """A context that streams to the store; after a failure the attempt is cleaned up, as in the runtime."""
    attempt = StageUpload(bucket.store(), context.request.stage, DIGEST)
    try:
        yield replace(context, streams=attempt), attempt
    except StageError:
        bucket.proxy.faults.clear()
        attempt.clean_up(won=False)
        raise


def run_merge(bucket: Bucket, inputs: dict[str, Path], stop: threading.Event | None = None) -> list[FileEntry]:
    """Merge from S3 to S3; the written files."""
    work = bucket.folder / "merge"
    context = stage_context(Stage.MERGE, tiny_parameters(), work, {"adapter": inputs["adapter"]}, stop=stop)
    with attempt_at(replace(context, models={"base": bucket.base()}), bucket) as (streamed, attempt):
        output: StageOutput = merge.run(streamed)
        assert output.facts["path"] == "streaming"
        assert not list(context.output.rglob("*.safetensors")), "no weights on this machine"
        return list(attempt.add_artifacts(output, context.output)[1])


def quantize_merged(bucket: Bucket, inputs: dict[str, Path]) -> None:
    context = stage_context(Stage.QUANTIZE, tiny_parameters(), bucket.folder / "quantize", {})
    with attempt_at(replace(context, models={"merged": bucket.merged(inputs["merged"])}), bucket) as (streamed, _):
        quantize.run(streamed)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def test_a_model_merged_from_s3_to_s3_equals_the_one_from_folders(bucket: Bucket, inputs: dict[str, Path]) -> None:
    bucket.upload(inputs["base"], "base")

    files = run_merge(bucket, inputs)

    for entry in files:
        key = f"{bucket.prefix}/store/stages/merge/{DIGEST}/{entry.path}"
        local = inputs["merged"] / entry.path.partition("/merged/")[2]
        assert bucket.server.object_path(key).read_bytes() == local.read_bytes()
        assert entry.sha256 == fingerprint(local).sha256
    assert {entry.path.partition("/merged/")[2] for entry in files} == set(list_files(inputs["merged"]))


def test_only_headers_index_and_tensors_are_read_each_tensor_once(bucket: Bucket, inputs: dict[str, Path]) -> None:
    bucket.upload(inputs["base"], "base")

    run_merge(bucket, inputs)

    requests = [path for method, path in bucket.proxy.requests if method == "GET" and ".safetensors" in path]
    headers = 2 * len(list(inputs["base"].glob("*.safetensors")))
    tensors = len(weights_of(inputs["merged"] / "model.safetensors"))
    index = 1
    assert len(requests) == headers + tensors + index


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", ".safetensors", times=2, after=8, status=503),
        Fault("GET", ".safetensors", times=2, after=8, cut_after=100),
        Fault("PUT", "partNumber=1", times=1, status=503),
        Fault("PUT", "partNumber=1", times=1, loses_answer=True),
    ],
    ids=["range 503", "range broken", "part 503", "part's answer lost"],
)
def test_a_transient_error_is_retried(bucket: Bucket, inputs: dict[str, Path], fault: Fault) -> None:
    bucket.upload(inputs["base"], "base")
    bucket.proxy.faults.append(fault)

    files = run_merge(bucket, inputs)

    expected = fingerprint(inputs["merged"] / "model.safetensors").sha256
    assert expected in {entry.sha256 for entry in files}
    assert fault.seen > fault.after


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault("GET", "model-00002", after=4, status=503), TransientError),
        (Fault("PUT", "partNumber", status=503), TransientError),
        (Fault("PUT", "partNumber", status=403), AccessDenied),
        (Fault("POST", "uploadId", status=503), TransientError),
    ],
    ids=["ranges 503", "parts 503", "parts denied", "completion 503"],
)
def test_a_permanent_fault_leaves_nothing_in_the_store(
    bucket: Bucket, inputs: dict[str, Path], fault: Fault, kind: type[StageError]
) -> None:
    bucket.upload(inputs["base"], "base")
    bucket.proxy.faults.append(fault)

    with pytest.raises(kind):
        run_merge(bucket, inputs)

    assert bucket.leftovers() == []


def test_a_base_that_changes_between_two_reads_is_refused(bucket: Bucket, inputs: dict[str, Path]) -> None:
    bucket.upload(inputs["base"], "base")
    shard = sorted(inputs["base"].glob("*.safetensors"))[2]
    changed = bytearray(shard.read_bytes())
    changed[-1] ^= 1
    bucket.proxy.faults.append(
        Fault("GET", shard.name, after=2, times=1, before_forwarding=lambda: bucket.put(f"base/{shard.name}", changed))
    )

    with pytest.raises(InvalidInput, match=r"model-00003-of-0000\d\.safetensors was changed while it was read"):
        run_merge(bucket, inputs)

    assert bucket.leftovers() == []


def test_a_stage_that_is_stopped_aborts_its_upload(bucket: Bucket, inputs: dict[str, Path]) -> None:
    bucket.upload(inputs["base"], "base")
    stop = threading.Event()
    bucket.proxy.faults.append(Fault("GET", "model-00003", before_forwarding=stop.set))

    with pytest.raises(Interrupted):
        run_merge(bucket, inputs, stop)

    assert bucket.leftovers() == []


def test_an_edge_model_from_a_merged_model_in_s3_equals_the_one_from_folders(
    bucket: Bucket, inputs: dict[str, Path], tmp_path: Path
) -> None:
    bucket.upload(inputs["merged"], "merged")
    local = stage_context(Stage.QUANTIZE, tiny_parameters(), tmp_path / "local", {"merged": inputs["merged"]})
    quantize.run(local)

    quantize_merged(bucket, inputs)

    [key] = [key for key in bucket.leftovers() if key.endswith(".safetensors")]
    made = bucket.server.object_path(f"{bucket.prefix}/store/{key}").read_bytes()
    assert made == (local.output / "edge-bnb-int8/model.safetensors").read_bytes()


def test_a_merged_model_that_was_damaged_in_the_store_is_refused(bucket: Bucket, inputs: dict[str, Path]) -> None:
    bucket.upload(inputs["merged"], "merged")
    damaged = bytearray((inputs["merged"] / "model.safetensors").read_bytes())
    damaged[-2] ^= 1
    bucket.put("merged/model.safetensors", bytes(damaged))

    with pytest.raises(DamagedObject, match=r"merged/model\.safetensors is damaged: .* with SHA-256"):
        quantize_merged(bucket, inputs)

    assert bucket.leftovers() == []


def test_a_model_in_the_store_with_unused_tensors_is_verified_and_quantized(bucket: Bucket, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama", tied=True, dtype="bfloat16", shards=2)
    add_unused_tensors(model)
    bucket.upload(model, "merged")

    quantize_merged(bucket, {"merged": model})

    [key] = [key for key in bucket.leftovers() if key.endswith(".safetensors")]
    assert "lm_head.weight" not in weights_of(bucket.server.object_path(f"{bucket.prefix}/store/{key}"))


def test_a_file_larger_than_one_part_is_uploaded_in_several(bucket: Bucket, tmp_path: Path) -> None:
    content: Any = bytes(range(256)) * (17 * 2**12)

    with bucket.store().create_file("stages/large", len(content)) as file:
        for start in range(0, len(content), 3_000_000):
            file.write(content[start : start + 3_000_000])

    assert bucket.server.object_path(f"{bucket.prefix}/store/stages/large").read_bytes() == content
    (tmp_path / "content").write_bytes(content)
    assert file.fingerprint == fingerprint(tmp_path / "content")
    assert sum("partNumber" in path for _, path in bucket.proxy.requests) == 4


def test_an_upload_whose_writer_fails_is_aborted_at_once(bucket: Bucket) -> None:
    def write_half() -> None:
        with bucket.store().create_file("stages/large", 20 * 2**20) as file:
            file.write(bytes(11 * 2**20))
            raise InvalidInput("halfway")

    with pytest.raises(InvalidInput, match="halfway"):
        write_half()

    assert bucket.leftovers() == []


def test_a_file_of_another_size_than_announced_is_not_stored(bucket: Bucket) -> None:
    with (
        pytest.raises(ValueError, match="3 bytes were written instead of 10"),
        bucket.store().create_file("stages/x", 10) as file,
    ):
        file.write(b"abc")

    assert bucket.leftovers() == []
