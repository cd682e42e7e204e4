"""Model folders on this machine and behind a Source."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import FileIO
from pathlib import Path

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.files import list_files
from edgetune_jobs.stage import Source


class LocalModelFolder:
    """A model in a local folder, which is only read."""

    ignored: Sequence[str] = ()

    def __init__(self, folder: Path, label: str) -> None:
        self._folder = folder
        self.label = label
        self.uri = folder.as_uri() if folder.is_absolute() else str(folder)
        self._states: dict[str, tuple[int, int]] = {}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its path, as they were when it was first asked for."""
        for path in list_files(self._folder):
            self._states[path] = _state((self._folder / path).stat())
        return {path: size for path, (size, _) in self._states.items()}

    def fetch(self, paths: Sequence[str]) -> Path:  # noqa: ARG002 - all of them are here
        return self._folder

    def read_range(self, path: str, start: int, length: int) -> bytes:
        with self._open(path) as file:
            return os.pread(file.fileno(), length, start)

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        with self._open(path) as file:
            return os.preadv(file.fileno(), [buffer], start)

    @contextmanager
    def _open(self, path: str) -> Iterator[FileIO]:
        """A file as it was when it was listed.

        Raises:
            InvalidInput: it was changed since.
        """
        if path not in self.sizes:
            raise InvalidInput(f"{self.label}: {self.uri} has no file {path}")
        with (self._folder / path).open("rb", buffering=0) as file:
            if _state(os.fstat(file.fileno())) != self._states[path]:
                raise InvalidInput(f"{self.label}: {path} was changed while it was read; try again when nobody writes")
            yield file


class SourceModelFolder:
    """A model behind a Source: S3 objects are read by range, each pinned to the content that was listed."""

    def __init__(self, source: Source, label: str) -> None:
        self._source = source
        self.label = label

    @property
    def uri(self) -> str:
        return self._source.uri

    @property
    def ignored(self) -> Sequence[str]:
        return self._source.ignored

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its path."""
        return {entry.path: entry.bytes for entry in self._source.files}

    def fetch(self, paths: Sequence[str]) -> Path:
        return self._source.fetch(paths)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        return self._source.read_range(path, start, length)

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        data = self._source.read_range(path, start, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
