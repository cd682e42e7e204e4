"""Versions of a model, and the pointer that edge devices follow.

models/<name>/versions/<digest>.json     one published or refused version
models/<name>/latest.json                the pointer: a copy of the version that was published last
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from edgetune_contract.digest import canonical_json, pointer_key, version_key
from edgetune_contract.request import Manifest, Publication
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput, TransientFault
from edgetune_jobs.store import Conflict, Content, Store, uri_of

_POINTER_ATTEMPTS = 10


class Pointer:
    """The pointer of one model."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._key = pointer_key(name)

    @property
    def uri(self) -> str:
        """URI that edge devices follow."""
        return uri_of(self._store, self._key)

    def names(self, version: str) -> bool:
        """Whether it names this version now."""
        pointer = self._store.read(self._key)
        return pointer is not None and _version_of(pointer) == version

    def move(self, document: bytes) -> None:
        """Put a version's document in its place, over whatever other writers put there meanwhile.

        Raises:
            TransientFault: others moved it each time.
        """
        for _ in range(_POINTER_ATTEMPTS):
            current = self._store.read(self._key)
            try:
                if current is None:
                    self._store.put(self._key, document, if_none_match=True)
                else:
                    self._store.put(self._key, document, if_match=current.etag)
            except Conflict:
                continue  # another writer moved it between the read and the put
            return
        raise TransientFault(f"{self.uri} was moved by others {_POINTER_ATTEMPTS} times in a row; try again")

    def move_back(self, version: str) -> None:
        """Move it to a version that was published before, unless it names that version now.

        Raises:
            InvalidInput: the version's document is not in the store.
        """
        if self.names(version):
            return
        key = version_key(self._name, version)
        content = self._store.read(key)
        if content is None:
            raise InvalidInput(
                f"{uri_of(self._store, key)} is missing, so {self.uri} cannot be moved to it; restore it"
            )
        self.move(content.data)


class StorePublisher:
    """Publishes versions of one model in a store."""

    def __init__(self, store: Store, name: str, read_stage: Callable[[Stage], Manifest]) -> None:
        self._store = store
        self._name = name
        self._read_stage = read_stage

    def read_stage(self, stage: Stage) -> Manifest:
        """Manifest of a finished stage of this run."""
        return self._read_stage(stage)

    def publish(self, version: Mapping[str, object], publication: Publication) -> Publication:
        """Write the version; move the pointer to it if `publication.published`. Returns it with the pointer's URI."""
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        document = canonical_json({**version, "version": publication.version, "createdAt": created_at})
        self._store.put(version_key(self._name, publication.version), document)
        if not publication.published:
            return publication
        pointer = Pointer(self._store, self._name)
        pointer.move(document)
        return publication.model_copy(update={"pointer": pointer.uri})


def _version_of(pointer: Content) -> str | None:
    """Version that a pointer names; None for what is no pointer: it is then written anew."""
    try:
        document = json.loads(pointer.data)
    except ValueError:
        return None
    return document.get("version") if isinstance(document, dict) else None
