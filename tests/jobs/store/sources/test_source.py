"""Base models and data sets in local folders and in S3: their files, digests and downloads."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import patch

import pytest

from edgetune_contract.digest import sha256_of
from edgetune_jobs.errors import AccessDenied, InvalidInput, TransientError
from edgetune_jobs.models.folder import SourceModelFolder
from edgetune_jobs.models.weights import fill
from edgetune_jobs.store.files import fingerprint
from edgetune_jobs.store.s3.bucket import RemoteObject, S3Bucket
from edgetune_jobs.store.s3.source import S3Source
from edgetune_jobs.store.sources.source import FolderSource, Source, SourceKind, check_pin
from support.fault_proxy import Fault, FaultProxy
from support.versitygw import S3Server

MODEL = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "tokenizer.model.v3": b"pieces",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"a pickle",
    "modeling_custom.py": b"import os",
    "original/consolidated.safetensors": b"the same weights again",
    ".git/config": b"[core]",
}
FETCHABLE = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer.model.v3"]
TEN_MEGABYTES = hashlib.shake_128(b"model").digest(10_000_000)

Open = Callable[[Mapping[str, bytes], str, SourceKind], Source]


@pytest.fixture(params=["folder", "s3"])
def open_source(request: pytest.FixtureRequest, tmp_path: Path, s3_prefix: str) -> Open:
    """Writes files below a name and opens the name as a source."""

    def in_folder(files: Mapping[str, bytes], name: str, kind: SourceKind) -> Source:
        for path, content in files.items():
            (tmp_path / "files" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "files" / path).write_bytes(content)
        return FolderSource((tmp_path / "files" / name).as_uri(), "spec.source", kind)

    def in_s3(files: Mapping[str, bytes], name: str, kind: SourceKind) -> Source:
        server: S3Server = request.getfixturevalue("s3_server")
        client = server.client()
        for path, content in files.items():
            client.put_object(Bucket=server.bucket, Key=f"{s3_prefix}/{path}", Body=content)
        return S3Source(f"s3://{server.bucket}/{s3_prefix}/{name}", "spec.source", kind, client, tmp_path / "fetched")

    return in_folder if request.param == "folder" else in_s3


def below(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{path}": content for path, content in files.items()}


def test_all_files_of_a_model_are_listed_but_only_safe_ones_are_fetched(open_source: Open) -> None:
    source = open_source(below("base", MODEL), "base", SourceKind.MODEL)

    listed = [entry.path for entry in source.files]

    assert listed == FETCHABLE
    assert source.ignored == ["modeling_custom.py", "original/consolidated.safetensors", "pytorch_model.bin"]
    folder = source.fetch(listed)
    assert {path: (folder / path).read_bytes() for path in listed} == {path: MODEL[path] for path in FETCHABLE}


def test_other_files_are_listed_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"1\n")
    (tmp_path / "model.bin").write_bytes(b"a pickle of many gigabytes")
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("a name in Latin-1")

    with patch("edgetune_jobs.store.sources.source.fingerprint", wraps=fingerprint) as read:
        source = FolderSource(tmp_path.as_uri(), "spec.dataset.train", SourceKind.DATA)
        assert [entry.path for entry in source.files] == ["a.jsonl"]
        assert source.digest

    assert source.ignored == ["caf?.txt", "model.bin"]
    assert [call.args for call in read.call_args_list] == [(tmp_path / "a.jsonl",)]


def test_a_data_file_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_text("{}")

    with pytest.raises(InvalidInput, match=r"^spec\.source\.uri: the file name caf\?\.jsonl in .* is not UTF-8"):
        FolderSource(tmp_path.as_uri(), "spec.source", SourceKind.DATA)


@pytest.mark.parametrize(
    "path",
    [
        "pytorch_model.bin",
        "a.pt",
        "a.pth",
        "a.ckpt",
        "a.pkl",
        "modeling_custom.py",
        "original/consolidated.safetensors",
    ],
)
def test_a_pickle_or_code_of_a_model_is_never_fetched(open_source: Open, path: str) -> None:
    source = open_source(below("base", {**MODEL, path: b""}), "base", SourceKind.MODEL)

    with pytest.raises(InvalidInput, match=rf"^spec\.source\.uri: {path} in .*base is not a model file"):
        source.fetch([path])
    with pytest.raises(InvalidInput, match="is not a model file"):
        read_range(source, path, 0, 1)


def test_a_path_outside_of_the_source_is_refused(open_source: Open) -> None:
    source = open_source(below("base", MODEL), "base", SourceKind.MODEL)

    with pytest.raises(InvalidInput, match="it leaves its folder"):
        source.fetch(["../other/config.json"])


def test_the_digest_of_a_model_depends_on_its_weights_but_not_on_its_pickles(
    open_source: Open,
) -> None:
    before = open_source(below("base", MODEL), "base", SourceKind.MODEL).digest

    with_other_pickle = open_source({"base/pytorch_model.bin": b"another pickle"}, "base", SourceKind.MODEL).digest
    with_other_weights = open_source({"base/model.safetensors": b"better"}, "base", SourceKind.MODEL).digest

    assert with_other_pickle == before
    assert with_other_weights != before


def test_the_digest_of_a_single_data_file_is_what_sha256sum_prints(open_source: Open) -> None:
    rows = b'{"instruction": "a", "response": "b"}\n'

    source = open_source({"train.jsonl": rows, "train.jsonl.bak": b""}, "train.jsonl", SourceKind.DATA)

    assert source.digest == hashlib.sha256(rows).hexdigest()
    assert [(entry.path, entry.bytes, entry.sha256) for entry in source.files] == [
        ("train.jsonl", len(rows), hashlib.sha256(rows).hexdigest())
    ]
    assert (source.fetch(["train.jsonl"]) / "train.jsonl").read_bytes() == rows


def test_the_digest_of_a_data_folder_covers_the_data_files_in_it(open_source: Open) -> None:
    files = {"data/a.jsonl": b"1\n", "data/deep/b.csv": b"2\n"}

    before = open_source(files, "data", SourceKind.DATA).digest
    with_readme = open_source({"data/README.md": b"about"}, "data", SourceKind.DATA).digest
    with_more = open_source({"data/c.parquet": b"3"}, "data", SourceKind.DATA).digest

    assert with_readme == before
    assert with_more != before


def test_a_folder_digest_is_the_hash_of_its_canonical_file_list(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"b")
    (tmp_path / "a.csv").write_bytes(b"a")

    source = FolderSource(tmp_path.as_uri(), "spec.dataset.train", SourceKind.DATA)

    entries = [
        {"path": path, "bytes": 1, "sha256": hashlib.sha256(path[0].encode()).hexdigest()}
        for path in ("a.csv", "b.csv")
    ]
    assert source.digest == sha256_of(entries)


def read_range(source: Source, path: str, start: int, length: int) -> bytes:
    buffer = bytearray(length)
    return bytes(buffer[: source.read_into(path, start, memoryview(buffer))])


def test_a_range_of_a_file_is_read(open_source: Open) -> None:
    source = open_source({"base/model.safetensors": b"0123456789"}, "base", SourceKind.MODEL)

    assert read_range(source, "model.safetensors", 2, 3) == b"234"
    assert read_range(source, "model.safetensors", 8, 100) == b"89"
    assert read_range(source, "model.safetensors", 10, 4) == b""
    assert read_range(source, "model.safetensors", 0, 0) == b""


def test_an_empty_uri_is_reported_with_its_field(open_source: Open) -> None:
    with pytest.raises(InvalidInput, match=r"^spec\.source\.uri: .*nowhere"):
        open_source({}, "nowhere", SourceKind.MODEL)
    with pytest.raises(InvalidInput, match=r"^spec\.source\.uri: .*nowhere\.jsonl"):
        open_source({}, "nowhere.jsonl", SourceKind.DATA)


def test_a_missing_file_is_named(open_source: Open) -> None:
    source = open_source(below("base", MODEL), "base", SourceKind.MODEL)

    with pytest.raises(InvalidInput, match=r"has no file generation_config\.json"):
        source.fetch(["generation_config.json"])


def test_a_file_that_changes_between_two_reads_is_refused(open_source: Open) -> None:
    source = open_source({"base/config.json": b"{}"}, "base", SourceKind.MODEL)
    assert source.digest
    open_source({"base/config.json": b'{"a": 1}'}, "base", SourceKind.MODEL)

    with pytest.raises(InvalidInput, match=r"config\.json.* was changed while it was read"):
        source.fetch(["config.json"])
    with pytest.raises(InvalidInput, match=r"config\.json.* was changed while it was read"):
        read_range(source, "config.json", 0, 1)


def test_a_pin_that_does_not_match_names_both_digests(open_source: Open) -> None:
    source = open_source({"train.jsonl": b"rows"}, "train.jsonl", SourceKind.DATA)

    check_pin(source, "spec.dataset.train", "")
    check_pin(source, "spec.dataset.train", source.digest)
    with pytest.raises(InvalidInput, match=rf"^spec\.dataset\.train\.revision is {'0' * 64}, but .* {source.digest}"):
        check_pin(source, "spec.dataset.train", "0" * 64)


def s3_model(server: S3Server, prefix: str, tmp_path: Path, kind: SourceKind = SourceKind.MODEL) -> S3Source:
    uri = f"s3://{server.bucket}/{prefix}/base"
    return S3Source(uri, "spec.baseModel", kind, server.client(), tmp_path / "fetched")


def test_the_file_list_has_the_services_sha256_or_else_the_hash_of_the_etag(
    s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    client = s3_server.client()
    put = {"Bucket": s3_server.bucket, "Body": b"{}"}
    client.put_object(**put, Key=f"{s3_prefix}/base/config.json", ChecksumAlgorithm="SHA256")
    etag = client.put_object(**put, Key=f"{s3_prefix}/base/tokenizer.json")["ETag"]

    checksums = {entry.path: entry.sha256 for entry in s3_model(s3_server, s3_prefix, tmp_path).files}

    assert checksums == {
        "config.json": hashlib.sha256(b"{}").hexdigest(),
        "tokenizer.json": hashlib.sha256(etag.encode()).hexdigest(),
    }


def test_the_sha256_of_a_multipart_object_is_not_used(s3_server: S3Server, s3_prefix: str, tmp_path: Path) -> None:
    client, target = s3_server.client(), {"Bucket": s3_server.bucket, "Key": f"{s3_prefix}/base/model.safetensors"}
    upload = client.create_multipart_upload(**target, ChecksumAlgorithm="SHA256")["UploadId"]
    part = client.upload_part(**target, UploadId=upload, PartNumber=1, Body=b"weights", ChecksumAlgorithm="SHA256")
    parts = [{"ETag": part["ETag"], "PartNumber": 1, "ChecksumSHA256": part["ChecksumSHA256"]}]
    etag = client.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": parts})["ETag"]

    (entry,) = s3_model(s3_server, s3_prefix, tmp_path).files

    assert entry.sha256 == hashlib.sha256(etag.encode()).hexdigest()


def test_a_single_data_object_with_a_sha256_is_not_downloaded_for_its_digest(
    s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path
) -> None:
    key = f"{s3_prefix}/train.jsonl"
    s3_server.client().put_object(Bucket=s3_server.bucket, Key=key, Body=b"rows", ChecksumAlgorithm="SHA256")
    client = s3_server.client(s3_proxy.endpoint)

    source = S3Source(f"s3://{s3_server.bucket}/{key}", "spec.dataset.train", SourceKind.DATA, client, tmp_path)

    assert source.digest == hashlib.sha256(b"rows").hexdigest()
    assert [method for method, _ in s3_proxy.requests] == ["HEAD"]


def test_files_are_downloaded_once(s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path) -> None:
    key = f"{s3_prefix}/train.jsonl"
    s3_server.client().put_object(Bucket=s3_server.bucket, Key=key, Body=b"rows")
    client = s3_server.client(s3_proxy.endpoint)
    source = S3Source(f"s3://{s3_server.bucket}/{key}", "spec.dataset.train", SourceKind.DATA, client, tmp_path)

    assert source.digest
    source.fetch(["train.jsonl"])
    source.fetch(["train.jsonl"])

    assert [method for method, _ in s3_proxy.requests] == ["HEAD", "GET"]


def test_a_broken_download_of_a_model_is_resumed(
    s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path
) -> None:
    key = f"{s3_prefix}/base/model.safetensors"
    s3_server.client().put_object(Bucket=s3_server.bucket, Key=key, Body=bytes(range(256)))
    s3_proxy.faults.append(Fault("GET", "model.safetensors", times=1, cut_after=100))
    client = s3_server.client(s3_proxy.endpoint)
    uri = f"s3://{s3_server.bucket}/{s3_prefix}/base"

    folder = S3Source(uri, "spec.baseModel", SourceKind.MODEL, client, tmp_path).fetch(["model.safetensors"])

    assert (folder / "model.safetensors").read_bytes() == bytes(range(256))


def test_folder_markers_are_not_files(s3_server: S3Server, s3_prefix: str, tmp_path: Path) -> None:
    client = s3_server.client()
    client.put_object(Bucket=s3_server.bucket, Key=f"{s3_prefix}/base/", Body=b"")
    client.put_object(Bucket=s3_server.bucket, Key=f"{s3_prefix}/base/config.json", Body=b"{}")

    assert [entry.path for entry in s3_model(s3_server, s3_prefix, tmp_path).files] == ["config.json"]


def test_a_key_that_is_not_a_valid_path_is_refused_only_if_it_would_be_read(
    s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    found = [RemoteObject(f"{s3_prefix}/base/{path}", 2, "etag", has_sha256=False) for path in ("a//b", "config.json")]

    with patch.object(S3Bucket, "list", lambda *_: iter(found)):  # this server has no such keys; others do
        source = s3_model(s3_server, s3_prefix, tmp_path)
        found.append(RemoteObject(f"{s3_prefix}/base/a//b.jsonl", 2, "etag", has_sha256=False))
        with pytest.raises(InvalidInput, match="has an empty part; rename the file"):
            s3_model(s3_server, s3_prefix, tmp_path, SourceKind.DATA)

    assert [entry.path for entry in source.files] == ["config.json"]
    assert source.ignored == ["a//b"]


def test_a_model_in_a_bucket_that_does_not_exist_is_invalid(s3_server: S3Server, tmp_path: Path) -> None:
    with pytest.raises(TransientError, match=r"the bucket of s3://no-such-bucket/base/ does not exist"):
        S3Source("s3://no-such-bucket/base", "spec.baseModel", SourceKind.MODEL, s3_server.client(), tmp_path)
    with pytest.raises(TransientError, match=r"the bucket of s3://no-such-bucket/train\.jsonl does not exist"):
        S3Source("s3://no-such-bucket/train.jsonl", "spec.dataset.train", SourceKind.DATA, s3_server.client(), tmp_path)


def test_data_without_read_permission_is_access_denied(s3_server: S3Server, tmp_path: Path) -> None:
    s3_server.client().create_bucket(Bucket="private")
    client = s3_server.client(credentials=s3_server.reader)

    with pytest.raises(AccessDenied, match=r"lack s3:ListBucket on s3://private/base/"):
        S3Source("s3://private/base", "spec.baseModel", SourceKind.MODEL, client, tmp_path)
    with pytest.raises(AccessDenied, match=r"lack s3:GetObject on s3://private/train\.jsonl"):
        S3Source("s3://private/train.jsonl", "spec.dataset.train", SourceKind.DATA, client, tmp_path)


@pytest.fixture
def proxied(s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path) -> S3Source:
    """A model with one file of 10 MB, behind the proxy."""
    s3_server.client().put_object(Bucket=s3_server.bucket, Key=f"{s3_prefix}/model.safetensors", Body=TEN_MEGABYTES)
    client = s3_server.client(s3_proxy.endpoint)
    return S3Source(f"s3://{s3_server.bucket}/{s3_prefix}", "spec.source", SourceKind.MODEL, client, tmp_path)


def test_a_broken_range_returns_the_bytes_so_far_so_that_only_the_rest_is_requested(
    proxied: S3Source, s3_proxy: FaultProxy
) -> None:
    s3_proxy.faults.append(Fault("GET", "model.safetensors", times=2, cut_after=5_000_000))
    model = SourceModelFolder(proxied, "the model")
    buffer = bytearray(9_000_000)

    first = proxied.read_into("model.safetensors", 7, memoryview(buffer))
    filled = fill(model, "model.safetensors", 7, memoryview(buffer))

    assert 0 < first <= 5_000_000
    assert filled == 9_000_000
    assert buffer == TEN_MEGABYTES[7:9_000_007]


def test_a_range_that_breaks_before_its_first_byte_each_time_is_a_transient_error(
    proxied: S3Source, s3_proxy: FaultProxy
) -> None:
    s3_proxy.faults.append(Fault("GET", "model.safetensors", cut_after=0))

    with pytest.raises(TransientError, match=r"cannot reach the store at s3://.*/model\.safetensors"):
        read_range(proxied, "model.safetensors", 0, 100)


def test_a_service_that_ignores_ranges_is_refused_before_its_answer_is_read(
    proxied: S3Source, s3_proxy: FaultProxy
) -> None:
    s3_proxy.faults.append(Fault("GET", "model.safetensors", without_header="content-range"))

    with pytest.raises(InvalidInput, match=r"the service ignored the request for bytes 10 to 109: use a service"):
        read_range(proxied, "model.safetensors", 10, 100)
