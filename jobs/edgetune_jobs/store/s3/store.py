"""A store below a prefix of an S3 bucket."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgetune_contract.request import FileEntry
from edgetune_jobs.store.files import Fingerprint, Sink, checked_relative, require_free_space
from edgetune_jobs.store.parallel import for_each
from edgetune_jobs.store.s3.bucket import S3Bucket
from edgetune_jobs.store.s3.client import split_uri
from edgetune_jobs.store.s3.upload import PART_BYTES, UploadStream
from edgetune_jobs.store.store import Content, StoredObject


class S3Store:
    """Objects below `uri`, s3://bucket/prefix, through a boto3 client."""

    def __init__(self, uri: str, client: Any, part_bytes: int = PART_BYTES) -> None:
        bucket, self._prefix = split_uri(uri)
        self._uri = uri.rstrip("/")
        self._bucket = S3Bucket(client, bucket, part_bytes)

    @property
    def uri(self) -> str:
        return self._uri

    def read(self, key: str) -> Content | None:
        return self._bucket.read(self._full(key))

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        return self._bucket.put(self._full(key), data, if_none_match=if_none_match, if_match=if_match)

    def list(self, folder: str) -> Iterator[StoredObject]:
        for found in self._bucket.list(f"{self._full(folder)}/"):
            yield StoredObject(self._short(found.key), found.bytes)

    def upload_file(self, path: Path, key: str) -> Fingerprint:
        return self._bucket.upload_file(path, self._full(key))

    def create_file(self, key: str, size: int) -> UploadStream:
        return self._bucket.create_file(self._full(key), size)

    def download_file(self, key: str, path: Path, expected: Fingerprint) -> None:
        self._bucket.download_file(self._full(key), path, expected)

    def stream(self, key: str, sink: Sink) -> Fingerprint:
        return self._bucket.stream(self._full(key), sink)

    def fetch_folder(self, folder: str, files: Sequence[FileEntry], target: Path) -> Path:
        target.mkdir(parents=True, exist_ok=True)
        require_free_space(target, sum(entry.bytes for entry in files))

        def fetch(entry: FileEntry, cancelled: threading.Event) -> None:
            path = target / checked_relative(entry.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            expected = Fingerprint.of(entry)
            self._bucket.download_file(self._full(entry.key_below(folder)), path, expected, cancelled=cancelled)

        for_each(files, fetch)
        return target

    def link(self, key: str, other: str) -> None:
        """Nothing: a bucket has no links."""

    def delete(self, key: str) -> None:
        self._bucket.delete(self._full(key))

    def delete_tree(self, folder: str, keep: Sequence[str] = ()) -> None:
        def is_kept(key: str) -> bool:
            return any(key == kept or key.startswith(f"{kept}/") for kept in keep)

        prefix = f"{self._full(folder)}/"
        for key, upload_id in self._bucket.list_uploads(prefix):
            if not is_kept(self._short(key)):
                self._bucket.abort_upload(key, upload_id)
        for found in self._bucket.list(prefix):
            if not is_kept(self._short(found.key)):
                self._bucket.delete(found.key)

    def discard_unfinished(self, folder: str) -> None:
        for key, upload_id in self._bucket.list_uploads(f"{self._full(folder)}/"):
            self._bucket.abort_upload(key, upload_id)

    def _full(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _short(self, key: str) -> str:
        return key.removeprefix(f"{self._prefix}/") if self._prefix else key
