"""The store's protocol and documents: artifacts, manifests, checkpoints, scores, pointers.

Keys have / between names and are relative to the store's URI. A folder is a prefix of keys that ends before a /.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError

from edgetune_contract.digest import MANIFEST
from edgetune_contract.request import FileEntry
from edgetune_contract.schema import Model
from edgetune_jobs.errors import HOW_TO_RETRY, AccessDenied, InvalidInput, TransientError
from edgetune_jobs.store.files import Buffer, Fingerprint, Sink, checked_relative, list_files

logger = logging.getLogger(__name__)

AnyModel = TypeVar("AnyModel", bound=Model)


class PreconditionFailed(Exception):
    """A conditional put failed: the object already exists, or has changed since it was read."""


class DamagedObject(TransientError):
    """An object is missing, or its size or SHA-256 differs from its manifest."""


class DamagedModel(InvalidInput):
    """A JSON object of the store is not a valid document for its key."""


@dataclass(frozen=True)
class Content:
    """A small object; `etag` identifies this content in a conditional put."""

    data: bytes
    etag: str
    written_at: datetime = field(compare=False)
    """When it was written, with a time zone."""


@dataclass(frozen=True)
class StoredObject:
    """An object in a listing."""

    key: str
    bytes: int


class FileList(Model):
    """Manifest of files that belong together and are not a stage's output. Written last."""

    files: tuple[FileEntry, ...]
    """Paths are relative to the manifest's folder."""


class UploadedFile(Protocol):
    """An object that is being written, from its first byte to its last."""

    def write(self, data: Buffer, /) -> object:
        """Write all of these bytes; they may be changed afterwards."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the bytes written so far."""
        ...


class Store(Protocol):
    """Objects by key.

    All methods raise AccessDenied if the credentials lack a permission, and TransientError if network, service or disk
    fail after a bounded number of retries, or the bucket does not exist.
    """

    @property
    def uri(self) -> str:
        """URI of the store, without a / at its end."""
        ...

    def read(self, key: str) -> Content | None:
        """A small object; None if there is none."""
        ...

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Write a small object atomically; its etag.

        With `if_none_match` only if the key is free, with `if_match` only over the content with that etag: of several
        concurrent writers, exactly one succeeds.

        Raises:
            PreconditionFailed: the condition does not hold.
        """
        ...

    def list(self, folder: str) -> Iterator[StoredObject]:
        """Objects below a folder, sorted by key."""
        ...

    def upload_file(self, path: Path, key: str) -> Fingerprint:
        """Stream a file to the store; the fingerprint of the sent bytes. A failure leaves nothing in the store."""
        ...

    def create_file(self, key: str, size: int) -> AbstractContextManager[UploadedFile]:
        """A new object of `size` bytes, written as a stream.

        It exists once the block ends. If the block raises, nothing is left in the store.
        """
        ...

    def download_file(self, key: str, path: Path, expected: Fingerprint) -> None:
        """Copy an object to a local file and verify it.

        Raises:
            DamagedObject: the object is missing or has other content.
        """
        ...

    def stream(self, key: str, sink: Sink) -> Fingerprint:
        """Read an object into a sink, chunk by chunk; the fingerprint of the received bytes.

        Raises:
            DamagedObject: the object is missing, or differs from the service's checksum at each attempt.
        """
        ...

    def fetch_folder(self, folder: str, files: Sequence[FileEntry], target: Path) -> Path:
        """A local folder with these files, verified: `target`, or the store's own folder, which must not be changed.

        A local store links the files into `target` if some of them are shared files outside of the folder.

        Raises:
            DamagedObject: a file is missing or has other content.
        """
        ...

    def link(self, key: str, other: str) -> None:
        """Let people find an object under another key too, where that takes no space; a bucket does nothing."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object if it exists."""
        ...

    def delete_tree(self, folder: str, keep: Sequence[str] = ()) -> None:
        """Delete objects and unfinished uploads below a folder, except those at or below the keys in `keep`."""
        ...

    def discard_unfinished(self, folder: str) -> None:
        """Delete the parts of unfinished uploads below a folder. An upload in progress fails with a TransientError."""
        ...


def uri_of(store: Store, key: str) -> str:
    """URI of a key."""
    return f"{store.uri}/{key}"


def check_content(uri: str, found: Fingerprint, expected: Fingerprint) -> None:
    """Compare the fingerprint of an object with the expected one.

    Raises:
        DamagedObject: they differ.
    """
    if found != expected:
        raise DamagedObject(f"{uri} is damaged: {found} instead of {expected}")


