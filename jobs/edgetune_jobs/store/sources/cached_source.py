"""A base model in S3, read through the cache of a volume."""

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from edgetune_contract.digest import sha256_of
from edgetune_contract.request import FileEntry
from edgetune_jobs.store.files import Fingerprint, checked_relative, file_list_digest, require_free_space
from edgetune_jobs.store.parallel import for_each
from edgetune_jobs.store.sources.model_cache import ModelCache
from edgetune_jobs.store.sources.source import Source
from edgetune_jobs.store.store import Store


@runtime_checkable
class RemoteSource(Source, Protocol):
    """A Source in S3, whose files can also be downloaded one by one."""

    def download(self, path: str, target: Path, cancelled: threading.Event) -> Fingerprint:
        """Download one file to `target`; its fingerprint."""
        ...


class StoredSource:
    """A folder of the store with its manifest: files are checked against it when they are fetched."""

    def __init__(self, ranges: Source, store: Store, key: str, entries: Sequence[FileEntry], target: Path) -> None:
        """
        Args:
            ranges: reads the same folder by range.
            store: the store.
            key: key of the folder.
            entries: the manifest's files, with paths relative to the folder.
            target: folder that files are fetched to.
        """
        self._ranges = ranges
        self._store = store
        self._key = key
        self._entries = {entry.path: entry for entry in entries}
        self._target = target
        self.uri = ranges.uri
        self.ignored: Sequence[str] = ()
        self.files = tuple(entries)
        self.digest = file_list_digest(entries)

    def fetch(self, paths: Sequence[str]) -> Path:
        """The target folder with these files."""
        return self._store.fetch_folder(self._key, [self._entries[path] for path in paths], self._target)

    def download(self, path: str, target: Path, cancelled: threading.Event) -> Fingerprint:  # noqa: ARG002 - no such option
        """Download one file."""
        expected = Fingerprint.of(self._entries[path])
        self._store.download_file(f"{self._key}/{path}", target, expected)
        return expected

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        """Read a file by range; its content is not checked."""
        return self._ranges.read_into(path, start, buffer)

    def read_note(self, path: str) -> bytes:
        """The first bytes of a file; its content is not checked."""
        return self._ranges.read_note(path)


class CachedSource:
    """A Source whose files come from the cache where it has them, and are added to it where it does not."""

    def __init__(self, source: RemoteSource, cache: ModelCache, endpoint: str | None, target: Path) -> None:
        """Wrap a source, without any request.

        Args:
            source: the base model; it fetches files to `target`.
            cache: the cache.
            endpoint: URL of the S3 service: two services may have buckets of the same name.
            target: folder that files are copied to; created when needed.
        """
        self._source = source
        self._cache = cache
        self._target = target
        self._fetched: set[str] = set()
        self._descriptors: dict[str, int] = {}
        weakref.finalize(self, _close_all, self._descriptors)
        self._id = sha256_of([endpoint or "", source.uri])
        self.uri = source.uri
        self.ignored = source.ignored

    @property
    def files(self) -> Sequence[FileEntry]:
        return self._source.files

    @property
    def digest(self) -> str:
        return self._source.digest

    def fetch(self, paths: Sequence[str]) -> Path:
        """The target folder with these files, as they were listed."""
        self._target.mkdir(parents=True, exist_ok=True)
        # A file that the source has fetched before is not fetched by it again.
        wanted = [path for path in paths if path not in self._fetched]
        require_free_space(self._target, self._bytes(wanted))
        missing = self._not_copied(wanted)
        if missing:
            with self._cache.lock(self._id):
                missing = self._not_copied(missing)  # another stage may have added them
                if missing:
                    self._source.fetch(missing)
                    self._add_copies(missing)
        self._fetched.update(wanted)
        return self._target

    def open(self, paths: Sequence[str]) -> None:
        """Let `read_into` read these files from the cache, after adding those that it does not have."""
        missing = self._not_opened(paths)
        if missing:
            with self._cache.lock(self._id):
                missing = self._not_opened(missing)
                if missing and self._cache.make_room(self._bytes(missing)):
                    for_each(missing, self._add)
                    for path in missing:
                        self._open(path)

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        """Read a file from byte `start` into `buffer`, from the cache if it is open there."""
        descriptor = self._descriptors.get(path)
        if descriptor is not None:
            with self._cache.tolerating():  # such as a volume that is lost
                return os.preadv(descriptor, [buffer], start)
        return self._source.read_into(path, start, buffer)

    def read_note(self, path: str) -> bytes:
        """The first bytes of a file, which is not added to the cache."""
        return self._source.read_note(path)

    @cached_property
    def _entries(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self._source.files}

    def _key(self, path: str) -> str:
        entry = self._entries[path]
        return sha256_of([self._id, path, entry.bytes, entry.sha256])

    def _bytes(self, paths: Sequence[str]) -> int:
        return sum(self._entries[path].bytes for path in paths)

    def _not_copied(self, paths: Sequence[str]) -> list[str]:
        missing = [path for path in paths if not self._copy(path)]
        self._cache.bytes_read += self._bytes(paths) - self._bytes(missing)
        return missing

    def _not_opened(self, paths: Sequence[str]) -> list[str]:
        missing = [path for path in paths if not self._open(path)]
        self._cache.bytes_read += self._bytes(paths) - self._bytes(missing)
        return missing

    def _copy(self, path: str) -> bool:
        target = self._target / checked_relative(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        return self._cache.copy(self._key(path), target, self._entries[path].bytes)

    def _open(self, path: str) -> bool:
        descriptor = self._cache.open(self._key(path), self._entries[path].bytes)
        if descriptor is not None:
            self._descriptors[path] = descriptor
        return descriptor is not None

    def _add_copies(self, paths: Sequence[str]) -> None:
        if self._cache.make_room(self._bytes(paths)):
            for path in paths:
                self._cache.add_copy(self._key(path), self._target / path)

    def _add(self, path: str, cancelled: threading.Event) -> None:
        self._cache.add(self._key(path), lambda partial: self._source.download(path, partial, cancelled))


def _close_all(descriptors: Mapping[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
