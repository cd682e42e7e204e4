"""A store in a local folder, safe for several processes on one machine."""

import errno
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import AccessDenied, TransientError
from edgetune_jobs.store.files import (
    CHUNK_BYTES,
    FileSink,
    Fingerprint,
    HashingReader,
    HashingWriter,
    Sink,
    check_size,
    checked_relative,
    disk_errors,
    fingerprint,
    require_free_space,
    sync,
)
from edgetune_jobs.store.store import Content, DamagedObject, PreconditionFailed, StoredObject, check_content

_LOCK = ".edgetune-store.lock"
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
# Another process may remove an empty folder between its creation and the first file in it.
_ATTEMPTS = 5


def path_of_uri(uri: str) -> Path:
    """Local path of a file:// URI; %XX is decoded to one byte."""
    return Path(unquote(urlsplit(uri, allow_fragments=False).path))


class LocalFolderStore:
    """Objects as files below a folder. A file gets its name only after its content is complete and on the disk."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._root = path_of_uri(self._uri)

    @property
    def uri(self) -> str:
        return self._uri

    def read(self, key: str) -> Content | None:
        with _access_errors(f"read {self._uri}/{key}"):
            try:
                # A put replaces the file: content and time must be of the same one.
                with self._path(key).open("rb") as file:
                    data, seconds = file.read(), os.fstat(file.fileno()).st_mtime
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Content(data, _etag_of(data), datetime.fromtimestamp(seconds, UTC))

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        def place(temporary: Path, path: Path) -> None:
            with self._locked():
                current = self._etag(key) if if_none_match or if_match is not None else None
                if if_none_match and current is not None:
                    raise PreconditionFailed(f"{self._uri}/{key} already exists")
                if if_match is not None and current != if_match:
                    raise PreconditionFailed(f"{self._uri}/{key} was changed by another writer")
                temporary.replace(path)

        self._write(key, len(data), lambda file: file.write(data), place)
        return _etag_of(data)

    def list(self, folder: str) -> Iterator[StoredObject]:
        with _access_errors(f"list {self._uri}/{folder}"):
            paths = sorted(
                (path for _, files in _walk(self._path(folder)) for path in files if not _is_internal(path)),
                key=Path.as_posix,
            )
        for path in paths:
            with suppress(FileNotFoundError):
                yield StoredObject(path.relative_to(self._root).as_posix(), path.stat().st_size)

    def upload_file(self, path: Path, key: str) -> Fingerprint:
        sent = Fingerprint(0, "")

        def copy(file: BinaryIO) -> None:
            nonlocal sent
            with path.open("rb") as source:
                reader = HashingReader(source)
                while chunk := reader.read(CHUNK_BYTES):
                    file.write(chunk)
            sent = reader.fingerprint

        self._write(key, path.stat().st_size, copy, os.replace)
        return sent

    @contextmanager
    def create_file(self, key: str, size: int) -> Iterator[HashingWriter]:
        path, uri = self._path(key), f"{self._uri}/{key}"
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        with _access_errors(f"write {uri}"), disk_errors(path, size), ExitStack() as stack:
            with _removals(uri):
                path.parent.mkdir(parents=True, exist_ok=True)
                require_free_space(path.parent, size)
                file = stack.enter_context(_new_file(temporary))
            writer = HashingWriter(file)
            yield writer
            check_size(writer.fingerprint, size, uri)
            file.flush()
            os.fsync(file.fileno())
            with _removals(uri):
                temporary.replace(path)
                sync(path.parent)

    def download_file(self, key: str, path: Path, expected: Fingerprint) -> None:
        with disk_errors(path, expected.bytes), path.open("wb") as target:
            found = self.stream(key, FileSink(target))
        check_content(f"{self._uri}/{key}", found, expected)

    def stream(self, key: str, sink: Sink) -> Fingerprint:
        with _access_errors(f"read {self._uri}/{key}"):
            try:
                source = self._path(key).open("rb")
            except (FileNotFoundError, NotADirectoryError) as error:
                raise DamagedObject(f"{self._uri}/{key} is missing") from error
            with source:
                reader = HashingReader(source)
                while chunk := reader.read(CHUNK_BYTES):
                    sink.write(chunk)
        return reader.fingerprint

    def fetch_folder(self, folder: str, files: Sequence[FileEntry], target: Path) -> Path:
        for entry in files:
            checked_relative(entry.path)
            key = entry.key_below(folder)
            with _access_errors(f"read {self._uri}/{key}"):
                try:
                    found = fingerprint(self._path(key))
                except (FileNotFoundError, NotADirectoryError) as error:
                    raise DamagedObject(f"{self._uri}/{key} is missing") from error
            check_content(f"{self._uri}/{key}", found, Fingerprint.of(entry))
        if all(entry.key is None for entry in files):
            return self._path(folder)
        for entry in files:
            link = target / entry.path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self._path(entry.key_below(folder)))
        return target

    def link(self, key: str, other: str) -> None:
        path = self._path(other)
        with _access_errors(f"write {self._uri}/{other}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError, NotImplementedError):
                path.hardlink_to(self._path(key))

    def delete(self, key: str) -> None:
        with _access_errors(f"delete {self._uri}/{key}"):
            self._path(key).unlink(missing_ok=True)

    def delete_tree(self, folder: str, keep: Sequence[str] = ()) -> None:
        kept = [self._path(key) for key in keep]
        self._delete_files(folder, lambda path: not any(path.is_relative_to(key) for key in kept))

    def discard_unfinished(self, folder: str) -> None:
        self._delete_files(folder, lambda path: _TEMPORARY.fullmatch(path.name) is not None)

    def _delete_files(self, folder: str, is_wanted: Callable[[Path], bool]) -> None:
        """Delete files below a folder, then the folders that are empty."""
        with _access_errors(f"delete {self._uri}/{folder}"):
            for parent, files in _walk(self._path(folder)):
                for path in filter(is_wanted, files):
                    path.unlink(missing_ok=True)
                with suppress(OSError):  # not empty, or already removed by another process
                    parent.rmdir()

    def _path(self, key: str) -> Path:
        return self._root / checked_relative(key)

    def _write(
        self, key: str, size: int, fill: Callable[[BinaryIO], object], place: Callable[[Path, Path], None]
    ) -> None:
        path = self._path(key)
        with _access_errors(f"write {self._uri}/{key}"), disk_errors(path, size):
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
                    with _new_file(temporary) as file:
                        fill(file)
                        file.flush()
                        os.fsync(file.fileno())
                        place(temporary, path)
                    sync(path.parent)
                    return
                except FileNotFoundError:
                    if attempt == _ATTEMPTS:
                        raise

    def _etag(self, key: str) -> str | None:
        content = self.read(key)
        return None if content is None else content.etag

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process at a time checks conditions and renames; the kernel releases the lock if it dies."""
        with (self._root / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _etag_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _walk(top: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Folders below `top` and `top` itself, the deepest first, each with its files.

    Folders that other processes remove at the same time are skipped.
    """

    def raise_unless_gone(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise error

    for folder, _, names in os.walk(top, topdown=False, onerror=raise_unless_gone):
        yield Path(folder), [Path(folder, name) for name in names]


def _is_internal(path: Path) -> bool:
    return path.name == _LOCK or _TEMPORARY.fullmatch(path.name) is not None


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file under a temporary name. It is deleted at the end unless the block has renamed it."""
    try:
        with path.open("xb") as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _removals(uri: str) -> Iterator[None]:
    """Turns the removal of a file or its folder by another process into a TransientError."""
    try:
        yield
    except FileNotFoundError as error:
        raise TransientError(
            f"{uri} was removed while it was written, probably by another attempt that finished the stage; try again"
        ) from error


@contextmanager
def _access_errors(action: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise AccessDenied(f"cannot {action}: {error.strerror}; give this user access to {error.filename}") from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise AccessDenied(f"cannot {action}: the file system is read-only") from error
        raise
