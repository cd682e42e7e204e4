"""Publishing: write a version's document, and move the pointer that edge devices follow.

The pointer is a copy of a version's document. It is only moved by conditional put.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC
from types import MappingProxyType

from pydantic import ValidationError

from edgetune_contract.digest import canonical_json, pointer_key, version_key
from edgetune_contract.request import LiveVersion, Manifest, Publication, Scores
from edgetune_contract.stages import Stage
from edgetune_contract.values.times import timestamp
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput, TransientError
from edgetune_jobs.publishing.signing.signer import VersionSigner, is_signed
from edgetune_jobs.publishing.versions import Versions
from edgetune_jobs.store.manifests import read_manifest
from edgetune_jobs.store.store import Content, PreconditionFailed, Store, uri_of

_POINTER_ATTEMPTS = 10
_DIGEST = re.compile(r"[0-9a-f]{64}")


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

    def read_live(self) -> LiveVersion | None:
        """What it points to, and since when; None if there is no pointer or it is not valid."""
        content = self._store.read(self._key)
        version = None if content is None else _version_of(content)
        if content is None or version is None:
            return None
        since = timestamp(content.written_at.astimezone(UTC))
        return LiveVersion(version=version, since=since, scores=_scores_of(content))

    def move(self, data: bytes) -> None:
        """Replace the pointer with a copy of a version's document, also if other writers move it at the same time.

        Raises:
            TransientError: other writers moved it at each attempt.
        """
        for _ in range(_POINTER_ATTEMPTS):
            current = self._store.read(self._key)
            if current is not None and current.data == data:
                return
            try:
                if current is None:
                    self._store.put(self._key, data, if_none_match=True)
                else:
                    self._store.put(self._key, data, if_match=current.etag)
            except PreconditionFailed:
                continue  # another writer moved it between the read and the put
            return
        raise TransientError(f"other writers moved {self.uri} {_POINTER_ATTEMPTS} times in a row; try again")


def read_done_stage(store: Store, name: str, stage: Stage, stage_digest: str, sign: bool = False) -> Manifest | None:
    """Manifest of a stage that is done for the model of this name; None if it has to run.

    A publication is done only while the pointer is at its version; otherwise publish has to move the pointer back. With
    `sign`, its version must also have a signature; otherwise publish has to sign it.
    """
    manifest = read_manifest(store, stage, stage_digest)
    publication = manifest.result.publication if manifest is not None else None
    if publication is None or not publication.published:
        return manifest
    is_live = Pointer(store, name).version == publication.version
    is_done = is_live and (not sign or publication.pinned or is_signed(store, name, publication.version))
    return manifest if is_done else None


class StorePublisher:
    """Publishes versions of one model in a store."""

    def __init__(
        self,
        store: Store,
        name: str,
        read_stage: Callable[[Stage], Manifest],
        signer: VersionSigner | None = None,
    ) -> None:
        """`signer` signs what is published; None leaves it without a signature."""
        self._store = store
        self._name = name
        self._read_stage = read_stage
        self._signer = signer
        self._pointer = Pointer(store, name)
        self._versions = Versions(store, name)

    def read_stage(self, stage: Stage) -> Manifest:
        """Manifest of a finished stage of this run."""
        return self._read_stage(stage)

    def read_file(self, key: str) -> bytes | None:
        """A small file of the store; None if there is none."""
        content = self._store.read(key)
        return None if content is None else content.data

    def publish(self, document: VersionDocument, files: Mapping[str, bytes] = MappingProxyType({})) -> Publication:
        """Write a version, after the files that describe it, by their keys, and its signatures; move the pointer to it
        if it passed its gates.

        A version that they refused has no signature: model-signing's verifier looks at nothing else.

        Raises:
            InvalidInput: the key cannot sign.
        """
        for file_key, file in files.items():
            self._store.put(file_key, file)
        key = version_key(self._name, document.version)
        existing = self._store.read(key)
        # An equal document is kept with its time, because the pointer may be a copy of it.
        kept = None if existing is None else _equal_except_time(existing, document)
        data = encode(document) if existing is None or kept is None else existing.data
        if document.published:
            self._sign(kept or document, data)
        if kept is None:
            self._store.put(key, data)
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
        """Sign a version that was published before, and move the pointer to it, unless that is already done.

        Raises:
            InvalidInput: its document or a file of its edge model is not in the store, or the key cannot sign.
        """
        if self._signer is not None:
            self._sign(*self._stored(version))
        if self._pointer.version != version:
            self._point_at(version)

    def _sign(self, document: VersionDocument, data: bytes) -> None:
        if self._signer is not None:
            self._signer.sign(document, data)

    def _point_at(self, version: str) -> None:
        document, data = self._stored(version)
        self._versions.require_files(document)
        if self._pointer.version != version:
            self._pointer.move(data)

    def _stored(self, version: str) -> tuple[VersionDocument, bytes]:
        """A version that was published before, and the bytes of its document."""
        document, content = self._versions.read(version), self._store.read(version_key(self._name, version))
        if document is None or content is None:
            missing = uri_of(self._store, version_key(self._name, version))
            raise InvalidInput(f"cannot move {self._pointer.uri} to {missing}: it is missing; restore it")
        return document, content.data


def encode(document: VersionDocument) -> bytes:
    """A version's document as stored: canonical JSON."""
    return canonical_json(document.model_dump(mode="json", exclude_none=True))


def _equal_except_time(content: Content, document: VersionDocument) -> VersionDocument | None:
    """A stored document that differs only in the time when it was written; None if it differs in more."""
    try:
        existing = VersionDocument.model_validate_json(content.data)
    except ValidationError:
        return None
    return existing if existing.model_copy(update={"created_at": document.created_at}) == document else None


def _version_of(pointer: Content) -> str | None:
    """Version that a pointer is at; None if it is not valid: it is then written again."""
    try:
        document = json.loads(pointer.data)
    except ValueError:
        return None
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, str) and _DIGEST.fullmatch(version) else None


def _scores_of(pointer: Content) -> Scores | None:
    """Scores of the version that a pointer is at; None if its document is of an unknown release."""
    try:
        document = VersionDocument.model_validate_json(pointer.data)
    except ValidationError:
        return None
    return document.scores.model_copy(update={"details": {}})
