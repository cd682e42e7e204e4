"""One S3 bucket: small objects, streams in both directions, verified; errors speak of bucket and key."""

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_jobs.errors import Interrupted, InvalidInput, TransientError
from edgetune_jobs.store.files import CHUNK_BYTES, FileSink, Fingerprint, Sink, disk_errors
from edgetune_jobs.store.s3.client import s3_errors, status_of
from edgetune_jobs.store.s3.upload import PART_BYTES, UploadStream
from edgetune_jobs.store.store import Content, DamagedObject, PreconditionFailed, check_content

_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.25
_CONFLICT_STATUSES = (409, 412)


@dataclass(frozen=True)
class RemoteObject:
    """An object of a bucket."""

    key: str
    bytes: int
    etag: str
    has_sha256: bool
    """Whether the service keeps a SHA-256 of it; of a multipart object it may be that of its parts."""

    sha256: str | None = None
    """The service's SHA-256 of the whole content, in hexadecimal; None in listings and when there is none."""


class S3Bucket:
    """Requests to one bucket through a boto3 client. Safe for several threads.

    All methods raise AccessDenied, InvalidInput (no such bucket) and TransientError as a Store does.
    """

    def __init__(self, client: Any, name: str, part_bytes: int = PART_BYTES) -> None:
        """Ask for nothing yet.

        Args:
            client: a boto3 S3 client.
            name: the bucket's name.
            part_bytes: larger files go up in parts of so many bytes.
        """
        self._client = client
        self._name = name
        self._part_bytes = part_bytes

    def uri(self, key: str) -> str:
        """URI of a key."""
        return f"s3://{self._name}/{key}"

    def read(self, key: str) -> Content | None:
        """A small object as a whole; None when there is none."""
        from botocore.exceptions import ClientError

        with s3_errors(self.uri(key)):
            try:
                return self._get(key)
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchKey":
                    return None
                raise

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Write a small object; its etag.

        Raises:
            PreconditionFailed: the condition does not hold.
        """
        from botocore.exceptions import ClientError

        conditions = {"IfNoneMatch": "*"} if if_none_match else {}
        if if_match is not None:
            conditions["IfMatch"] = if_match
        with s3_errors(self.uri(key)):
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    response = self._client.put_object(Bucket=self._name, Key=key, Body=data, **conditions)
                    break
                except ClientError as error:
                    # 409: another conditional put is under way, and which of them wins is open.
                    if conditions and status_of(error) == 409 and attempt < _ATTEMPTS:
                        _pause(attempt)
                        continue
                    vanished = if_match is not None and error.response["Error"]["Code"] == "NoSuchKey"
                    if conditions and (vanished or status_of(error) in _CONFLICT_STATUSES):
                        raise PreconditionFailed(f"{self.uri(key)} was written by another writer") from error
                    raise
        return str(response["ETag"])

    def list(self, prefix: str) -> Iterator[RemoteObject]:
        """Objects whose keys begin with a prefix, sorted by key."""
        with s3_errors(self.uri(prefix)):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=prefix)
            for found in (found for page in pages for found in page.get("Contents", ())):
                has_sha256 = "SHA256" in found.get("ChecksumAlgorithm", ())
                yield RemoteObject(found["Key"], found["Size"], found["ETag"], has_sha256)

    def head(self, key: str) -> RemoteObject | None:
        """Size, etag and SHA-256 of an object; None when there is none."""
        from botocore.exceptions import ClientError

        with s3_errors(self.uri(key)):
            try:
                response = self._client.head_object(Bucket=self._name, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                # A missing bucket answers the same, without a body to tell them apart: a listing knows.
                if status_of(error) == 404:
                    next(self.list(key), None)
                    return None
                raise
        sha256 = _full_object_sha256(response)
        return RemoteObject(key, response["ContentLength"], response["ETag"], sha256 is not None, sha256)

    def read_into(self, key: str, start: int, buffer: memoryview, etag: str) -> int:
        """Read the content that `etag` names from `start` on into `buffer`.

        How many bytes arrived: fewer than asked for if the object ends, or if the body was cut after some of them.

        Raises:
            InvalidInput: the object has other content by now, or the service does not send ranges.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        attempt = 1
        with s3_errors(self.uri(key)):
            while buffer:
                try:
                    return self._receive_range(key, start, buffer, etag)
                except ClientError as error:
                    if status_of(error) == 416:
                        return 0
                    self._refuse_changed(error, key)
                    raise
                except BotoCoreError:
                    if attempt == _ATTEMPTS:
                        raise
                _pause(attempt)
                attempt += 1
        return 0

    def create_file(self, key: str, size: int) -> UploadStream:
        """A new object of `size` bytes, written in a stream; an upload that fails or is interrupted is aborted."""
        return UploadStream(self._client, self._name, key, size, self._part_bytes)

    def upload_file(self, path: Path, key: str) -> Fingerprint:
        """Send a file, a large one in parts, hashed on the way; an upload that fails or is interrupted is aborted."""
        size = path.stat().st_size
        if size <= self._part_bytes:
            data = path.read_bytes()
            self.put(key, data)
            return Fingerprint(len(data), hashlib.sha256(data).hexdigest())
        with self.create_file(key, size) as target, path.open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
        return target.fingerprint

    def download_file(
        self,
        key: str,
        path: Path,
        expected: Fingerprint | None = None,
        etag: str | None = None,
        cancelled: threading.Event | None = None,
    ) -> Fingerprint:
        """Stream an object into a file. A body that is cut is continued where it ended, a bounded number of times.

        Args:
            expected: what the content must be.
            etag: the content that must still be there.
            cancelled: ends the download when set.

        Raises:
            DamagedObject: the object is missing or is not the expected content.
            InvalidInput: the object has other content than `etag` names by now.
        """
        with disk_errors(path, expected.bytes if expected else 0), path.open("wb") as file:
            return self.stream(key, FileSink(file), expected, etag, cancelled)

    def stream(
        self,
        key: str,
        sink: Sink,
        expected: Fingerprint | None = None,
        etag: str | None = None,
        cancelled: threading.Event | None = None,
    ) -> Fingerprint:
        """Like `download_file`, into a sink."""
        body = _Body(sink, etag)
        attempts = 0
        while True:
            problem = self._continue_download(key, body, expected, cancelled or threading.Event())
            if problem is None:
                return body.fingerprint
            attempts += 1
            if attempts == _ATTEMPTS:
                raise problem
            # What was changed on the way may arrive as it is the next time; what was cut is continued.
            if body.is_whole:
                body.restart()
            _pause(attempts)

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens when there is none."""
        with s3_errors(self.uri(key)):
            self._client.delete_object(Bucket=self._name, Key=key)

    def list_uploads(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Key and upload ID of each multipart upload that is neither complete nor aborted."""
        with s3_errors(self.uri(prefix)):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._name, Prefix=prefix)
            for upload in (upload for page in pages for upload in page.get("Uploads", ())):
                yield upload["Key"], upload["UploadId"]

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload; nothing happens when it has ended by itself."""
        from botocore.exceptions import ClientError

        with s3_errors(self.uri(key)):
            try:
                self._client.abort_multipart_upload(Bucket=self._name, Key=key, UploadId=upload_id)
            except ClientError as error:
                if error.response["Error"]["Code"] != "NoSuchUpload":
                    raise

    def _get(self, key: str) -> Content:
        """A small object. A body that is cut or changed is asked for again, a bounded number of times."""
        from botocore.exceptions import BotoCoreError

        attempt = 1
        while True:
            response = self._client.get_object(Bucket=self._name, Key=key)
            try:
                return Content(response["Body"].read(), response["ETag"])
            except BotoCoreError:
                if attempt == _ATTEMPTS:
                    raise
            _pause(attempt)
            attempt += 1

    def _receive_range(self, key: str, start: int, buffer: memoryview, etag: str) -> int:
        last = start + len(buffer) - 1
        response = self._client.get_object(Bucket=self._name, Key=key, Range=f"bytes={start}-{last}", IfMatch=etag)
        with closing(response["Body"]) as content:
            if not response.get("ContentRange", "").startswith(f"bytes {start}-"):
                raise InvalidInput(
                    f"{self.uri(key)} was asked for its bytes {start:,} to {last:,}, and the service sent others: "
                    "let requests with the header Range through to a service that answers them"
                )
            return _fill(content, buffer)

    def _continue_download(
        self, key: str, body: "_Body", expected: Fingerprint | None, cancelled: threading.Event
    ) -> TransientError | None:
        """Receive what has not arrived yet; what is wrong if another request may mend it, None when all is well."""
        try:
            self._receive(key, body, expected, cancelled)
        except DamagedObject:
            raise
        except TransientError as error:
            if not body.is_whole:
                message = f"the download of {self.uri(key)} broke off after {body.fingerprint.bytes:,} bytes: {error}"
                return TransientError(message)
            # All of it arrived, and the service's checksum says that it was changed.
            return DamagedObject(f"{self.uri(key)} is damaged: {body.fingerprint} arrived: {error}")
        try:
            if expected is not None:
                check_content(self.uri(key), body.fingerprint, expected)
        except DamagedObject as damaged:
            return damaged
        return None

    def _receive(self, key: str, body: "_Body", expected: Fingerprint | None, cancelled: threading.Event) -> None:
        from botocore.exceptions import ClientError

        with s3_errors(self.uri(key)):
            try:
                response = self._client.get_object(Bucket=self._name, Key=key, **body.conditions)
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchKey":
                    raise DamagedObject(f"{self.uri(key)} is missing") from error
                self._refuse_changed(error, key)
                raise
            with closing(response["Body"]) as content:
                body.begin(response)
                if expected is not None and body.total != expected.bytes:
                    said = f"it has {body.total:,} bytes, where {expected} were written"
                    raise DamagedObject(f"{self.uri(key)} is damaged: {said}")
                for chunk in content.iter_chunks(CHUNK_BYTES):
                    if cancelled.is_set():
                        raise Interrupted(f"the download of {self.uri(key)} was cancelled")
                    body.append(chunk)

    def _refuse_changed(self, error: Any, key: str) -> None:
        if status_of(error) in _CONFLICT_STATUSES:
            raise InvalidInput(
                f"{self.uri(key)} was changed while it was read; try again when nobody writes to it"
            ) from error


class _Body:
    """What has arrived of an object, and how to ask for the rest of the same content."""

    def __init__(self, sink: Sink, etag: str | None) -> None:
        self._sink = sink
        self._etag = etag
        self.total = -1
        """Bytes of the whole object; -1 until the service has said it."""

        self.restart()

    def restart(self) -> None:
        """Forget what has arrived."""
        self._sink.restart()
        self._hasher = hashlib.sha256()
        self._bytes = 0

    @property
    def conditions(self) -> dict[str, str]:
        """Arguments of the next request."""
        conditions = {"IfMatch": self._etag} if self._etag else {}
        if self._bytes:
            conditions["Range"] = f"bytes={self._bytes}-"
        return conditions

    def begin(self, response: Any) -> None:
        """Take over an answer's header."""
        if self._bytes and "ContentRange" not in response:
            self.restart()  # the service does not know ranges: it sends all of it again
        self._etag = response["ETag"]
        self.total = self._bytes + response["ContentLength"]

    def append(self, chunk: bytes) -> None:
        """Take over the next bytes."""
        self._sink.write(chunk)
        self._hasher.update(chunk)
        self._bytes += len(chunk)

    @property
    def is_whole(self) -> bool:
        """Whether as many bytes have arrived as there are."""
        return self._bytes == self.total

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of what has arrived."""
        return Fingerprint(self._bytes, self._hasher.hexdigest())


def _fill(content: Any, buffer: memoryview) -> int:
    """Bytes that a body brought; one that was cut counts as what came before, if anything did."""
    from botocore.exceptions import BotoCoreError

    filled = 0
    try:
        while arrived := content.readinto(buffer[filled : filled + CHUNK_BYTES]):
            filled += arrived
    except BotoCoreError:
        if not filled:
            raise
    return filled


def _pause(attempt: int) -> None:
    """Wait before the next attempt, twice as long each time."""
    time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))


def _full_object_sha256(response: Any) -> str | None:
    """The service's SHA-256 in hexadecimal. That of a multipart object covers the sums of its parts: it is no use."""
    checksum = response.get("ChecksumSHA256")
    if checksum is None or response.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT" or "-" in checksum:
        return None
    return base64.b64decode(checksum).hex()
