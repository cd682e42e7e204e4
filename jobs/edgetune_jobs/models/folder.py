"""Model folders on this machine, behind a Source, and in the store; and the names of their files besides weights."""

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
from edgetune_jobs.store.sources import Source
from edgetune_jobs.store.store import check_content

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"

CODE_FIELD = "auto_map"
"""Where a configuration names Python code of the model's own, which is never run and never copied."""

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""Each of these holds a whole vocabulary."""

COMPANION_FILES = (
    *VOCABULARIES,
    TOKENIZER_CONFIG,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION_CONFIG,
)
"""Files that make a tokenizer, and the generation settings: copied as they are, since saving them can change them."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, one key a line."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")


def base_label(uri: str) -> str:
    """What messages call the base model: the spec's field, and what is in it."""
    return f"{BASE_FIELD}.uri: {uri}"


def artifact_label(name: str, uri: str) -> str:
    """What messages call a model that a stage made: its name, and where it is."""
    return f"the {name} model ({uri})"


class ModelFolder(Protocol):
    """Files of a model, wherever they lie."""

    @property
    def label(self) -> str:
        """What messages call it, of `base_label` or `artifact_label`."""
        ...

    @property
    def uri(self) -> str: ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file by its path."""
        ...

    @property
    def ignored(self) -> Sequence[str]:
        """Paths of the files that are never read, for messages."""
        ...

    def fetch(self, paths: Sequence[str]) -> Path:
        """A local folder that holds these files."""
        ...

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        """Read a file from `start` on into `buffer`; how many bytes arrived, fewer than asked for if the file ends or
        the way is cut."""
        ...

    def check(self) -> None:
        """Compare what was read, once it is all, with what is known of the files.

        Raises:
            DamagedObject: it is not the same.
        """
        ...


class LocalModelFolder:
    """A model in a local folder, which is only read."""

    ignored: Sequence[str] = ()

    def __init__(self, folder: Path, label: str) -> None:
        self._folder = folder
        self.label = label
        self.uri = folder.as_uri() if folder.is_absolute() else str(folder)
        self._states: dict[str, FileState] = {}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its path, as they were when it was first asked for."""
        for path in list_files(self._folder):
            self._states[path] = FileState.of((self._folder / path).stat())
        return {path: state.bytes for path, state in self._states.items()}

    def fetch(self, paths: Sequence[str]) -> Path:  # noqa: ARG002 - all of them are here
        return self._folder

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        with self._open(path) as file:
            return os.preadv(file.fileno(), [buffer], start)

    def check(self) -> None:
        """Nothing else is known of a local file than that it was not changed."""

    @contextmanager
    def _open(self, path: str) -> Iterator[FileIO]:
        """A file as it was when it was listed.

        Raises:
            InvalidInput: it was changed since.
        """
        if path not in self.sizes:
            raise InvalidInput(f"{self.label} has no file {path}")
        with (self._folder / path).open("rb", buffering=0) as file:
            if FileState.of(os.fstat(file.fileno())) != self._states[path]:
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

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        return self._source.read_into(path, start, buffer)

    def check(self) -> None:
        """Each read was pinned to what was listed."""


class StoredModelFolder:
    """A model in the store, with its manifest: what is read of a file is hashed, and compared when it is all."""

    ignored: Sequence[str] = ()

    def __init__(
        self, source: Source, label: str, entries: Sequence[FileEntry], fetch: Callable[[Sequence[FileEntry]], Path]
    ) -> None:
        """Take over the manifest's entries.

        Args:
            source: reads the files by range.
            label: what messages call the model.
            entries: of the manifest, with paths relative to the model's folder.
            fetch: gives a local folder with verified copies of files.
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
        """Bytes of each file by its path, by the manifest."""
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
    """SHA-256 of a file whose parts arrive in about their order, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hasher = hashlib.sha256()
        self._position = 0
        self._early: dict[int, bytes] = {}

    def add(self, start: int, data: memoryview) -> None:
        """Take a part over, which may be changed afterwards; one that was there before counts once."""
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
        """Fingerprint of what has arrived without a gap."""
        with self._lock:
            return Fingerprint(self._position, self._hasher.hexdigest())
