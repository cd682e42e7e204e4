"""Files of base models on a volume that stages share, so that a base is read from S3 once.

    <key>.<SHA-256 of the content>    a file, named for where it comes from; its modification time is its last use
    <key>.<random>.partial            a file that is being written
    <source>.lock                     locked by the stage that fetches a source, while others wait for it; has the name
                                      of its machine, which is that of its Pod

Stages never work on these files: they are copied, or read through an open file, after their content was checked. The
cache may disappear, be full or be damaged at any time: that is a warning, and the file is read from S3.
"""

import fcntl
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from edgetune_jobs.errors import TransientError
from edgetune_jobs.store.files import CHUNK_BYTES, Fingerprint, HashingReader, HashingWriter

logger = logging.getLogger(__name__)

_LOCK, _PARTIAL = ".lock", ".partial"
_UNKNOWN_HOLDER = "another stage"
_LONGEST_NAME = 253
# A download that takes longer is not waited for.
_LONGEST_WAIT_SECONDS = 600.0
_PAUSE_SECONDS = 0.5
# The writer of an older file was killed.
_OLDEST_PARTIAL_SECONDS = 86_400.0


@dataclass
class ModelCache:
    """A folder with at most `size` bytes of files. Thread-safe. No method raises because of the cache itself."""

    folder: Path
    size: int
    """The files that were not used for the longest time are removed to stay below it. Stages that fill the cache at
    the same time may exceed it by what they write."""

    bytes_read: int = 0
    """Bytes that came from the cache instead of S3."""

    _warnings: dict[str, None] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What went wrong, each problem once."""
        return tuple(self._warnings)

    def copy(self, key: str, target: Path, size: int) -> bool:
        """Copy a file to `target`, checked on the way; False if the cache does not have it."""
        with self.tolerating(), self._found(key) as found, target.open("wb") as file:
            if found is not None:
                self._check(key, found, size, file.write)
                return True
        target.unlink(missing_ok=True)
        return False

    def open(self, key: str, size: int) -> int | None:
        """Descriptor of a file whose content was checked, which the caller closes: it stays readable if it is removed.
        None if the cache does not have it."""
        with self.tolerating(), self._found(key) as found:
            if found is not None:
                self._check(key, found, size, lambda _: None)
                return os.dup(found.fileno())
        return None

    def add(self, key: str, write: Callable[[Path], Fingerprint]) -> None:
        """Add a file that `write` writes to a path; if it fails, the cache is as before."""
        partial = self.folder / f"{key}.{secrets.token_hex(8)}{_PARTIAL}"
        with self.tolerating():
            try:
                content = write(partial)
                partial.chmod(0o440)
                partial.rename(self.folder / f"{key}.{content.sha256}")
            finally:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)

    def add_copy(self, key: str, source: Path) -> None:
        """Add a copy of a local file."""

        def copy(partial: Path) -> Fingerprint:
            with source.open("rb") as content, partial.open("xb") as file:
                writer = HashingWriter(file)
                while chunk := content.read(CHUNK_BYTES):
                    writer.write(chunk)
            return writer.fingerprint

        self.add(key, copy)

    def make_room(self, count: int) -> bool:
        """Remove the files that were not used for the longest time, until there is room for `count` bytes. Whether
        there is."""
        if count > self.size:
            self._warn(f"the model cache has {self.size:,} bytes, but the base model needs {count:,}")
            return False
        with self.tolerating():
            files = sorted((each for each in self._files()), key=lambda each: each[1].st_mtime)
            used = sum(state.st_size for _, state in files)
            for path, state in files:
                is_left_over = path.suffix == _PARTIAL and state.st_mtime < time.time() - _OLDEST_PARTIAL_SECONDS
                if is_left_over or (path.suffix != _PARTIAL and used + count > self.size):
                    path.unlink(missing_ok=True)
                    used -= state.st_size
            return True
        return False

    @contextmanager
    def lock(self, source: str) -> Iterator[None]:
        """Let one stage at a time fetch a source, where the volume supports locks and it takes no longer than minutes.

        Without a lock, a source may be fetched twice; files are complete and checked in any case.
        """
        file = None
        with self.tolerating():
            file = (self.folder / f"{source}{_LOCK}").open("a+b")
            _wait_for_lock(file)
        try:
            yield
        finally:
            if file is not None:
                file.close()

    @contextmanager
    def _found(self, key: str) -> Iterator[BinaryIO | None]:
        path = next(self.folder.glob(f"{key}.{'[0-9a-f]' * 64}"), None)
        if path is None:
            self.folder.stat()  # raises if the volume is lost: a missing folder has no files either
            yield None
            return
        with path.open("rb") as file:
            yield file

    def _check(self, key: str, file: BinaryIO, size: int, write: Callable[[bytes], object]) -> None:
        """Read a file to its end; remove it if its content is not the one in its name, or has another size.

        Raises:
            OSError: it was removed.
        """
        reader = HashingReader(file)
        while chunk := reader.read(CHUNK_BYTES):
            write(chunk)
        path = Path(file.name)
        found = reader.fingerprint
        if path.name != f"{key}.{found.sha256}" or found.bytes != size:
            path.unlink(missing_ok=True)
            raise OSError(f"{path.name} was damaged and is removed")
        with suppress(OSError):  # another user's file
            os.utime(path)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another stage removed it
                if path.suffix != _LOCK:
                    yield path, path.stat()

    @contextmanager
    def tolerating(self) -> Iterator[None]:
        """Turn a problem of the cache into a warning: what the block did not do is read from the store instead."""
        try:
            yield
        except (OSError, TransientError) as error:
            problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._warn(f"the model cache: {problem}")

    def _warn(self, problem: str) -> None:
        with self._guard:
            self._warnings[f"{problem}; the base model is read from the store"] = None


def _wait_for_lock(file: BinaryIO) -> None:
    """Lock a file; return without the lock if that takes too long, or the file system has no locks.

    The system releases the lock of a process that ends.
    """
    end, is_waiting = time.monotonic() + _LONGEST_WAIT_SECONDS, False
    while time.monotonic() < end:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_waiting:
                is_waiting = True
                logger.info("waiting for %s, which fetches the base model into the cache", _holder(file))
            time.sleep(_PAUSE_SECONDS)
        except OSError:
            return
        else:
            with suppress(OSError):  # such as a full volume
                file.truncate(0)
                file.write(socket.gethostname().encode())
                file.flush()
            return
    logger.info("%s has not fetched it in %d s: fetching it too", _holder(file), _LONGEST_WAIT_SECONDS)


def _holder(file: BinaryIO) -> str:
    """Name of the machine that locks a file."""
    with suppress(OSError):
        file.seek(0)
        return file.read(_LONGEST_NAME).decode(errors="replace") or _UNKNOWN_HOLDER
    return _UNKNOWN_HOLDER
