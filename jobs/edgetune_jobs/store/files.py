"""Local files: sizes and SHA-256, lists of files, the error of a full disk."""

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
        """Fingerprint in an entry of a file list."""
        return cls(entry.bytes, entry.sha256)

    def entry(self, path: str) -> FileEntry:
        """An entry of a file list for a file with this content."""
        return FileEntry(path=path, bytes=self.bytes, sha256=self.sha256)

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes with SHA-256 {self.sha256}"


@dataclass(frozen=True)
class FileState:
    """Shows whether a local file has changed: its size in bytes and its modification time in ns."""

    bytes: int
    modified_at: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        """State from a file's stat result."""
        return cls(status.st_size, status.st_mtime_ns)


class Sink(Protocol):
    """Receives the bytes of a file in order."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""
        ...

    def restart(self) -> None:
        """Discard all bytes so far: the file is sent again from its beginning."""
        ...


class NullSink:
    """Takes bytes of which only the fingerprint is needed."""

    def write(self, data: bytes) -> None:
        """Ignore the bytes."""

    def restart(self) -> None:
        """Nothing to discard."""


class FileSink:
    """Writes the bytes to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()


class HashingWriter:
    """Writes a file and hashes its content on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Buffer, /) -> int:
        """Write all of these bytes; their number."""
        view = memoryview(data).cast("B")
        left = view
        while left:  # an unbuffered file may write only a part
            left = left[self._file.write(left) :]
        self._hasher.update(view)
        self._bytes += len(view)
        return len(view)

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the bytes written so far."""
        return Fingerprint(self._bytes, self._hasher.hexdigest())


class HashingReader:
    """Reads a file and hashes its content on the way. Without `seek`, which would break the hash."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = hashlib.sha256()
        self._bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, or all remaining bytes with -1; b"" at the end."""
        chunk = self._file.read(size)
        self._hasher.update(chunk)
        self._bytes += len(chunk)
        return chunk

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the bytes read so far."""
        return Fingerprint(self._bytes, self._hasher.hexdigest())


def check_size(written: Fingerprint, size: int, name: str) -> None:
    """Check that a file has the size that its writer announced.

    Raises:
        ValueError: it has another size, which is a bug of the writer.
    """
    if written.bytes != size:
        raise ValueError(f"{name}: {written.bytes:,} bytes were written instead of {size:,}")


def fingerprint(path: Path) -> Fingerprint:
    """Fingerprint of a file's content, read in chunks."""
    with path.open("rb") as file:
        reader = HashingReader(file)
        while reader.read(CHUNK_BYTES):
            pass
    return reader.fingerprint


def fingerprint_of_bytes(data: bytes) -> Fingerprint:
    """Fingerprint of some bytes."""
    return Fingerprint(len(data), hashlib.sha256(data).hexdigest())


def read_range(path: Path, start: int, buffer: memoryview) -> int:
    """Read a file from byte `start` into `buffer`; the number of bytes read, fewer than its size at the file's end."""
    with path.open("rb") as file:
        file.seek(start)
        return file.readinto(buffer)


def list_files(folder: Path) -> list[str]:
    """Relative paths of all files below a folder, with / between names, sorted. Links to files count as files."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def file_list_digest(entries: Sequence[FileEntry]) -> str:
    """SHA-256 of the canonical JSON of a file list: path, bytes and SHA-256 of each, sorted by path."""
    ordered = sorted(entries, key=lambda entry: entry.path)
    return sha256_of([entry.model_dump(mode="json", exclude={"key"}) for entry in ordered])


def checked_relative(path: str) -> str:
    """The unchanged path, if it stays below the folder that it is relative to.

    Raises:
        InvalidInput: the path is absolute or empty, or has an empty part, "." or "..".
    """
    parts = path.split("/")
    if not path or PurePosixPath(path).is_absolute() or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise InvalidInput(f"invalid file name {path!r}: it leaves its folder or has an empty part; rename the file")
    return path


@contextmanager
def disk_errors(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turns a full disk at `path` into a TransientError with the free and the needed bytes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise disk_full(path, needed_bytes) from error


def require_free_space(path: Path, needed_bytes: int) -> None:
    """Check that a file system has enough free space, before anything is written to it.

    Raises:
        TransientError: less than `needed_bytes` are free.
    """
    if shutil.disk_usage(path).free < needed_bytes:
        raise disk_full(path, needed_bytes)


def disk_full(path: Path, needed_bytes: int | None = None) -> TransientError:
    """The error of a full disk, with the bytes that are free at `path`."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    needed = "" if needed_bytes is None else f", but {needed_bytes:,} are needed"
    return TransientError(
        f"the disk is full: {free:,} bytes are free at {existing}{needed}; "
        "free some space or give the stage a larger work volume"
    )


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk: without this, it can be lost in a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: OSError) -> bool:
    """Whether an OSError means that the disk or its quota is full."""
    return error.errno in _DISK_FULL
