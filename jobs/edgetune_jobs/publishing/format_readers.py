"""Checks of streamed safetensors and GGUF files that keep only their headers in memory."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.quantization.gguf_adapter import HEAD_BYTES, wrong_base
from edgetune_jobs.models.quantization.gguf_loading import ADAPTER_FILE
from edgetune_jobs.models.safetensors_header import LENGTH_BYTES, MAX_HEADER_BYTES, read_header
from edgetune_jobs.store.files import NullSink, Sink

_GGUF_MAGIC = b"GGUF"
_GGUF_VERSIONS = (2, 3)


class FormatReader(Sink, Protocol):
    """Checks one streamed file."""

    def problem(self, file_bytes: int) -> str:
        """Why the file, which has this size, cannot be loaded; empty if no problem was found."""
        ...


def reader_of(path: str, files: Sequence[FileEntry] = ()) -> FormatReader:
    """The reader for a file, by its suffix; `files` are those of its artifact."""
    if path == ADAPTER_FILE:
        return _AdapterReader(path, files)
    return _READERS.get(PurePosixPath(path).suffix, _OpaqueReader)(path)


class _OpaqueReader(NullSink):
    """Accepts any content."""

    def __init__(self, path: str) -> None:
        pass

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
        version = int.from_bytes(self._head[len(_GGUF_MAGIC) : LENGTH_BYTES], "little")
        if self._head.startswith(_GGUF_MAGIC) and version in _GGUF_VERSIONS:
            return ""
        return f"{self._path} is not a GGUF file of version {' or '.join(map(str, _GGUF_VERSIONS))}"


class _AdapterReader(_GgufReader):
    """Also compares the base that an adapter in GGUF is for with the base in its artifact."""

    def __init__(self, path: str, files: Sequence[FileEntry]) -> None:
        super().__init__(path)
        self._files = files

    def problem(self, file_bytes: int) -> str:
        return super().problem(file_bytes) or wrong_base(bytes(self._head), self._files)

    @property
    def _wanted(self) -> int:
        return HEAD_BYTES


_READERS: Mapping[str, Callable[[str], FormatReader]] = {".safetensors": _SafetensorsReader, ".gguf": _GgufReader}
