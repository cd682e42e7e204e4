"""Base models and data sets in S3."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.store.files import Fingerprint, checked_relative, file_list_digest, require_free_space
from edgetune_jobs.store.parallel import for_each
from edgetune_jobs.store.s3.bucket import RemoteObject, S3Bucket
from edgetune_jobs.store.s3.client import split_uri
from edgetune_jobs.store.sources.source import MOST_NOTE_BYTES, SourceKind, check_paths, is_hidden


class S3Source:
    """An object, or the objects below a prefix.

    The file list of a prefix has the service's SHA-256 of each whole object, or sha256(etag) if there is none. The
    digest of a data set that is a single object is the SHA-256 of its content, which users can compute with sha256sum.
    """

    def __init__(self, uri: str, field: str, kind: SourceKind, client: Any, target: Path) -> None:
        """List the objects.

        Args:
            uri: s3://bucket/key or s3://bucket/prefix.
            field: path of the source in the spec, such as spec.dataset.train, for messages.
            kind: the source's purpose.
            client: a boto3 S3 client.
            target: folder that files are fetched to; created when needed.

        Raises:
            InvalidInput: there is nothing at the URI, or a key is not a valid file path.
        """
        bucket, key = split_uri(uri)
        self._uri = uri
        self._field = field
        self._kind = kind
        self._bucket = S3Bucket(client, bucket)
        self._target = target
        self._is_file, found = self._find(key)
        self._objects = {checked_relative(path): found[path] for path in found if kind.counts(path)}
        self._found = found
        self._ignored = sorted(path for path in found if not kind.counts(path))
        if not found:
            raise InvalidInput(f"{field}.uri: there is nothing at {uri}; correct the URI or upload the files")
        self._fetched: set[str] = set()

    @property
    def uri(self) -> str:
        return self._uri

    @cached_property
    def files(self) -> Sequence[FileEntry]:
        if self._is_file:
            return tuple(self._entry_of_content(path) for path in self._objects)
        return tuple(self._entry(path) for path in sorted(self._objects))

    @property
    def ignored(self) -> Sequence[str]:
        return self._ignored

    @cached_property
    def digest(self) -> str:
        """SHA-256 of an object's content, or of a prefix's file list."""
        return self.files[0].sha256 if self._is_file and self.files else file_list_digest(self.files)

    def fetch(self, paths: Sequence[str]) -> Path:
        """A folder with these files, unchanged since they were listed.

        Raises:
            InvalidInput: a path is not a file of this source, or the object has changed since it was listed.
        """
        check_paths(self, self._kind, self._field, self._objects, paths)
        missing = [path for path in paths if path not in self._fetched]
        self._target.mkdir(parents=True, exist_ok=True)
        require_free_space(self._target, sum(self._objects[path].bytes for path in missing))

        def download(path: str, cancelled: threading.Event) -> None:
            target = self._target / path
            target.parent.mkdir(parents=True, exist_ok=True)
            self.download(path, target, cancelled)

        for_each(missing, download)
        self._fetched.update(missing)
        return self._target

    def download(self, path: str, target: Path, cancelled: threading.Event) -> Fingerprint:
        """Download one file, unchanged since it was listed, to `target`; its fingerprint."""
        found = self._objects[path]
        return self._bucket.download_file(found.key, target, etag=found.etag, cancelled=cancelled)

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        check_paths(self, self._kind, self._field, self._objects, [path])
        found = self._objects[path]
        return self._bucket.read_into(found.key, start, buffer, found.etag)

    def read_note(self, path: str) -> bytes:
        """The first bytes of an object; empty if it is shorter than when it was listed."""
        found = self._found[path]
        buffer = bytearray(min(found.bytes, MOST_NOTE_BYTES))
        arrived = self._bucket.read_into(found.key, 0, memoryview(buffer), found.etag) if buffer else 0
        return bytes(buffer[:arrived])

    def _find(self, key: str) -> tuple[bool, Mapping[str, RemoteObject]]:
        if self._kind is SourceKind.DATA and key and not self._uri.endswith("/"):
            found = self._bucket.head(key)
            if found is not None:
                return True, {key.rpartition("/")[2]: found}
        prefix = f"{key}/" if key else ""
        objects = {found.key.removeprefix(prefix): found for found in self._bucket.list(prefix)}
        # Some tools create keys that end with / for empty folders.
        paths = [path for path in objects if path and not path.endswith("/") and not is_hidden(path)]
        return False, {path: objects[path] for path in paths}

    def _entry(self, path: str) -> FileEntry:
        found = self._objects[path]
        head = self._bucket.head(found.key) if found.has_sha256 else None
        sha256 = head.sha256 if head is not None and head.etag == found.etag else None
        return FileEntry(path=path, bytes=found.bytes, sha256=sha256 or hashlib.sha256(found.etag.encode()).hexdigest())

    def _entry_of_content(self, path: str) -> FileEntry:
        found = self._objects[path]
        sha256 = found.sha256
        if sha256 is None:
            with (self.fetch([path]) / path).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(path=path, bytes=found.bytes, sha256=sha256)
