"""Sources: base models and data sets that a spec names, listed, identified by content, and fetched."""

import os
import re
from collections.abc import Container, Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

from edgetune_contract.request import FileEntry
from edgetune_contract.values.suggestions import missing_path
from edgetune_jobs.errors import AccessDenied, InvalidInput
from edgetune_jobs.store.files import (
    FileState,
    checked_relative,
    file_list_digest,
    fingerprint,
    list_files,
    read_range,
)
from edgetune_jobs.store.folder_store import path_of_uri

_MODEL_SUFFIXES = frozenset((".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken"))
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")

MOST_NOTE_BYTES = 2**16

_NOT_HASHED = "0" * 64

# A file of the hub's cache: models--<organization>--<name>/blobs/<hash>, to which the files of its snapshots link.
_HUB_BLOB = re.compile(r".*/(models|datasets)--[^/]+/blobs/([0-9a-f]{40}|[0-9a-f]{64})", re.DOTALL)


class Source(Protocol):
    """The files of a base model or a data set that the spec names."""

    @property
    def uri(self) -> str: ...

    @property
    def files(self) -> Sequence[FileEntry]:
        """The files that stages may read, sorted by path.

        In an object store, sha256 may be the hash of the store's own checksum.
        """
        ...

    @property
    def ignored(self) -> Sequence[str]:
        """Paths of all other files, sorted, for messages."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the file list."""
        ...

    def fetch(self, paths: Sequence[str]) -> Path:
        """A local folder with these files."""
        ...

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        """Read a file from byte `start` into `buffer`; the number of bytes read.

        It is smaller than the buffer at the file's end, or if the connection broke.
        """
        ...

    def read_note(self, path: str) -> bytes:
        """The first bytes of a file for people, such as README.md or LICENSE; empty if it cannot be read.

        Unlike the model, it may be one of `ignored`: it is in no digest.
        """
        ...


class SourceKind(Enum):
    """The purpose of a source, which determines its files."""

    MODEL = "model"
    DATA = "data"

    def counts(self, path: str) -> bool:
        """Whether a file is part of the source's digest and may be fetched.

        In a model, these are files without code at the top level: safetensors, configuration, tokenizer. Pickles (.bin,
        .pt, .pth, .ckpt, .pkl) are listed in messages but never read.
        """
        suffix = PurePosixPath(path).suffix.lower()
        if self is SourceKind.MODEL:
            return "/" not in path and (suffix in _MODEL_SUFFIXES or path.startswith("tokenizer.model"))
        return suffix in DATA_SUFFIXES


def is_hidden(path: str) -> bool:
    """Whether the name of a file or one of its folders begins with a dot, such as .git and .cache."""
    return any(part.startswith(".") for part in path.split("/"))


def check_paths(source: Source, kind: SourceKind, field: str, known: Container[str], paths: Sequence[str]) -> None:
    """Check that files of a source may be fetched.

    Args:
        source: the source.
        kind: its purpose.
        field: path of the source in the spec, for messages.
        known: paths of its files.
        paths: the files to fetch.

    Raises:
        InvalidInput: a file must not be read from a source of this kind, or is not in the source.
    """
    for path in paths:
        if not kind.counts(checked_relative(path)):
            raise InvalidInput(f"{field}.uri: {path} in {source.uri} is not a {kind.value} file")
        if path not in known:
            raise InvalidInput(f"{field}.uri: {source.uri} has no file {path}")


def check_pin(source: Source, field: str, revision: str) -> None:
    """Compare a source with the digest that the spec pins; an empty revision is no pin.

    Raises:
        InvalidInput: the content is not the pinned one.
    """
    if revision and source.digest != revision:
        raise InvalidInput(
            f"{field}.revision is {revision}, but the content of {source.uri} has the digest {source.digest}: "
            "restore the pinned content, or pin the new one"
        )


class FolderSource:
    """A local file or folder. Nothing is copied: fetch returns the folder itself."""

    def __init__(self, uri: str, field: str, kind: SourceKind) -> None:
        """List the files; they are read only when their digests are needed.

        Args:
            uri: file:///path.
            field: path of the source in the spec, such as spec.baseModel, for messages.
            kind: the source's purpose.

        Raises:
            InvalidInput: there is no such file or folder, or the folder has no files, or a file name is not UTF-8, or a
                link in the folder is refused, see `_check_links`.
            AccessDenied: the folder cannot be read.
        """
        self._uri = uri
        self._field = field
        self._kind = kind
        path = path_of_uri(uri)
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            raise AccessDenied(f"{field}.uri: cannot list {uri}; make it readable for this user")
        self._is_file = path.is_file()
        self._folder = path.parent if self._is_file else path
        paths = [path.name] if self._is_file else [name for name in list_files(path) if not is_hidden(name)]
        if not self._is_file:
            self._check_links()
        self._paths = [path for path in paths if kind.counts(path)]
        self._ignored = [_readable(path) for path in paths if not kind.counts(path)]
        self._entries: dict[str, FileEntry] = {}
        self._read_at: dict[str, FileState] = {}
        if not paths:
            problem = f"{uri} has no files; correct the URI or add the files"
            if not path.is_dir():
                problem = missing_path(uri, path.name, _names_beside(path))
            raise InvalidInput(f"{field}.uri: {problem}")
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
        """SHA-256 of a file's content, or of a folder's file list."""
        return self.files[0].sha256 if self._is_file and self._paths else file_list_digest(self.files)

    def fetch(self, paths: Sequence[str]) -> Path:
        """The source's own folder. Callers must not change it.

        Raises:
            InvalidInput: a path is not a file of this source, or the file has changed since its digest was computed.
        """
        check_paths(self, self._kind, self._field, self._paths, paths)
        for path in paths:
            if path in self._read_at and self._state(path) != self._read_at[path]:
                raise InvalidInput(
                    f"{self._field}.uri: {path} in {self._uri} was changed while it was read; "
                    "try again when nothing writes to it"
                )
        return self._folder

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        return read_range(self.fetch([path]) / path, start, buffer)

    def read_note(self, path: str) -> bytes:
        """The first bytes of a file; empty if it cannot be read, or is a link that a model may not have."""
        target = Path(os.path.realpath(self._folder / path))
        if not target.is_file() or not self._is_own(target):
            return b""
        try:
            with target.open("rb") as file:
                return file.read(MOST_NOTE_BYTES)
        except OSError:
            return b""

    def _is_own(self, target: Path) -> bool:
        """Whether a link in the folder may lead to this file."""
        return target.is_relative_to(self._folder.resolve()) or _HUB_BLOB.fullmatch(target.as_posix()) is not None

    def _check_links(self) -> None:
        """Check the links among the files of this source: a link could add any file of this user to the model.

        A link in the folder may lead to another file in it or, as in snapshots of the hub's cache, to a blob of such a
        cache. The folder itself may be a link. A model's files are not in folders, so that links to folders do not
        matter there.

        Raises:
            InvalidInput: a link leaves the folder or leads nowhere, or a link in a data folder leads to a folder.
        """
        for link in sorted(path for path in self._folder.rglob("*") if path.is_symlink()):
            name = link.relative_to(self._folder).as_posix()
            if is_hidden(name):
                continue
            where = f"{self._field}.uri: {_readable(name)} in {self._uri} is a link"
            if link.is_dir() and self._kind is SourceKind.DATA:
                raise InvalidInput(
                    f"{where} to a folder, whose files would not be read; "
                    "replace the link with the folder, or remove it"
                )
            if link.is_dir() or not self._kind.counts(name):
                continue
            target = Path(os.path.realpath(link))
            if not target.is_file():
                raise InvalidInput(
                    f"{where} to {_readable(str(link.readlink()))}, where there is no file; "
                    "replace the link with the file, or remove it"
                )
            if not self._is_own(target):
                raise InvalidInput(
                    f"{where} that leaves the folder, to {_readable(str(target))}; "
                    "replace the link with the file if it belongs here, otherwise remove it"
                )

    def _entry(self, path: str) -> FileEntry:
        if path not in self._entries:
            try:
                self._read_at[path] = self._state(path)
                found = fingerprint(self._folder / path)
            except PermissionError as error:
                raise AccessDenied(
                    f"{self._field}.uri: cannot read {path} in {self._uri}: {error.strerror}; make it readable for "
                    "this user"
                ) from error
            self._entries[path] = found.entry(path)
        return self._entries[path]

    def _state(self, path: str) -> FileState:
        return FileState.of((self._folder / path).stat())


class ListedFolder(FolderSource):
    """A local folder whose files are listed and never hashed, to look at a model of any size within seconds.

    Its files have no true SHA-256, and so it has no digest.
    """

    @property
    def digest(self) -> str:
        raise NotImplementedError("a folder that is only listed has no digest")

    def _entry(self, path: str) -> FileEntry:
        return FileEntry(path=path, bytes=self._state(path).bytes, sha256=_NOT_HASHED)


def _names_beside(path: Path) -> list[str]:
    try:
        return sorted(_readable(each.name) for each in path.parent.iterdir())
    except (OSError, ValueError):  # ValueError: an encoded zero byte
        return []


def _readable(path: str) -> str:
    """The path with a ? for each byte that is not UTF-8."""
    return path.encode(errors="replace").decode()
