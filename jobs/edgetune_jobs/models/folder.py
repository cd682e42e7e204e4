"""Model folders: local, behind a Source, or in the store; and names of their files except weights."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.store.files import Buffer, FileState, Fingerprint, list_files
from edgetune_jobs.store.sources.source import Source
from edgetune_jobs.store.store import check_content

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"

CODE_FIELD = "auto_map"
"""Configuration field for the model's own Python code, which is never run and never copied."""

IMPLEMENTATION_FIELDS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
)
"""Configuration fields for the code that computes attention and experts, possibly from a repository of the hub. They
are never used and never copied."""

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""Files that contain a whole vocabulary."""

COMPANION_FILES = (
    *VOCABULARIES,
    TOKENIZER_CONFIG,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE_FILE,
    "chat_template.json",
    GENERATION_CONFIG,
)
"""Files of the tokenizer, and the generation settings: copied unchanged, because loading and saving can change them."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, one key per line."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")


def without_code(config: Any) -> Any:
    """A config.json, or a part of it, without the fields that choose code."""
    if isinstance(config, dict):
        dropped = {CODE_FIELD, *IMPLEMENTATION_FIELDS}
        return {name: without_code(value) for name, value in config.items() if name not in dropped}
    return [without_code(item) for item in config] if isinstance(config, list) else config


def base_label(uri: str) -> str:
    """The base model's name in messages: the spec field and its value."""
    return f"{BASE_FIELD}.uri: {uri}"


def artifact_label(name: str, uri: str) -> str:
    """The name in messages of a model that a stage wrote: artifact name and URI."""
    return f"the {name} model ({uri})"


class ModelFolder(Protocol):
    """The files of a model, independent of their location."""

    @property
    def label(self) -> str:
        """The name in messages, from `base_label` or `artifact_label`."""
        ...

    @property
    def uri(self) -> str: ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Size in bytes of each file by its path."""
        ...

    @property
    def ignored(self) -> Sequence[str]:
        """Paths of files that are never read, for messages."""
        ...

    def fetch(self, paths: Sequence[str]) -> Path:
        """A local folder with these files."""
        ...

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        """Read a file from offset `start` into `buffer`; the number of bytes read, which is smaller than the buffer
        at the end of the file or if the connection breaks."""
        ...

    def check(self) -> None:
        """Verify the files that were read against their known hashes; to be called after the last read.

        Raises:
            DamagedObject: the content of a file differs.
        """
        ...


class LocalModelFolder:
    """A model in a local folder; read-only."""

    ignored: Sequence[str] = ()

    def __init__(self, folder: Path, label: str) -> None:
        self._folder = folder
        self.label = label
        self.uri = folder.as_uri() if folder.is_absolute() else str(folder)
        self._states: dict[str, FileState] = {}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size in bytes of each file by its path, at the first access."""
        for path in list_files(self._folder):
            self._states[path] = FileState.of((self._folder / path).stat())
        return {path: state.bytes for path, state in self._states.items()}

    def fetch(self, paths: Sequence[str]) -> Path:  # noqa: ARG002 - all files are local
        return self._folder

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        with self._open(path) as file:
            return os.preadv(file.fileno(), [buffer], start)

    def check(self) -> None:
        """There are no hashes of local files; `read_into` refuses files that were changed."""

    @contextmanager
    def _open(self, path: str) -> Iterator[FileIO]:
        """Open a file that has not changed since it was listed.

        Raises:
            InvalidInput: the file is missing or has changed.
        """
        if path not in self.sizes:
            raise InvalidInput(f"{self.label} has no file {path}")
        with (self._folder / path).open("rb", buffering=0) as file:
            if FileState.of(os.fstat(file.fileno())) != self._states[path]:
                raise InvalidInput(
                    f"{self.label}: {path} was changed while it was read; try again when nothing writes to it"
                )
            yield file


class SourceModelFolder:
    """A model behind a Source: S3 objects are read by range, pinned to the listed content."""

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
        """Size in bytes of each file by its path."""
        return {entry.path: entry.bytes for entry in self._source.files}

    def fetch(self, paths: Sequence[str]) -> Path:
        return self._source.fetch(paths)

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        return self._source.read_into(path, start, buffer)

    def check(self) -> None:
        """Each read was already pinned to the listed content."""


class StoredModelFolder:
    """A model in the store with its manifest: files are hashed while they are read, and verified at the end."""

    ignored: Sequence[str] = ()

    def __init__(
        self, source: Source, label: str, entries: Sequence[FileEntry], fetch: Callable[[Sequence[FileEntry]], Path]
    ) -> None:
        """
        Args:
            source: reads the files by range.
            label: the model's name in messages.
            entries: the manifest's files, with paths relative to the model's folder.
            fetch: returns a local folder with verified copies of files.
        """
        self._source = source
        self._entries = {entry.path: entry for entry in entries}
        self._fetch = fetch
        self._hashes = {path: _OrderedHash() for path in self._entries}
        self.label = label

    @property
    def uri(self) -> str:
        return self._source.uri

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size in bytes of each file by its path, from the manifest."""
        return {path: entry.bytes for path, entry in self._entries.items()}

    def fetch(self, paths: Sequence[str]) -> Path:
        return self._fetch([self._entries[path] for path in paths])

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        arrived = self._source.read_into(path, start, buffer)
        self._hashes[path].add(start, buffer[:arrived])
        return arrived

    def check(self) -> None:
        for path, entry in self._entries.items():
            found = self._hashes[path].fingerprint
            if found.bytes:
                check_content(f"{self.uri}/{path}", found, Fingerprint.of(entry))


class _OrderedHash:
    """SHA-256 of a file whose parts arrive from several threads, roughly in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hasher = hashlib.sha256()
        self._position = 0
        self._early: dict[int, bytes] = {}

    def add(self, start: int, data: memoryview) -> None:
        """Add a part; the caller may then reuse its buffer. A part that was already hashed is ignored."""
        with self._lock:
            if start > self._position:
                self._early[start] = bytes(data)
            elif start == self._position:
                self._take(data)
                while (following := self._early.pop(self._position, None)) is not None:
                    self._take(following)

    def _take(self, data: Buffer) -> None:
        self._hasher.update(data)
        self._position += len(data)

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the parts without a gap from the start of the file."""
        with self._lock:
            return Fingerprint(self._position, self._hasher.hexdigest())