def how_to_recreate(store: Store, folder: str) -> str:
    """Advice for a folder whose files differ from its manifest, which would otherwise keep the stage cached."""
    return f"delete {uri_of(store, folder)}/ and {HOW_TO_RETRY} to create it again"


def upload_folder(store: Store, folder: Path, key: str, relative_to: str) -> tuple[FileEntry, ...]:
    """Upload all files of a local folder below `key`; their entries, with paths relative to the key `relative_to`.

    Raises:
        InvalidInput: a file name is not a valid key.
    """
    prefix = key.removeprefix(f"{relative_to}/")
    entries = []
    for path in list_files(folder):
        uploaded = store.upload_file(folder / path, f"{key}/{checked_relative(path)}")
        entries.append(uploaded.entry(f"{prefix}/{path}"))
    return tuple(entries)


def files_below(files: Sequence[FileEntry], folder: str) -> tuple[FileEntry, ...]:
    """Entries below a folder, with paths relative to it."""
    prefix = f"{folder}/"
    return tuple(
        file.model_copy(update={"path": file.path.removeprefix(prefix)})
        for file in files
        if file.path.startswith(prefix)
    )


def read_model(store: Store, key: str, model: type[AnyModel]) -> AnyModel | None:
    """A JSON object of the store as a model; None if there is none.

    Raises:
        DamagedModel: the object is not a valid model.
    """
    content = store.read(key)
    if content is None:
        return None
    try:
        return model.model_validate_json(content.data)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"is damaged: {first['msg']}; delete it and {HOW_TO_RETRY} to create it again"
        if first["type"] == "extra_forbidden":
            field = ".".join(map(str, first["loc"]))
            problem = f"has the unknown field {field!r}: use the release of Edgetune that wrote it"
        raise DamagedModel(f"{uri_of(store, key)} {problem}") from error


def require_model(store: Store, key: str, model: type[AnyModel]) -> AnyModel:
    """A JSON object of the store that a user has named, as a model.

    Raises:
        InvalidInput: there is none.
        DamagedModel: the object is not a valid model.
    """
    found = read_model(store, key, model)
    if found is None:
        raise InvalidInput(f"there is nothing at {uri_of(store, key)}; check the address")
    return found


def write_model(store: Store, key: str, model: Model, *, if_none_match: bool = False) -> str:
    """Write a model as JSON; its etag.

    Raises:
        PreconditionFailed: `if_none_match`, and the key is taken.
    """
    return store.put(key, model.model_dump_json(exclude_none=True).encode(), if_none_match=if_none_match)


def write_model_once(store: Store, key: str, model: AnyModel) -> AnyModel:
    """Write a model unless the key is taken; the model that is now in the store: this one, or another writer's.

    If the answer to a put is lost, the client sends it again, and the second put conflicts with the first. Only the
    content shows who wrote it: a writer may delete its files only if the returned model is not its own.

    Raises:
        TransientError: it is unknown whether the model was written.
        InvalidInput: the object under the key is not a valid model.
    """
    try:
        write_model(store, key, model, if_none_match=True)
    except PreconditionFailed:
        existing = read_model(store, key, type(model))
        if existing is None:
            raise TransientError(f"{uri_of(store, key)} existed and was deleted at the same time; try again") from None
        return existing
    except TransientError:
        if read_model(store, key, type(model)) != model:
            raise
    return model


def stored_sizes(store: Store, folder: str, files: Sequence[FileEntry]) -> dict[str, int]:
    """Sizes in bytes of what the store has, by key: all below a folder, and the shared files of the list."""
    folders = [folder, *{entry.key.rpartition("/")[0] for entry in files if entry.key is not None}]
    return {found.key: found.bytes for each in folders for found in store.list(each)}


def clean_up_attempts(store: Store, folder: str, attempt: str, won: bool) -> None:
    """Remove an attempt's files below `folder`, or if it won, everything else except the manifest.

    A failure is only logged: no reader sees leftovers.
    """
    try:
        if won:
            store.delete_tree(folder, keep=(f"{folder}/{MANIFEST}", f"{folder}/{attempt}"))
        else:
            store.delete_tree(f"{folder}/{attempt}")
    except (AccessDenied, TransientError) as error:
        logger.warning("cannot remove files of other attempts below %s: %s", uri_of(store, folder), error)
