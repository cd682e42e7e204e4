"""Storages that store nothing: Kopf only watches here.

Kopf's own storages copy the whole body several times per event, to compare it with the last handled state, which would
take most of the operator's CPU time. Our status records by digest what was handled.
"""

from typing import Any

import kopf

_NOTHING = kopf.BodyEssence()


class NoDiffBaseStorage(kopf.DiffBaseStorage):
    """No last handled state, and therefore no diffs."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return _NOTHING

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        """Nothing to store."""


class NoProgressStorage(kopf.ProgressStorage):
    """No handler progress."""

    def fetch(self, **_: Any) -> None:
        """Nothing was stored."""

    def store(self, **_: Any) -> None:
        """Nothing to store."""

    def purge(self, **_: Any) -> None:
        """Nothing was stored."""

    def touch(self, **_: Any) -> None:
        """Nothing to store."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence
