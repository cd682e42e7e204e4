"""Local files: sizes and SHA-256, lists of files, and what a full disk means."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, TypeAlias

from edgetune_contract.digest import sha256_of
from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import InvalidInput, TransientError

Buffer: TypeAlias = bytes | bytearray | memoryview

CHUNK_BYTES = 4 * 2**20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Fingerprint:
    """Size in bytes and SHA-256 (64 hexadecimal digits) of some content."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, entry: FileEntry) -> "Fingerprint":
        """Fingerprint that a file list names."""
        return cls(entry.bytes, entry.sha256)

    def entry(self, path: str) -> FileEntry:
        """A file list's entry for a file of this content."""
        return FileEntry(path=path, bytes=self.bytes, sha256=self.sha256)

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes with SHA-256 {self.sha256}"


@dataclass(frozen=True)
class FileState:
    """By what a local file is known not to have changed: its size in bytes and its modification time in ns."""

    bytes: int
    modified_at: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        """State of the file that has this status."""
        return cls(status.st_size, status.st_mtime_ns)


class Sink(Protocol):
    """Takes the bytes of a file as they come, and keeps of them what it likes."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""
        ...

    def restart(self) -> None:
        """Forget all bytes so far: what follows is the file from its beginning."""
        ...


class FileSink:
    """Writes what it gets to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()


class HashingWriter:
    """A file that is written once and hashed as it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Buffer, /) -> int:
        """Write all of these bytes; their number."""
        view = memoryview(data).cast("B")
        left = view
        while left:  # an unbuffered file may take a part only
            left = left[self._file.write(left) :]
        self._hasher.update(view)
        self._bytes += len(view)
        return len(view)

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of what was written so far."""
        return Fingerprint(self._bytes, self._hasher.hexdigest())


class HashingReader:
    """A file that is read once and hashed as it is read. Without `seek`, so that nobody goes back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = hashlib.sha256()
        self._bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that is left with -1; b"" at the end."""
        chunk = self._file.read(size)
        self._hasher.update(chunk)
        self._bytes += len(chunk)
        return chunk

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of what was read so far."""
        return Fingerprint(self._bytes, self._hasher.hexdigest())


def check_size(written: Fingerprint, size: int, name: str) -> None:
    """Check that a file has the size that it was said to get: its writer is wrong otherwise.

    Raises:
        ValueError: it has not.
    """
    if written.bytes != size:
        raise ValueError(f"{name} was to get {size:,} bytes and got {written.bytes:,}")


def fingerprint(path: Path) -> Fingerprint:
    """Fingerprint of a file's content, read in chunks."""
    with path.open("rb") as file:
        reader = HashingReader(file)
        while reader.read(CHUNK_BYTES):
            pass
    return reader.fingerprint


def list_files(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative and with / between names, sorted. Links to files count as files."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def file_list_digest(entries: Sequence[FileEntry]) -> str:
    """SHA-256 of the canonical JSON of a file list: path, bytes and SHA-256 of each, sorted by path."""
    return sha256_of([entry.model_dump(mode="json") for entry in sorted(entries, key=lambda entry: entry.path)])


def checked_relative(path: str) -> str:
    """The path as it is, if it stays below the folder that it is relative to.

    Raises:
        InvalidInput: the path is absolute, empty, or climbs out with "..".
    """
    parts = path.split("/")
    if not path or PurePosixPath(path).is_absolute() or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise InvalidInput(f"the file name {path!r} leads out of its folder or has an empty part; rename the file")
    return path


@contextmanager
def disk_errors(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turns a full disk at `path` into a TransientError that says how much is free and how much was needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise disk_full(path, needed_bytes) from error


def require_free_space(path: Path, needed_bytes: int) -> None:
    """Check that a file system has room, before anything is written to it.

    Raises:
        TransientError: less than `needed_bytes` are free.
    """
    if shutil.disk_usage(path).free < needed_bytes:
        raise disk_full(path, needed_bytes)


def disk_full(path: Path, needed_bytes: int | None = None) -> TransientError:
    """The error of a full disk, with the bytes that are free at `path`."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    needed = "" if needed_bytes is None else f", {needed_bytes:,} are needed"
    return TransientError(
        f"the disk is full: {free:,} bytes are free at {existing}{needed}; "
        "free some space or give the stage a larger work volume"
    )


def is_disk_full(error: OSError) -> bool:
    """Whether an OSError says that the disk, or the quota on it, is full."""
    return error.errno in _DISK_FULL
