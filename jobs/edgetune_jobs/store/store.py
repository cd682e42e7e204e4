"""The store: where artifacts, manifests, checkpoints, scores and pointers live.

Keys have / between names and are relative to the store's URI. A folder is a prefix of keys that ends before a /.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError

from edgetune_contract.digest import MANIFEST
from edgetune_contract.model import Model
from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import HOW_TO_RETRY, AccessDenied, InvalidInput, TransientError
from edgetune_jobs.store.files import Buffer, Fingerprint, Sink, checked_relative, list_files

logger = logging.getLogger(__name__)

AnyModel = TypeVar("AnyModel", bound=Model)


class PreconditionFailed(Exception):
    """A conditional put did not take place: the object is there already, or is not the one that was read."""


class DamagedObject(TransientError):
    """An object is missing, or its size or SHA-256 is not what its manifest says."""


class DamagedModel(InvalidInput):
    """A JSON object of the store is not what is expected under its key."""


@dataclass(frozen=True)
class Content:
    """A small object as it was read; `etag` names exactly this content for a conditional put."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class StoredObject:
    """An object in a listing."""

    key: str
    bytes: int


class FileList(Model):
    """Files in the store that belong together: the manifest of anything that is not a stage. Written last."""

    files: tuple[FileEntry, ...]
    """Paths are relative to the manifest's folder."""


class UploadedFile(Protocol):
    """An object that is being written, from its first byte to its last."""

    def write(self, data: Buffer, /) -> object:
        """Take all of these bytes; they may be changed afterwards."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of what was written so far."""
        ...


class Store(Protocol):
    """Objects by key.

    All methods raise AccessDenied when the credentials lack a right, InvalidInput when the bucket does not exist and
    TransientError when network, service or disk fail after a bounded number of retries.
    """

    @property
    def uri(self) -> str:
        """URI of the store, without a / at its end."""
        ...

    def read(self, key: str) -> Content | None:
        """A small object, or None when there is none."""
        ...

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Write a small object as a whole; its etag.

        With `if_none_match` only when the key is free, with `if_match` only over the content of that etag: of several
        writers at once, exactly one succeeds.

        Raises:
            PreconditionFailed: the condition does not hold.
        """
        ...

    def list(self, folder: str) -> Iterator[StoredObject]:
        """Objects below a folder, sorted by key."""
        ...

    def upload_file(self, path: Path, key: str) -> Fingerprint:
        """Stream a file into the store; the fingerprint of what was sent. A failure leaves nothing behind."""
        ...

    def create_file(self, key: str, size: int) -> AbstractContextManager[UploadedFile]:
        """A new object of `size` bytes, written in a stream.

        It is in the store when the block ends, and nothing of it when the block raises.
        """
        ...

    def download_file(self, key: str, path: Path, expected: Fingerprint) -> None:
        """Copy an object to a local file and verify it.

        Raises:
            DamagedObject: the object is missing or is not the expected content.
        """
        ...

    def stream(self, key: str, sink: Sink) -> Fingerprint:
        """Read an object into a sink, piece by piece; the fingerprint of what came.

        Raises:
            DamagedObject: the object is missing, or comes otherwise than the service says each time.
        """
        ...

    def fetch_folder(self, folder: str, files: Sequence[FileEntry], target: Path) -> Path:
        """A local folder that holds these verified files: `target`, or the store's own folder, which is read-only.

        Raises:
            DamagedObject: a file is missing or is not the expected content.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens when there is none."""
        ...

    def delete_tree(self, folder: str, keep: Sequence[str] = ()) -> None:
        """Delete objects and unfinished uploads below a folder, but for those at or below the keys in `keep`."""
        ...

    def discard_unfinished(self, folder: str) -> None:
        """Delete what unfinished uploads have left below a folder. One that still runs fails with a transient error."""
        ...


def uri_of(store: Store, key: str) -> str:
    """URI of a key."""
    return f"{store.uri}/{key}"


def check_content(uri: str, found: Fingerprint, expected: Fingerprint) -> None:
    """Compare what was read with what was written.

    Raises:
        DamagedObject: it is not the same.
    """
    if found != expected:
        raise DamagedObject(f"{uri} is damaged: {found} arrived, where {expected} were written")


def how_to_recreate(store: Store, folder: str) -> str:
    """Advice about a folder whose files are not what its manifest says, which counts as done while that stands."""
    return f"delete {uri_of(store, folder)}/ and {HOW_TO_RETRY}: it is then made again"


def upload_folder(store: Store, folder: Path, key: str, relative_to: str) -> tuple[FileEntry, ...]:
    """Upload all files of a local folder below `key`; their entries, with paths relative to the key `relative_to`.

    Raises:
        InvalidInput: a file name cannot be a key.
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
    """A JSON object of the store as a model, or None when there is none.

    Raises:
        DamagedModel: the object is not such a model.
    """
    content = store.read(key)
    if content is None:
        return None
    try:
        return model.model_validate_json(content.data)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"is damaged: {first['msg']}; delete it to have it made again"
        if first["type"] == "extra_forbidden":
            field = ".".join(map(str, first["loc"]))
            what = f"has a field that this release does not know ({field}): use the one that wrote it"
        raise DamagedModel(f"{uri_of(store, key)} {what}") from error


def require_model(store: Store, key: str, model: type[AnyModel]) -> AnyModel:
    """A JSON object of the store that a user has named, as a model.

    Raises:
        InvalidInput: there is none.
        DamagedModel: the object is not such a model.
    """
    found = read_model(store, key, model)
    if found is None:
        raise InvalidInput(f"there is nothing at {uri_of(store, key)}")
    return found


def write_model(store: Store, key: str, model: Model, *, if_none_match: bool = False) -> str:
    """Write a model as JSON; its etag.

    Raises:
        PreconditionFailed: `if_none_match`, and the key is taken.
    """
    return store.put(key, model.model_dump_json(exclude_none=True).encode(), if_none_match=if_none_match)


def write_model_once(store: Store, key: str, model: AnyModel) -> AnyModel:
    """Write a model unless the key is taken; the model that stands there then: this one, or another writer's.

    A put whose answer was lost is sent again by the client and conflicts with itself: only the content tells whose it
    is, so a writer may throw its files away only when the model that stands is not its own.

    Raises:
        TransientError: it is not known whether the model was written.
        InvalidInput: what stands there is not such a model.
    """
    try:
        write_model(store, key, model, if_none_match=True)
    except PreconditionFailed:
        standing = read_model(store, key, type(model))
        if standing is None:
            raise TransientError(f"{uri_of(store, key)} was in the store and is gone again; try again") from None
        return standing
    except TransientError:
        if read_model(store, key, type(model)) != model:
            raise
    return model


def clean_up_attempts(store: Store, folder: str, attempt: str, won: bool) -> None:
    """Remove an attempt's files below `folder`, or if it won those of all others, but for the manifest.

    What cannot be removed is logged: it harms nobody.
    """
    try:
        if won:
            store.delete_tree(folder, keep=(f"{folder}/{MANIFEST}", f"{folder}/{attempt}"))
        else:
            store.delete_tree(f"{folder}/{attempt}")
    except (AccessDenied, TransientError) as error:
        logger.warning("files of unfinished attempts are left below %s: %s", uri_of(store, folder), error)
