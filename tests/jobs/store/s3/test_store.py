"""The S3 store against a real S3 server, behind a proxy that injects faults of networks and services."""

import hashlib
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from edgetune_contract.access.s3_service import ChecksumMode
from edgetune_contract.request import StoreLocation
from edgetune_jobs.errors import AccessDenied, TransientError
from edgetune_jobs.store.files import Fingerprint
from edgetune_jobs.store.s3.client import Credentials, create_client
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
    """A store behind the proxy. It sends each request at most twice."""
    return S3Store(s3_server.location(s3_prefix).uri, s3_server.client(s3_proxy.endpoint), PART_BYTES)


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """A file of slightly more than three parts."""
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
def test_a_streamed_file_is_stored_in_both_checksum_modes(
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


def test_a_streamed_file_is_stored_even_if_the_answer_to_its_completion_is_lost(
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


def test_a_large_file_is_stored_even_if_the_answer_to_its_completion_is_lost(
    store: S3Store, s3_proxy: FaultProxy, large_file: Path, tmp_path: Path
) -> None:
    s3_proxy.faults.append(Fault("POST", "uploadId", times=1, loses_answer=True))

    sent = store.upload_file(large_file, "large.bin")

    store.download_file("large.bin", tmp_path / "back", sent)
    assert (tmp_path / "back").read_bytes() == large_file.read_bytes()


def test_a_large_file_is_uploaded_in_parts(store: S3Store, s3_proxy: FaultProxy, large_file: Path) -> None:
    store.upload_file(large_file, "large.bin")

    parts = [path for method, path in s3_proxy.requests if method == "PUT" and "partNumber=" in path]
    assert len(parts) == 4


def test_a_request_that_gets_a_503_is_retried(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("PUT", "a.json", times=1, status=503))

    store.put("a.json", b"1")

    content = store.read("a.json")
    assert content is not None
    assert content.data == b"1"


def test_a_service_that_keeps_answering_503_is_a_transient_error(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("GET", "a.json", status=503))

    with pytest.raises(TransientError, match=r"answered 503 .*to GetObject of s3://edgetune/.*/a\.json"):
        store.read("a.json")


def test_a_put_whose_answer_is_lost_conflicts_with_its_own_retry(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("PUT", "manifest.json", times=1, loses_answer=True))

    with pytest.raises(PreconditionFailed):
        store.put("manifest.json", b"mine", if_none_match=True)

    content = store.read("manifest.json")
    assert content is not None
    assert content.data == b"mine", "the content shows which writer won"


@pytest.mark.parametrize(
    "fault", [Fault("GET", "a.json", times=2, cut_after=1), Fault("GET", "a.json", times=1, flip_byte=1)]
)
def test_a_small_object_that_arrives_incomplete_or_damaged_is_read_again(
    store: S3Store, s3_proxy: FaultProxy, fault: Fault
) -> None:
    store.put("a.json", b"0123456789")
    s3_proxy.faults.append(fault)

    content = store.read("a.json")

    assert content is not None
    assert content.data == b"0123456789"


def test_a_conditional_put_that_conflicts_with_one_in_flight_is_sent_again(
    store: S3Store, s3_proxy: FaultProxy
) -> None:
    s3_proxy.faults.append(Fault("PUT", "a.json", times=1, status=409))

    store.put("a.json", b"mine", if_none_match=True)

    content = store.read("a.json")
    assert content is not None
    assert content.data == b"mine"


def test_an_unreachable_service_is_a_transient_error(s3_prefix: str) -> None:
    location = StoreLocation(uri=f"s3://edgetune/{s3_prefix}", endpoint="http://127.0.0.1:1", region="us-east-1")
    store = S3Store(location.uri, create_client(location, Credentials("a", "b"), attempts=1))

    with pytest.raises(TransientError, match=r"cannot reach the store at s3://edgetune/.*127\.0\.0\.1:1"):
        store.read("a.json")


def test_a_broken_download_resumes_where_it_stopped(
    store: S3Store, s3_proxy: FaultProxy, large_file: Path, tmp_path: Path
) -> None:
    sent = store.upload_file(large_file, "large.bin")
    s3_proxy.faults.append(Fault("GET", "large.bin", times=2, cut_after=4 * 2**20))

    store.download_file("large.bin", tmp_path / "back", sent)

    assert (tmp_path / "back").read_bytes() == large_file.read_bytes()
    assert sum(method == "GET" for method, _ in s3_proxy.requests) == 3


def test_a_download_that_breaks_each_time_is_a_transient_error_with_the_received_bytes(
    store: S3Store, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    sent = store.upload_file(tmp_path / "file", "file.bin")
    s3_proxy.faults.append(Fault("GET", "file.bin", cut_after=0))

    with pytest.raises(TransientError, match=r"the download of s3://.*/file\.bin failed after 0 bytes"):
        store.download_file("file.bin", tmp_path / "back", sent)


@pytest.mark.parametrize("mode", list(ChecksumMode))
def test_an_object_that_was_damaged_in_transfer_is_downloaded_again(
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

    with pytest.raises(DamagedObject, match=r"is damaged: 5 bytes instead of 10 bytes with SHA-256 0000"):
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
        time.sleep(0.2)  # so that the signal arrives before the part is uploaded

    s3_proxy.faults.append(Fault("PUT", "partNumber=2", times=1, before_forwarding=stop))
    location = s3_server.location(s3_prefix, s3_proxy.endpoint)
    process = subprocess.Popen([sys.executable, "-c", SLOW_UPLOAD, location.model_dump_json(), str(large_file)])

    assert process.wait(timeout=30) == 75
    assert unfinished_uploads(s3_server, s3_prefix) == []
    assert s3_server.client().list_objects_v2(Bucket=s3_server.bucket, Prefix=s3_prefix)["KeyCount"] == 0


def test_an_upload_interrupted_while_a_part_is_submitted_is_aborted_after_that_part(
    store: S3Store, s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, large_file: Path
) -> None:
    arrived = threading.Event()
    aborted_while_sending: list[bool] = []

    def delay() -> None:
        arrived.set()
        time.sleep(0.5)  # an abort that does not wait for this part overtakes it
        aborted_while_sending.append(any(method == "DELETE" for method, _ in s3_proxy.requests))

    class Interrupted(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **named: Any) -> Any:
            part = super().submit(*arguments, **named)
            if arguments[1] == 2:
                arrived.wait(timeout=30)
                raise KeyboardInterrupt
            return part

    s3_proxy.faults.append(Fault("PUT", "partNumber=2", before_forwarding=delay))
    with (
        mock.patch("edgetune_jobs.store.s3.upload.ThreadPoolExecutor", Interrupted),
        pytest.raises(KeyboardInterrupt),
    ):
        store.upload_file(large_file, "large.bin")

    assert aborted_while_sending == [False]
    assert unfinished_uploads(s3_server, s3_prefix) == []


def test_parts_of_a_killed_writer_are_deleted_with_their_folder(
    store: S3Store, s3_server: S3Server, s3_prefix: str
) -> None:
    client = s3_server.client()
    for attempt in ("dead", "mine"):
        client.create_multipart_upload(Bucket=s3_server.bucket, Key=f"{s3_prefix}/stages/merge/d/{attempt}/large.bin")

    store.delete_tree("stages/merge/d", keep=("stages/merge/d/mine",))

    assert unfinished_uploads(s3_server, s3_prefix) == [f"{s3_prefix}/stages/merge/d/mine/large.bin"]


def test_read_only_credentials_get_a_message_with_the_missing_permission_and_the_key(
    s3_server: S3Server, s3_prefix: str, large_file: Path
) -> None:
    location = s3_server.location(s3_prefix)
    store = S3Store(location.uri, s3_server.client(credentials=s3_server.reader), PART_BYTES)

    with pytest.raises(AccessDenied, match=f"lack s3:PutObject on {location.uri}/a.json; grant it"):
        store.put("a.json", b"")
    with pytest.raises(AccessDenied, match=f"lack s3:PutObject on {location.uri}/large.bin"):
        store.upload_file(large_file, "large.bin")
    with pytest.raises(AccessDenied, match=f"lack s3:ListBucketMultipartUploads on {location.uri}/stages"):
        store.delete_tree("stages")
    assert store.read("a.json") is None


def test_a_bucket_that_does_not_exist_may_be_created_later(s3_server: S3Server) -> None:
    store = S3Store("s3://no-such-bucket/prefix", s3_server.client())

    with pytest.raises(TransientError, match=r"the bucket of s3://no-such-bucket/prefix/a\.json does not exist"):
        store.put("a.json", b"")
    with pytest.raises(TransientError, match="does not exist"):
        store.read("a.json")


def test_a_store_at_the_root_of_a_bucket_has_keys_without_a_prefix(s3_server: S3Server, s3_prefix: str) -> None:
    store = S3Store(f"s3://{s3_server.bucket}", s3_server.client())

    store.put(f"{s3_prefix}/x", b"1")

    assert [found.key for found in store.list(s3_prefix)] == [f"{s3_prefix}/x"]
