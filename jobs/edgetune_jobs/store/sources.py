"""What a user names in the spec, a base model or a data set: listed, told apart by content, and fetched."""

import os
from collections.abc import Container, Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import AccessDenied, InvalidInput
from edgetune_jobs.store.files import FileState, checked_relative, file_list_digest, fingerprint, list_files
from edgetune_jobs.store.folder_store import path_of_uri

_MODEL_SUFFIXES = frozenset((".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken"))
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Source(Protocol):
    """Files that a user names in the spec: a base model or a data set."""

    @property
    def uri(self) -> str: ...

    @property
    def files(self) -> Sequence[FileEntry]:
        """The files that it is read from, sorted by path.

        For an object store the sha256 may stand for the store's own checksum.
        """
        ...

    @property
    def ignored(self) -> Sequence[str]:
        """Paths of the other files, sorted, for messages: nothing more is known of them."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the file list."""
        ...

    def fetch(self, paths: Sequence[str]) -> Path:
        """A local folder that holds these files."""
        ...

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        """Read a file from `start` on into `buffer`; how many bytes arrived, fewer than asked for if the file ends or
        the way is cut."""
        ...


class SourceKind(Enum):
    """What a source is read for: it decides which of its files count."""

    MODEL = "model"
    DATA = "data"

    def counts(self, path: str) -> bool:
        """Whether a file is part of the source's digest and may be fetched.

        Of a model only the folder itself counts, and of it what holds no code: safetensors, configuration, tokenizer.
        Pickles (.bin, .pt, .pth, .ckpt, .pkl) are named, never read.
        """
        suffix = PurePosixPath(path).suffix.lower()
        if self is SourceKind.MODEL:
            return "/" not in path and (suffix in _MODEL_SUFFIXES or path.startswith("tokenizer.model"))
        return suffix in DATA_SUFFIXES


def is_hidden(path: str) -> bool:
    """Whether a file or one of its folders has a name that begins with a dot, as .git and .cache have."""
    return any(part.startswith(".") for part in path.split("/"))


def check_paths(source: Source, kind: SourceKind, field: str, known: Container[str], paths: Sequence[str]) -> None:
    """Check that files of a source may be fetched.

    Args:
        source: what they are asked of.
        kind: what it is read for.
        field: path of the source in the spec, for messages.
        known: paths of its files.
        paths: the files.

    Raises:
        InvalidInput: one is not read from such a source, or is not in it.
    """
    for path in paths:
        if not kind.counts(checked_relative(path)):
            raise InvalidInput(f"{source.uri}: {path} is not a file that a {kind.value} source is read from")
        if path not in known:
            raise InvalidInput(f"{field}.uri: {source.uri} has no file {path}")


def check_pin(source: Source, field: str, revision: str) -> None:
    """Compare a source with the digest that the spec pins it to; an empty revision pins nothing.

    Raises:
        InvalidInput: the content is not the pinned one.
    """
    if revision and source.digest != revision:
        raise InvalidInput(
            f"{field}.revision is {revision}, but the content of {source.uri} has the digest {source.digest}: "
            "restore the pinned content, or pin the new one"
        )


class FolderSource:
    """A local file or folder. Nothing is copied: fetch gives the folder itself."""

    def __init__(self, uri: str, field: str, kind: SourceKind) -> None:
        """Find the files; those that count are read when their digests are asked for.

        Args:
            uri: file:///path.
            field: path of the source in the spec, such as spec.baseModel, for messages.
            kind: what it is read for.

        Raises:
            InvalidInput: there is no such file or folder, or the folder has no files, or a file name is not UTF-8.
            AccessDenied: the folder cannot be read.
        """
        self._uri = uri
        self._field = field
        self._kind = kind
        path = path_of_uri(uri)
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            raise AccessDenied(f"{field}.uri: {uri} cannot be listed; make it readable for this user")
        self._is_file = path.is_file()
        self._folder = path.parent if self._is_file else path
        paths = [path.name] if self._is_file else [name for name in list_files(path) if not is_hidden(name)]
        self._paths = [path for path in paths if kind.counts(path)]
        self._ignored = [_readable(path) for path in paths if not kind.counts(path)]
        self._entries: dict[str, FileEntry] = {}
        self._read_at: dict[str, FileState] = {}
        if not paths:
            what = "has no files in it" if path.is_dir() else "does not exist"
            raise InvalidInput(f"{field}.uri: {uri} {what}")
        unreadable = [_readable(path) for path in self._paths if path != _readable(path)]
        if unreadable:
            raise InvalidInput(f"{field}.uri: the file name {unreadable[0]} in {uri} is not UTF-8; rename the file")

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def files(self) -> Sequence[FileEntry]:
        return tuple(self._entry(path) for path in self._paths)

    @property
    def ignored(self) -> Sequence[str]:
        return self._ignored

    @cached_property
    def digest(self) -> str:
        """SHA-256 of a file's content, or of the list of a folder's files."""
        return self.files[0].sha256 if self._is_file and self._paths else file_list_digest(self.files)

    def fetch(self, paths: Sequence[str]) -> Path:
        """The source's own folder, which is read-only.

        Raises:
            InvalidInput: a path is not a file of this source, or was changed since its digest was taken.
        """
        check_paths(self, self._kind, self._field, self._paths, paths)
        for path in paths:
            if path in self._read_at and self._state(path) != self._read_at[path]:
                raise InvalidInput(
                    f"{self._field}.uri: {path} in {self._uri} was changed while it was read; "
                    "try again when nobody writes to it"
                )
        return self._folder

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        with (self.fetch([path]) / path).open("rb") as file:
            file.seek(start)
            return file.readinto(buffer)

    def _entry(self, path: str) -> FileEntry:
        if path not in self._entries:
            try:
                self._read_at[path] = self._state(path)
                found = fingerprint(self._folder / path)
            except PermissionError as error:
                raise AccessDenied(
                    f"{self._field}.uri: {path} in {self._uri} cannot be read: {error.strerror}; make it readable"
                ) from error
            self._entries[path] = found.entry(path)
        return self._entries[path]

    def _state(self, path: str) -> FileState:
        return FileState.of((self._folder / path).stat())


def _readable(path: str) -> str:
    """The path with a ? for each byte that is not UTF-8."""
    return path.encode(errors="replace").decode()
