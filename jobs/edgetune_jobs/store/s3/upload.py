"""An S3 object that is written while its bytes come into being: a multipart upload, hashed on the way."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from edgetune_jobs.store.files import Buffer, Fingerprint, check_size
from edgetune_jobs.store.s3.client import s3_errors, status_of

# Together with the part that is being filled, so many parts are in memory.
_CONCURRENCY = 3
PART_BYTES = 16 * 2**20
_MOST_PARTS = 10_000
# Within a Pod's grace period, whatever the service does.
_LAST_PARTS_SECONDS = 30


class UploadStream:
    """One upload, within a `with` block: complete at its end, aborted when the block raises."""

    def __init__(self, client: Any, bucket: str, key: str, size: int, part_bytes: int = PART_BYTES) -> None:
        """Begin nothing yet.

        Args:
            client: a boto3 S3 client.
            bucket: the bucket's name.
            key: the object's key.
            size: bytes that will be written.
            part_bytes: of each part, unless that makes more parts than S3 allows.
        """
        self._client = client
        self._place = {"Bucket": bucket, "Key": key}
        self._uri = f"s3://{bucket}/{key}"
        self._size = size
        self._part_bytes = max(part_bytes, -(-size // _MOST_PARTS))
        self._hasher = hashlib.sha256()
        self._bytes = 0
        self._part = bytearray()
        self._parts: list[dict[str, Any]] = []
        self._waiting: deque[Future[dict[str, Any]]] = deque()
        self._pool = ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="upload")
        self._upload_id = ""

    def __enter__(self) -> Self:
        # The client adds such a checksum to each part by itself; the service takes them only if it was told before.
        adds_checksums = self._client.meta.config.request_checksum_calculation == "when_supported"
        checksums = {"ChecksumAlgorithm": "CRC32"} if adds_checksums else {}
        with s3_errors(self._uri):
            self._upload_id = self._client.create_multipart_upload(**self._place, **checksums)["UploadId"]
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
        """Fingerprint of what was written so far."""
        return Fingerprint(self._bytes, self._hasher.hexdigest())

    def write(self, data: Buffer, /) -> int:
        """Take all of these bytes; their number."""
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
        """Hand the filled part over; waits while too many are on their way."""
        while len(self._waiting) >= _CONCURRENCY:
            self._take_oldest()
        number = len(self._parts) + len(self._waiting) + 1
        self._waiting.append(self._pool.submit(self._upload_part, number, bytes(self._part)))
        self._part.clear()

    def _take_oldest(self) -> None:
        with s3_errors(self._uri):
            self._parts.append(self._waiting[0].result())
        self._waiting.popleft()  # not before: a signal may end the waiting, and what is on its way has to be known

    def _upload_part(self, number: int, data: bytes) -> dict[str, Any]:
        response = self._client.upload_part(**self._place, UploadId=self._upload_id, PartNumber=number, Body=data)
        # A service that was told a checksum wants to hear it again in the end.
        checksums = {name: value for name, value in response.items() if name.startswith("Checksum")}
        return {"PartNumber": number, "ETag": response["ETag"], **checksums}

    def _complete(self) -> None:
        from botocore.exceptions import ClientError

        check_size(self.fingerprint, self._size, self._uri)
        if self._part or not self._bytes:
            self._send_part()
        while self._waiting:
            self._take_oldest()
        parts = {"Parts": self._parts}
        with s3_errors(self._uri):
            try:
                self._client.complete_multipart_upload(**self._place, UploadId=self._upload_id, MultipartUpload=parts)
            except ClientError as error:
                # The client asks again when an answer was lost: then the upload is gone because it is complete.
                if error.response["Error"]["Code"] != "NoSuchUpload" or not self._is_there():
                    raise

    def _is_there(self) -> bool:
        """Whether the object is in the bucket. Each attempt writes under keys of its own: nobody else can have put it
        there."""
        from botocore.exceptions import ClientError

        try:
            found = self._client.head_object(**self._place)
        except ClientError as error:
            if status_of(error) == 404:
                return False
            raise
        return bool(found["ContentLength"] == self._size)

    def _abort(self) -> None:
        """Abort the upload when no part is on its way any more: a part that arrives later would stay and cost money.

        What cannot be aborted now is removed with what dead attempts leave, by the attempt that succeeds.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        for part in self._waiting:
            part.cancel()
        wait(self._waiting, timeout=_LAST_PARTS_SECONDS)
        with suppress(BotoCoreError, ClientError):
            self._client.abort_multipart_upload(**self._place, UploadId=self._upload_id)
