"""Resync: whole lists that fill the cache at the start, and heal later what the watches have missed.

Kopf lists again after its watch was interrupted, but says nothing of what was deleted meanwhile: a Job that is gone
would stay in the cache as if it ran.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgetune_operator.cache import Cache, Kind, version_of
from edgetune_operator.reconcile import Key

# Kopf starts to watch some seconds after the first list: the second one covers what happened in between.
_DELAYS_SECONDS = (10.0, 600.0)
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0)

logger = logging.getLogger("edgetune")


class NotServed(Exception):
    """The API server cannot be reached, or does not give what the operator needs; the message says what to do."""


@dataclass(frozen=True)
class Page:
    """A part of a list."""

    items: Sequence[Mapping[str, Any]]
    version: int
    """Resource version of the whole list."""


class Lister(Protocol):
    """What a resync needs of a cluster."""

    def list_pages(self, kind: Kind, namespace: str | None) -> AsyncIterator[Page]:
        """All of a kind that is the operator's, in one namespace or in all.

        Raises:
            NotServed: there is no list to have.
        """
        ...


class Resync:
    """Lists everything, again and again.

    Attributes:
        waits_for: why the last list could not be had; empty if it could.
    """

    def __init__(self, lister: Lister, cache: Cache, namespaces: Sequence[str], wake: Callable[[Key], None]) -> None:
        """`namespaces`: those that are watched; empty is all. `wake`: called with the key of what has changed."""
        self._lister = lister
        self._cache = cache
        self._namespaces: Sequence[str | None] = namespaces or (None,)
        self._wake = wake
        self.waits_for = "the first lists have not been read"

    async def run_until_listed(self) -> None:
        """List everything, and try until that succeeds."""
        delays = itertools.chain(_RETRY_SECONDS, itertools.repeat(_RETRY_SECONDS[-1]))
        for delay in delays:
            try:
                for kind in Kind:
                    await self._list(kind)
            except NotServed as error:
                self._complain(str(error))
                await asyncio.sleep(delay)
            else:
                self.waits_for = ""
                return

    async def run(self) -> None:
        """List everything from time to time, until cancelled."""
        first, later = _DELAYS_SECONDS
        await asyncio.sleep(first)
        while True:
            await self.run_until_listed()
            await asyncio.sleep(later)

    async def _list(self, kind: Kind) -> None:
        listed: set[str] = set()
        versions: list[int] = []
        known = {document.uid: document.version for document in self._cache.documents(kind)}
        for namespace in self._namespaces:
            async for page in self._lister.list_pages(kind, namespace):
                versions.append(page.version)
                for body in page.items:
                    uid = body["metadata"]["uid"]
                    listed.add(uid)
                    if known.get(uid) != version_of(body):
                        self._tell(self._cache.put(kind, body))
        for document in self._cache.documents(kind):
            # What was created after the list is newer than it.
            if document.uid not in listed and document.version <= min(versions):
                self._tell(self._cache.remove(kind, document.read()))

    def _tell(self, key: Key | None) -> None:
        if key is not None:
            self._wake(key)

    def _complain(self, what: str) -> None:
        if what != self.waits_for:
            logger.warning("not ready: %s", what)
        self.waits_for = what
