"""Publishing: write a version's document, and move the pointer that edge devices follow.

The pointer is a copy of a version's document. It is only moved by conditional put.
"""

import json
from collections.abc import Callable

from pydantic import ValidationError

from edgetune_contract.digest import canonical_json, pointer_key, version_key
from edgetune_contract.request import Manifest, Publication
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput, TransientError
from edgetune_jobs.publishing.versions import Versions
from edgetune_jobs.store.manifests import read_manifest
from edgetune_jobs.store.store import Content, PreconditionFailed, Store, uri_of

_POINTER_ATTEMPTS = 10


class Pointer:
    """The pointer of one model."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._key = pointer_key(name)

    @property
    def uri(self) -> str:
        """URI that edge devices follow."""
        return uri_of(self._store, self._key)

    @property
    def version(self) -> str | None:
        """The version that it points to; None if there is no pointer or it is not valid."""
        content = self._store.read(self._key)
        return None if content is None else _version_of(content)

    def move(self, data: bytes) -> None:
        """Replace the pointer with a copy of a version's document, also if other writers move it at the same time.

        Raises:
            TransientError: other writers moved it at each attempt.
        """
        for _ in range(_POINTER_ATTEMPTS):
            current = self._store.read(self._key)
            try:
                if current is None:
                    self._store.put(self._key, data, if_none_match=True)
                else:
                    self._store.put(self._key, data, if_match=current.etag)
            except PreconditionFailed:
                continue  # another writer moved it between the read and the put
            return
        raise TransientError(f"other writers moved {self.uri} {_POINTER_ATTEMPTS} times in a row; try again")


def read_done_stage(store: Store, name: str, stage: Stage, stage_digest: str) -> Manifest | None:
    """Manifest of a stage that is done for the model of this name; None if it has to run.

    A publication is done only while the pointer is at its version; otherwise publish has to move the pointer back.
    """
    manifest = read_manifest(store, stage, stage_digest)
    publication = manifest.result.publication if manifest is not None else None
    if publication is not None and publication.published and Pointer(store, name).version != publication.version:
        return None
    return manifest


class StorePublisher:
    """Publishes versions of one model in a store."""

    def __init__(self, store: Store, name: str, read_stage: Callable[[Stage], Manifest]) -> None:
        self._store = store
        self._name = name
        self._read_stage = read_stage
        self._pointer = Pointer(store, name)
        self._versions = Versions(store, name)

    def read_stage(self, stage: Stage) -> Manifest:
        """Manifest of a finished stage of this run."""
        return self._read_stage(stage)

    def publish(self, document: VersionDocument) -> Publication:
        """Write a version; move the pointer to it if it passed its gates."""
        data = self._write(document)
        if document.published:
            self._pointer.move(data)
        return Publication(
            published=document.published,
            version=document.version,
            refusals=document.refusals,
            pointer=self._pointer.uri if document.published else None,
        )

    def pin(self, pin: str) -> Publication:
        """Move the pointer to the published version whose digest begins with `pin`.

        Raises:
            InvalidInput: there is no such version, or its files are not in the store.
        """
        document = self._versions.find(pin)
        self._point_at(document.version)
        return Publication(published=True, version=document.version, pointer=self._pointer.uri, pinned=True)

    def restore(self, version: str) -> None:
        """Move the pointer to a version that was published before, unless it is already there.

        Raises:
            InvalidInput: its document or a file of its edge model is not in the store.
        """
        if self._pointer.version != version:
            self._point_at(version)

    def _write(self, document: VersionDocument) -> bytes:
        """Write a version's document; its bytes.

        An equal document in the store is kept with its time, because the pointer may be a copy of it.
        """
        key = version_key(self._name, document.version)
        existing = self._store.read(key)
        if existing is not None and _is_equal_except_time(existing, document):
            return existing.data
        data = encode(document)
        self._store.put(key, data)
        return data

    def _point_at(self, version: str) -> None:
        document, content = self._versions.read(version), self._store.read(version_key(self._name, version))
        if document is None or content is None:
            missing = uri_of(self._store, version_key(self._name, version))
            raise InvalidInput(f"cannot move {self._pointer.uri} to {missing}: it is missing; restore it")
        self._versions.require_files(document)
        if self._pointer.version != version:
            self._pointer.move(content.data)


def encode(document: VersionDocument) -> bytes:
    """A version's document as stored: canonical JSON."""
    return canonical_json(document.model_dump(mode="json", exclude_none=True))


def _is_equal_except_time(content: Content, document: VersionDocument) -> bool:
    """Whether a stored document differs only in the time when it was written."""
    try:
        existing = VersionDocument.model_validate_json(content.data)
    except ValidationError:
        return False
    return existing.model_copy(update={"created_at": document.created_at}) == document


def _version_of(pointer: Content) -> str | None:
    """Version that a pointer is at; None if it is not valid: it is then written again."""
    try:
        document = json.loads(pointer.data)
    except ValueError:
        return None
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, str) else None
