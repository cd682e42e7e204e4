"""Publishing: a version's document is written, and the pointer that edge devices follow is moved to it.

The pointer is a copy of the document of the version that it names. It is moved by conditional put only.
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
        """The version that it names now; None when there is no pointer, or something else in its place."""
        content = self._store.read(self._key)
        return None if content is None else _version_of(content)

    def move(self, data: bytes) -> None:
        """Put a copy of a version's document in its place, over whatever other writers put there meanwhile.

        Raises:
            TransientError: others moved it each time.
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
        raise TransientError(f"{self.uri} was moved by others {_POINTER_ATTEMPTS} times in a row; try again")


def read_done_stage(store: Store, name: str, stage: Stage, stage_digest: str) -> Manifest | None:
    """Manifest of a stage that is done for the model of this name; None when it has to run.

    A publication is done only while the pointer names its version: else publish has to move the pointer back.
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
        """Write a version; move the pointer to it if its gates held."""
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
        """Move the pointer to a version that was published before, unless it names that version now.

        Raises:
            InvalidInput: its document, or a file of its edge model, is not in the store.
        """
        if self._pointer.version != version:
            self._point_at(version)

    def _write(self, document: VersionDocument) -> bytes:
        """Write a version's document; its bytes. One that stands and says the same stays, with the time that it tells:
        the pointer may be a copy of it."""
        key = version_key(self._name, document.version)
        standing = self._store.read(key)
        if standing is not None and _says_the_same(standing, document):
            return standing.data
        data = encode(document)
        self._store.put(key, data)
        return data

    def _point_at(self, version: str) -> None:
        document, content = self._versions.read(version), self._store.read(version_key(self._name, version))
        if document is None or content is None:
            missing = uri_of(self._store, version_key(self._name, version))
            raise InvalidInput(f"{missing} is missing, so {self._pointer.uri} cannot be moved to it; restore it")
        self._versions.require_files(document)
        if self._pointer.version != version:
            self._pointer.move(content.data)


def encode(document: VersionDocument) -> bytes:
    """A version's document as it is stored: canonical JSON."""
    return canonical_json(document.model_dump(mode="json", exclude_none=True))


def _says_the_same(content: Content, document: VersionDocument) -> bool:
    """Whether a document that is stored differs in nothing but the time when it was written."""
    try:
        standing = VersionDocument.model_validate_json(content.data)
    except ValidationError:
        return False
    return standing.model_copy(update={"created_at": document.created_at}) == document


def _version_of(pointer: Content) -> str | None:
    """Version that a pointer names; None for what is no pointer: it is then written anew."""
    try:
        document = json.loads(pointer.data)
    except ValueError:
        return None
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, str) else None
