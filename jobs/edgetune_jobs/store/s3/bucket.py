"""One S3 bucket: small objects, verified uploads and downloads; errors name bucket and key."""

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
    """Whether the service has a SHA-256 for it; for a multipart object this may be a hash of its parts' hashes."""

    sha256: str | None = None
    """The service's SHA-256 of the whole content, in hexadecimal; None in listings and if there is none."""


class S3Bucket:
    """Requests to one bucket through a boto3 client. Thread-safe.

    All methods raise AccessDenied and TransientError, as in Store.
    """

    def __init__(self, client: Any, name: str, part_bytes: int = PART_BYTES) -> None:
        """Open the bucket, without any request.

        Args:
            client: a boto3 S3 client.
            name: the bucket's name.
            part_bytes: larger files are uploaded in parts of this size.
        """
        self._client = client
        self._name = name
        self._part_bytes = part_bytes

    def uri(self, key: str) -> str:
        """URI of a key."""
        return f"s3://{self._name}/{key}"

    def read(self, key: str) -> Content | None:
        """A small object; None if there is none."""
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
                    # 409: another conditional put is in flight, and it is undecided which one wins.
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
        """Size, etag and SHA-256 of an object; None if there is none."""
        from botocore.exceptions import ClientError

        with s3_errors(self.uri(key)):
            try:
                response = self._client.head_object(Bucket=self._name, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                # A missing bucket gives the same response, but fails in a listing.
                if status_of(error) == 404:
                    next(self.list(key), None)
                    return None
                raise
        sha256 = _full_object_sha256(response)
        return RemoteObject(key, response["ContentLength"], response["ETag"], sha256 is not None, sha256)

    def read_into(self, key: str, start: int, buffer: memoryview, etag: str) -> int:
        """Read the content with this etag from byte `start` into `buffer`; the number of bytes read.

        It is smaller than the buffer at the object's end, or if the connection broke after some bytes.

        Raises:
            InvalidInput: the object has changed, or the service ignores ranges.
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
        """A new object of `size` bytes, written as a stream; a failed or interrupted upload is aborted."""
        return UploadStream(self._client, self._name, key, size, self._part_bytes)

    def upload_file(self, path: Path, key: str) -> Fingerprint:
        """Upload a file and hash it on the way, a large one in parts; a failed or interrupted upload is aborted."""
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
        """Download an object to a file. A broken download resumes where it stopped, a bounded number of times.

        Args:
            expected: fingerprint that the content must have.
            etag: etag that the object must still have.
            cancelled: cancels the download when set.

        Raises:
            DamagedObject: the object is missing or has other content.
            InvalidInput: the object no longer has this etag.
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
        """Like `download_file`, but into a sink."""
        body = _Body(sink, etag)
        attempts = 0
        while True:
            problem = self._continue_download(key, body, expected, cancelled or threading.Event())
            if problem is None:
                return body.fingerprint
            attempts += 1
            if attempts == _ATTEMPTS:
                raise problem
            # A complete but damaged body is downloaded again; a partial one is resumed.
            if body.is_whole:
                body.restart()
            _pause(attempts)

    def delete(self, key: str) -> None:
        """Delete an object if it exists."""
        with s3_errors(self.uri(key)):
            self._client.delete_object(Bucket=self._name, Key=key)

    def list_uploads(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Key and upload ID of each multipart upload that is neither completed nor aborted."""
        with s3_errors(self.uri(prefix)):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._name, Prefix=prefix)
            for upload in (upload for page in pages for upload in page.get("Uploads", ())):
                yield upload["Key"], upload["UploadId"]

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload if it still exists."""
        from botocore.exceptions import ClientError

        with s3_errors(self.uri(key)):
            try:
                self._client.abort_multipart_upload(Bucket=self._name, Key=key, UploadId=upload_id)
            except ClientError as error:
                if error.response["Error"]["Code"] != "NoSuchUpload":
                    raise

    def _get(self, key: str) -> Content:
        """A small object. A broken or damaged download is repeated, a bounded number of times."""
        from botocore.exceptions import BotoCoreError

        attempt = 1
        while True:
            response = self._client.get_object(Bucket=self._name, Key=key)
            try:
                return Content(response["Body"].read(), response["ETag"], response["LastModified"])
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
                    f"{self.uri(key)}: the service ignored the request for bytes {start:,} to {last:,}: use a service, "
                    "and a proxy if there is one, that supports the Range header"
                )
            return _fill(content, buffer)

    def _continue_download(
        self, key: str, body: "_Body", expected: Fingerprint | None, cancelled: threading.Event
    ) -> TransientError | None:
        """Download the missing bytes; the error if another request may succeed, None if the content is complete."""
        try:
            self._receive(key, body, expected, cancelled)
        except DamagedObject:
            raise
        except TransientError as error:
            if not body.is_whole:
                message = f"the download of {self.uri(key)} failed after {body.fingerprint.bytes:,} bytes: {error}"
                return TransientError(message)
            # The body is complete, but does not match the service's checksum.
            return DamagedObject(f"{self.uri(key)} is damaged: {body.fingerprint} received: {error}")
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
                    raise DamagedObject(f"{self.uri(key)} is damaged: {body.total:,} bytes instead of {expected}")
                for chunk in content.iter_chunks(CHUNK_BYTES):
                    if cancelled.is_set():
                        raise Interrupted(f"the download of {self.uri(key)} was cancelled")
                    body.append(chunk)

    def _refuse_changed(self, error: Any, key: str) -> None:
        if status_of(error) in _CONFLICT_STATUSES:
            raise InvalidInput(
                f"{self.uri(key)} was changed while it was read; try again when nothing writes to it"
            ) from error


class _Body:
    """The bytes of an object received so far, and the conditions for a request for the rest."""

    def __init__(self, sink: Sink, etag: str | None) -> None:
        self._sink = sink
        self._etag = etag
        self.total = -1
        """Bytes of the whole object; -1 before the first response."""

        self.restart()

    def restart(self) -> None:
        """Discard the received bytes."""
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
        """Process a response's header."""
        if self._bytes and "ContentRange" not in response:
            self.restart()  # the service ignored the range and sends the whole object
        self._etag = response["ETag"]
        self.total = self._bytes + response["ContentLength"]

    def append(self, chunk: bytes) -> None:
        """Process the next bytes."""
        self._sink.write(chunk)
        self._hasher.update(chunk)
        self._bytes += len(chunk)

    @property
    def is_whole(self) -> bool:
        """Whether all bytes are received."""
        return self._bytes == self.total

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the received bytes."""
        return Fingerprint(self._bytes, self._hasher.hexdigest())


def _fill(content: Any, buffer: memoryview) -> int:
    """Read a body into a buffer; the number of bytes. A broken connection raises only before the first byte."""
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
    """Back off exponentially before the next attempt."""
    time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))


def _full_object_sha256(response: Any) -> str | None:
    """The service's SHA-256 in hexadecimal; None for a multipart object, whose hash covers its parts' hashes."""
    checksum = response.get("ChecksumSHA256")
    if checksum is None or response.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT" or "-" in checksum:
        return None
    return base64.b64decode(checksum).hex()
