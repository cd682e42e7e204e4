"""Storages by which Kopf remembers nothing: its handlers here only watch.

Kopf's own copy the whole body several times for each event, to compare it with the state that was handled last: most of
the operator's processor time. What was handled is in our status, by digest.
"""

from typing import Any

import kopf

_NOTHING = kopf.BodyEssence()


class NoDiffBaseStorage(kopf.DiffBaseStorage):
    """No last handled state, and no differences from it."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return _NOTHING

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        """Nothing to store."""


class NoProgressStorage(kopf.ProgressStorage):
    """No progress of handlers."""

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
