"""Checks of streamed safetensors and GGUF files that keep only their headers in memory."""

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Protocol

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.safetensors_header import LENGTH_BYTES, MAX_HEADER_BYTES, read_header
from edgetune_jobs.store.files import Sink

_GGUF_MAGIC = b"GGUF"
_GGUF_VERSIONS = (2, 3)


class FormatReader(Sink, Protocol):
    """Checks one streamed file."""

    def problem(self, file_bytes: int) -> str:
        """Why the file, which has this size, cannot be loaded; empty if no problem was found."""
        ...


def reader_of(path: str) -> FormatReader:
    """The reader for a file, by its suffix."""
    return _READERS.get(PurePosixPath(path).suffix, _OpaqueReader)(path)


class _OpaqueReader:
    """Accepts any content."""

    def __init__(self, path: str) -> None:
        pass

    def write(self, data: bytes) -> None:
        """Ignore the bytes."""

    def restart(self) -> None:
        """Nothing to discard."""

    def problem(self, file_bytes: int) -> str:  # noqa: ARG002 - the signature is that of all readers
        return ""


class _HeaderReader:
    """Keeps the first `_wanted` bytes of a file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._head = bytearray()

    def write(self, data: bytes) -> None:
        while data and (missing := self._wanted - len(self._head)) > 0:
            self._head += data[:missing]
            data = data[missing:]

    def restart(self) -> None:
        self._head.clear()

    @property
    def _wanted(self) -> int:
        return LENGTH_BYTES


class _SafetensorsReader(_HeaderReader):
    def problem(self, file_bytes: int) -> str:
        try:
            read_header(lambda start, length: bytes(self._head[start : start + length]), file_bytes, self._path)
        except InvalidInput as error:
            return str(error)
        return ""

    @property
    def _wanted(self) -> int:
        """Bytes up to the end of the header; before its length is known, up to the end of the length."""
        if len(self._head) < LENGTH_BYTES:
            return LENGTH_BYTES
        return LENGTH_BYTES + min(int.from_bytes(self._head[:LENGTH_BYTES], "little"), MAX_HEADER_BYTES)


class _GgufReader(_HeaderReader):
    def problem(self, file_bytes: int) -> str:  # noqa: ARG002 - the signature is that of all readers
        version = int.from_bytes(self._head[len(_GGUF_MAGIC) :], "little")
        if self._head.startswith(_GGUF_MAGIC) and version in _GGUF_VERSIONS:
            return ""
        return f"{self._path} is not a GGUF file of version {' or '.join(map(str, _GGUF_VERSIONS))}"


_READERS: Mapping[str, Callable[[str], FormatReader]] = {".safetensors": _SafetensorsReader, ".gguf": _GgufReader}
