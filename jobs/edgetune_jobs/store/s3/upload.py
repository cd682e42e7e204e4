"""A multipart upload to S3 of an object that is produced as a stream, hashed on the way."""

import hashlib
from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Condition
from types import TracebackType
from typing import Any, Self

from edgetune_jobs.store.files import Buffer, Fingerprint, check_size
from edgetune_jobs.store.s3.client import s3_errors, status_of

# Parts in flight. One more, which is being filled, is in memory.
_CONCURRENCY = 3
PART_BYTES = 16 * 2**20
_MOST_PARTS = 10_000
# Shorter than a Pod's grace period, even if the service hangs.
_LAST_PARTS_SECONDS = 30


class UploadStream:
    """One upload, used in a `with` block: completed at its end, aborted if the block raises."""

    def __init__(self, client: Any, bucket: str, key: str, size: int, part_bytes: int = PART_BYTES) -> None:
        """The upload starts with the `with` block.

        Args:
            client: a boto3 S3 client.
            bucket: the bucket's name.
            key: the object's key.
            size: bytes that will be written.
            part_bytes: size of each part; larger if S3 does not allow that many parts.
        """
        self._client = client
        self._object = {"Bucket": bucket, "Key": key}
        self._uri = f"s3://{bucket}/{key}"
        self._size = size
        self._part_bytes = max(part_bytes, -(-size // _MOST_PARTS))
        self._hasher = hashlib.sha256()
        self._bytes = 0
        self._part = bytearray()
        self._parts: list[dict[str, Any]] = []
        self._in_flight: deque[Future[dict[str, Any]]] = deque()
        self._pool = ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="upload")
        # Counted by the threads themselves: a signal may interrupt `submit` after a thread has taken the part.
        self._sending = 0
        self._aborted = False
        self._sent = Condition()
        self._upload_id = ""

    def __enter__(self) -> Self:
        # The client adds a CRC32 to each part by itself; the service accepts it only if the upload was created with it.
        adds_checksums = self._client.meta.config.request_checksum_calculation == "when_supported"
        checksums = {"ChecksumAlgorithm": "CRC32"} if adds_checksums else {}
        with s3_errors(self._uri):
            self._upload_id = self._client.create_multipart_upload(**self._object, **checksums)["UploadId"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        complete = False
        try:
            if error is None:
                self._complete()
                complete = True
        finally:
            if not complete:
                self._abort()
            self._pool.shutdown()

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the bytes written so far."""
        return Fingerprint(self._bytes, self._hasher.hexdigest())

    def write(self, data: Buffer, /) -> int:
        """Write all of these bytes; their number."""
        view = memoryview(data).cast("B")
        self._hasher.update(view)
        self._bytes += len(view)
        left = view
        while left:
            room = self._part_bytes - len(self._part)
            self._part += left[:room]
            left = left[room:]
            if len(self._part) == self._part_bytes:
                self._send_part()
        return len(view)

    def _send_part(self) -> None:
        """Submit the filled part; waits while too many are in flight."""
        while len(self._in_flight) >= _CONCURRENCY:
            self._finish_oldest()
        number = len(self._parts) + len(self._in_flight) + 1
        self._in_flight.append(self._pool.submit(self._upload_part, number, bytes(self._part)))
        self._part.clear()

    def _finish_oldest(self) -> None:
        with s3_errors(self._uri):
            self._parts.append(self._in_flight.popleft().result())

    def _upload_part(self, number: int, data: bytes) -> dict[str, Any]:
        with self._sent:
            if self._aborted:
                raise CancelledError
            self._sending += 1
        try:
            response = self._client.upload_part(**self._object, UploadId=self._upload_id, PartNumber=number, Body=data)
        finally:
            with self._sent:
                self._sending -= 1
                self._sent.notify_all()
        # A service that returns checksums of parts expects them again when the upload is completed.
        checksums = {name: value for name, value in response.items() if name.startswith("Checksum")}
        return {"PartNumber": number, "ETag": response["ETag"], **checksums}

    def _complete(self) -> None:
        from botocore.exceptions import ClientError

        check_size(self.fingerprint, self._size, self._uri)
        if self._part or not self._bytes:
            self._send_part()
        while self._in_flight:
            self._finish_oldest()
        parts = {"Parts": self._parts}
        with s3_errors(self._uri):
            try:
                self._client.complete_multipart_upload(**self._object, UploadId=self._upload_id, MultipartUpload=parts)
            except ClientError as error:
                # The client retries if an answer is lost. The first request may have completed the upload.
                if error.response["Error"]["Code"] != "NoSuchUpload" or not self._exists():
                    raise

    def _exists(self) -> bool:
        """Whether the object is in the bucket. No other attempt writes under its key."""
        from botocore.exceptions import ClientError

        try:
            found = self._client.head_object(**self._object)
        except ClientError as error:
            if status_of(error) == 404:
                return False
            raise
        return bool(found["ContentLength"] == self._size)

    def _abort(self) -> None:
        """Abort the upload once no part is in flight: a part that arrives after the abort would stay and cost money.

        If the abort fails, the attempt that succeeds removes the upload.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        with self._sent:
            self._aborted = True
            self._sent.wait_for(lambda: not self._sending, timeout=_LAST_PARTS_SECONDS)
        with suppress(BotoCoreError, ClientError):
            self._client.abort_multipart_upload(**self._object, UploadId=self._upload_id)
