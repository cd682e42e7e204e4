"""The S3 store against a real S3 server, with a proxy between them that does what networks and services do at times."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.request import ChecksumMode, StoreLocation
from edgetune_jobs.errors import AccessDenied, InvalidInput, TransientError
from edgetune_jobs.store.files import Fingerprint
from edgetune_jobs.store.s3.client import Credentials, create_client, find_credentials, s3_errors
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import DamagedObject, PreconditionFailed
from support.fault_proxy import Fault, FaultProxy
from support.versitygw import S3Server

PART_BYTES = 5 * 2**20

SLOW_UPLOAD = """
import sys
from pathlib import Path
from edgetune_contract.request import StoreLocation
from edgetune_jobs.store.s3.client import Credentials, create_client
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.runtime.signals import StopSignals, Stopped
location = StoreLocation.model_validate_json(sys.argv[1])
store = S3Store(location.uri, create_client(location, Credentials("admin", "admin-secret")), part_bytes=5 * 2**20)
signals = StopSignals()
signals.install()
try:
    with signals.immediate():
        print("begins", flush=True)
        store.upload_file(Path(sys.argv[2]), "large.bin")
except Stopped:
    sys.exit(75)
"""


@pytest.fixture
def store(s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str) -> S3Store:
    """A store behind the proxy, that gives up after two requests."""
    return S3Store(s3_server.location(s3_prefix).uri, s3_server.client(s3_proxy.endpoint), PART_BYTES)


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """A file of three parts and a bit."""
    path = tmp_path / "large.bin"
    path.write_bytes(hashlib.shake_128(b"large").digest(3 * PART_BYTES + 17))
    return path


def unfinished_uploads(server: S3Server, prefix: str) -> list[str]:
    found = server.client().list_multipart_uploads(Bucket=server.bucket, Prefix=prefix)
    return [upload["Key"] for upload in found.get("Uploads", ())]


@pytest.mark.parametrize("mode", list(ChecksumMode))
def test_both_checksum_modes_store_and_verify(
    s3_server: S3Server, s3_prefix: str, large_file: Path, tmp_path: Path, mode: ChecksumMode
) -> None:
    location = s3_server.location(s3_prefix, checksums=mode)
    client = create_client(location, s3_server.admin)
    store = S3Store(location.uri, client, PART_BYTES)

    sent = store.upload_file(large_file, "large.bin")
    store.put("small.json", b"{}")
    store.download_file("large.bin", tmp_path / "back", sent)

    stored = client.head_object(Bucket=s3_server.bucket, Key=f"{s3_prefix}/small.json", ChecksumMode="ENABLED")
    assert ("ChecksumCRC32" in stored) == (mode is ChecksumMode.WHEN_SUPPORTED)
    assert (tmp_path / "back").read_bytes() == large_file.read_bytes()


@pytest.mark.parametrize("mode", list(ChecksumMode))
def test_a_file_that_is_written_as_it_comes_is_stored_in_both_checksum_modes(
    s3_server: S3Server, s3_prefix: str, mode: ChecksumMode
) -> None:
    location = s3_server.location(s3_prefix, checksums=mode)
    store = S3Store(location.uri, create_client(location, s3_server.admin))

    with store.create_file("streamed.bin", 10) as file:
        file.write(b"01234")
        file.write(b"56789")

    content = store.read("streamed.bin")
    assert content is not None
    assert content.data == b"0123456789"


def test_a_streamed_file_is_stored_though_the_answer_to_its_completion_is_lost(
    store: S3Store, s3_proxy: FaultProxy
) -> None:
    s3_proxy.faults.append(Fault("POST", "uploadId", times=1, loses_answer=True))

    with store.create_file("streamed.bin", 10) as file:
        file.write(b"0123456789")

    content = store.read("streamed.bin")
    assert content is not None
    assert content.data == b"0123456789"
    assert [method for method, path in s3_proxy.requests if "streamed.bin" in path].count("POST") == 3


@pytest.mark.parametrize("others", [None, b"of another size"])
def test_a_streamed_file_whose_upload_was_aborted_is_a_transient_error(
    store: S3Store, s3_server: S3Server, s3_prefix: str, others: bytes | None
) -> None:
    def lose() -> None:
        with store.create_file("stages/streamed.bin", 10) as file:
            file.write(b"0123456789")
            store.discard_unfinished("stages")
            if others:
                store.put("stages/streamed.bin", others)

    with pytest.raises(TransientError, match=r"404 NoSuchUpload to (CompleteMultipartUpload|UploadPart) of s3://"):
        lose()
    assert unfinished_uploads(s3_server, s3_prefix) == []


def test_a_large_file_is_stored_though_the_answer_to_its_completion_is_lost(
    store: S3Store, s3_proxy: FaultProxy, large_file: Path, tmp_path: Path
) -> None:
    s3_proxy.faults.append(Fault("POST", "uploadId", times=1, loses_answer=True))

    sent = store.upload_file(large_file, "large.bin")

    store.download_file("large.bin", tmp_path / "back", sent)
    assert (tmp_path / "back").read_bytes() == large_file.read_bytes()


def test_a_large_file_goes_up_in_parts(store: S3Store, s3_proxy: FaultProxy, large_file: Path) -> None:
    store.upload_file(large_file, "large.bin")

    parts = [path for method, path in s3_proxy.requests if method == "PUT" and "partNumber=" in path]
    assert len(parts) == 4


def test_a_503_is_asked_again_and_forgotten(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("PUT", "a.json", times=1, status=503))

    store.put("a.json", b"1")

    content = store.read("a.json")
    assert content is not None
    assert content.data == b"1"


def test_a_service_that_keeps_answering_503_is_a_transient_error(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("GET", "a.json", status=503))

    with pytest.raises(TransientError, match=r"answered 503 .*to GetObject of s3://edgetune/.*/a\.json"):
        store.read("a.json")


def test_a_put_whose_answer_was_lost_reports_a_conflict_with_itself(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("PUT", "manifest.json", times=1, loses_answer=True))

    with pytest.raises(PreconditionFailed):
        store.put("manifest.json", b"mine", if_none_match=True)

    content = store.read("manifest.json")
    assert content is not None
    assert content.data == b"mine", "the writer can tell from the content that it was itself"


@pytest.mark.parametrize(
    "fault", [Fault("GET", "a.json", times=2, cut_after=1), Fault("GET", "a.json", times=1, flip_byte=1)]
)
def test_a_small_object_that_arrives_cut_or_changed_is_read_again(
    store: S3Store, s3_proxy: FaultProxy, fault: Fault
) -> None:
    store.put("a.json", b"0123456789")
    s3_proxy.faults.append(fault)

    content = store.read("a.json")

    assert content is not None
    assert content.data == b"0123456789"


def test_a_conditional_put_that_meets_another_one_is_sent_again(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("PUT", "a.json", times=1, status=409))

    store.put("a.json", b"mine", if_none_match=True)

    content = store.read("a.json")
    assert content is not None
    assert content.data == b"mine"


def test_a_service_that_cannot_be_reached_is_a_transient_error(s3_prefix: str) -> None:
    location = StoreLocation(uri=f"s3://edgetune/{s3_prefix}", endpoint="http://127.0.0.1:1", region="us-east-1")
    store = S3Store(location.uri, create_client(location, Credentials("a", "b"), attempts=1))

    with pytest.raises(TransientError, match=r"the store cannot be reached for s3://edgetune/.*127\.0\.0\.1:1"):
        store.read("a.json")


def test_a_download_that_is_cut_goes_on_where_it_ended(
    store: S3Store, s3_proxy: FaultProxy, large_file: Path, tmp_path: Path
) -> None:
    sent = store.upload_file(large_file, "large.bin")
    s3_proxy.faults.append(Fault("GET", "large.bin", times=2, cut_after=4 * 2**20))

    store.download_file("large.bin", tmp_path / "back", sent)

    assert (tmp_path / "back").read_bytes() == large_file.read_bytes()
    assert sum(method == "GET" for method, _ in s3_proxy.requests) == 3


def test_a_download_that_is_always_cut_is_a_transient_error_with_what_arrived(
    store: S3Store, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    sent = store.upload_file(tmp_path / "file", "file.bin")
    s3_proxy.faults.append(Fault("GET", "file.bin", cut_after=0))

    with pytest.raises(TransientError, match=r"the download of s3://.*/file\.bin broke off after 0 bytes"):
        store.download_file("file.bin", tmp_path / "back", sent)


@pytest.mark.parametrize("mode", list(ChecksumMode))
def test_a_byte_that_was_changed_on_the_way_is_noticed_and_fetched_again(
    s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path, mode: ChecksumMode
) -> None:
    location = s3_server.location(s3_prefix, s3_proxy.endpoint, checksums=mode)
    store = S3Store(location.uri, create_client(location, s3_server.admin))
    (tmp_path / "file").write_bytes(b"0123456789")
    sent = store.upload_file(tmp_path / "file", "file.bin")
    s3_proxy.faults.append(Fault("GET", "file.bin", times=1, flip_byte=5))

    store.download_file("file.bin", tmp_path / "back", sent)

    assert (tmp_path / "back").read_bytes() == b"0123456789"
    assert sum(method == "GET" for method, _ in s3_proxy.requests) == 2


def test_an_object_of_another_length_is_refused_before_it_is_downloaded(
    store: S3Store, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    store.put("weights.safetensors", b"short")

    with pytest.raises(DamagedObject, match=r"it has 5 bytes, where 10 bytes with SHA-256 0000"):
        store.download_file("weights.safetensors", tmp_path / "back", Fingerprint(10, "0" * 64))

    assert sum(method == "GET" for method, _ in s3_proxy.requests) == 1


def test_a_failed_upload_leaves_neither_object_nor_unfinished_parts(
    store: S3Store, s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, large_file: Path
) -> None:
    s3_proxy.faults.append(Fault("PUT", "partNumber=3", status=503))

    with pytest.raises(TransientError, match=r"answered 503 .*to UploadPart of s3://.*/large\.bin"):
        store.upload_file(large_file, "large.bin")

    assert unfinished_uploads(s3_server, s3_prefix) == []
    assert list(store.list("large.bin")) == []


def test_sigterm_during_an_upload_aborts_it(
    s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, large_file: Path
) -> None:
    process: Any = None

    def stop() -> None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # so that the signal arrives before the part has gone through

    s3_proxy.faults.append(Fault("PUT", "partNumber=2", times=1, before_forwarding=stop))
    location = s3_server.location(s3_prefix, s3_proxy.endpoint)
    process = subprocess.Popen([sys.executable, "-c", SLOW_UPLOAD, location.model_dump_json(), str(large_file)])

    assert process.wait(timeout=30) == 75
    assert unfinished_uploads(s3_server, s3_prefix) == []
    assert s3_server.client().list_objects_v2(Bucket=s3_server.bucket, Prefix=s3_prefix)["KeyCount"] == 0


def test_parts_that_a_killed_writer_left_go_with_their_folder(
    store: S3Store, s3_server: S3Server, s3_prefix: str
) -> None:
    client = s3_server.client()
    for attempt in ("dead", "mine"):
        client.create_multipart_upload(Bucket=s3_server.bucket, Key=f"{s3_prefix}/stages/merge/d/{attempt}/large.bin")

    store.delete_tree("stages/merge/d", keep=("stages/merge/d/mine",))

    assert unfinished_uploads(s3_server, s3_prefix) == [f"{s3_prefix}/stages/merge/d/mine/large.bin"]


def test_who_may_only_read_is_told_the_right_and_the_key(s3_server: S3Server, s3_prefix: str, large_file: Path) -> None:
    location = s3_server.location(s3_prefix)
    store = S3Store(location.uri, s3_server.client(credentials=s3_server.reader), PART_BYTES)

    with pytest.raises(AccessDenied, match=f"lack s3:PutObject on {location.uri}/a.json; grant it"):
        store.put("a.json", b"")
    with pytest.raises(AccessDenied, match=f"lack s3:PutObject on {location.uri}/large.bin"):
        store.upload_file(large_file, "large.bin")
    with pytest.raises(AccessDenied, match=f"lack s3:ListBucketMultipartUploads on {location.uri}/stages"):
        store.delete_tree("stages")
    assert store.read("a.json") is None


@pytest.mark.parametrize("credentials", [Credentials("nobody", "x"), Credentials("reader", "wrong")])
def test_a_key_that_the_store_does_not_know_is_access_denied(
    s3_server: S3Server, s3_prefix: str, credentials: Credentials
) -> None:
    store = S3Store(s3_server.location(s3_prefix).uri, s3_server.client(credentials=credentials))

    with pytest.raises(AccessDenied, match="does not accept the access key; renew it in the profile's Secret"):
        store.read("a.json")


def test_a_bucket_that_does_not_exist_is_invalid(s3_server: S3Server) -> None:
    store = S3Store("s3://no-such-bucket/prefix", s3_server.client())

    with pytest.raises(InvalidInput, match=r"the bucket of s3://no-such-bucket/prefix/a\.json does not exist"):
        store.put("a.json", b"")
    with pytest.raises(InvalidInput, match="does not exist"):
        store.read("a.json")


def test_a_store_at_the_root_of_a_bucket_has_keys_without_a_prefix(s3_server: S3Server, s3_prefix: str) -> None:
    store = S3Store(f"s3://{s3_server.bucket}", s3_server.client())

    store.put(f"{s3_prefix}/x", b"1")

    assert [found.key for found in store.list(s3_prefix)] == [f"{s3_prefix}/x"]


def test_credentials_are_read_from_a_folder_without_the_new_line_at_their_end(tmp_path: Path) -> None:
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("key\n")
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("secret\n")

    assert Credentials.from_folder(tmp_path) == Credentials("key", "secret", None)
    assert Credentials.from_folder(None) is None


def write_credentials(folder: Path, credentials: Credentials) -> None:
    (folder / "AWS_ACCESS_KEY_ID").write_text(credentials.access_key_id)
    (folder / "AWS_SECRET_ACCESS_KEY").write_text(credentials.secret_access_key)


def test_credentials_that_are_renewed_in_their_files_are_taken_by_the_same_client(
    s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    write_credentials(tmp_path, s3_server.reader)
    location = s3_server.location(s3_prefix)
    store = S3Store(location.uri, create_client(location, find_credentials(tmp_path), reread_seconds=0.05))
    with pytest.raises(AccessDenied, match="lack s3:PutObject"):
        store.put("a.json", b"")

    write_credentials(tmp_path, s3_server.admin)
    time.sleep(0.1)  # longer than what was read is used

    store.put("a.json", b"")


def test_credentials_that_vanish_from_their_files_are_access_denied(
    s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    write_credentials(tmp_path, s3_server.admin)
    location = s3_server.location(s3_prefix)
    store = S3Store(location.uri, create_client(location, find_credentials(tmp_path), reread_seconds=0.05))
    for path in tmp_path.iterdir():
        path.unlink()
    time.sleep(0.1)  # longer than what was read is used

    with pytest.raises(AccessDenied, match="are gone: add them to the profile's Secret"):
        store.read("a.json")


@pytest.mark.parametrize("code", ["ExpiredToken", "TokenRefreshRequired"])
def test_a_token_that_expired_is_a_transient_error_since_another_attempt_reads_a_new_one(code: str) -> None:
    from botocore.exceptions import ClientError

    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    with pytest.raises(TransientError, match="the session token has expired; renew it"), s3_errors("s3://bucket/key"):
        raise ClientError(answer, "PutObject")


def test_half_a_pair_of_credentials_is_named(tmp_path: Path) -> None:
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("key")

    with pytest.raises(AccessDenied, match="lack AWS_SECRET_ACCESS_KEY: add this key to the profile's Secret"):
        Credentials.from_folder(tmp_path)
