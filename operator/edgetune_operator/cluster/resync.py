"""Resync: whole lists that fill the cache at the start, and heal later what the watches have missed.

Kopf lists again after its watch was interrupted, but says nothing of what was deleted meanwhile: a Job that is gone
would stay in the cache as if it ran.

Each watched namespace stands for itself: one that is deleted, or whose Role is gone, stops no other.
"""

import asyncio
import itertools
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgetune_operator import telemetry
from edgetune_operator.api.names import Key
from edgetune_operator.cluster.cache import Cache, Kind, version_of

_CHECK_SECONDS = 10.0
# Kopf starts to watch some seconds after the first list: the second one covers what happened in between.
_SECOND_LIST_SECONDS = 10.0
_LATER_LIST_SECONDS = 600.0
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

    async def check(self) -> None:
        """Ask whether the API server answers; costs next to nothing.

        Raises:
            NotServed: it does not.
        """
        ...

    def list_pages(self, kind: Kind, namespace: str | None) -> AsyncIterator[Page]:
        """All of a kind that is the operator's, in one namespace or in all.

        Raises:
            NotServed: there is no list to have.
        """
        ...


class Resync:
    """Lists everything, again and again."""

    def __init__(
        self,
        lister: Lister,
        cache: Cache,
        namespaces: Sequence[str],
        wake: Callable[[Key], None],
        *,
        second_list_seconds: float = _SECOND_LIST_SECONDS,
        later_list_seconds: float = _LATER_LIST_SECONDS,
        retry_seconds: Sequence[float] = _RETRY_SECONDS,
    ) -> None:
        """What is listed, into which cache, and how often.

        Args:
            lister: gives the lists.
            cache: gets what they hold.
            namespaces: those that are watched; empty is all.
            wake: called with the key of what has changed.
            second_list_seconds: from the first list of a namespace to the second.
            later_list_seconds: between the lists after it.
            retry_seconds: between two tries to get a first list; the last one is repeated.
        """
        self._lister = lister
        self._cache = cache
        self._namespaces: Sequence[str | None] = namespaces or (None,)
        self._wake = wake
        self._second_list_seconds = second_list_seconds
        self._later_list_seconds = later_list_seconds
        self._retry_seconds = retry_seconds
        self._listed: set[str | None] = set()
        self._due: dict[str | None, float] = dict.fromkeys(self._namespaces, -math.inf)
        self._failing: dict[str | None, str] = dict.fromkeys(self._namespaces, "the first lists have not been read")
        self._unreachable = ""

    @property
    def waits_for(self) -> str:
        """Why no namespace can be worked on; empty if one can."""
        if self._unreachable:
            return self._unreachable
        if len(self._failing) < len(self._namespaces):
            return ""
        return "; ".join(dict.fromkeys(self._failing.values()))

    def tell(self, key: Key) -> None:
        """Wake an object, unless its namespace has not been listed yet: a pass would take unseen Jobs for missing."""
        if None in self._listed or key.namespace in self._listed:
            self._wake(key)

    async def run_until_listed(self) -> None:
        """List all namespaces, and try until one of them can be listed."""
        delays = itertools.chain(self._retry_seconds, itertools.repeat(self._retry_seconds[-1]))
        while True:
            await self.look()
            if not self.waits_for:
                return
            await asyncio.sleep(next(delays))

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Ask whether the API server answers, and read the lists that are due."""
        try:
            await self._lister.check()
        except NotServed as error:
            if str(error) != self._unreachable:
                logger.warning("not ready: %s", error)
            self._unreachable = str(error)
            # What happens from now on may go unseen.
            self._due = dict.fromkeys(self._namespaces, -math.inf)
            telemetry.NAMESPACES_FAILING.set(len(self._namespaces))
            return
        self._unreachable = ""
        for namespace in self._namespaces:
            if self._due[namespace] <= _now():
                await self._read(namespace)
        telemetry.NAMESPACES_FAILING.set(len(self._failing))

    async def _read(self, namespace: str | None) -> None:
        try:
            for kind in Kind:
                await self._list(kind, namespace)
        except NotServed as error:
            self._due[namespace] = -math.inf
            self._complain(namespace, str(error))
        else:
            self._failing.pop(namespace, None)
            self._note_listed(namespace)

    def _note_listed(self, namespace: str | None) -> None:
        first = namespace not in self._listed
        self._due[namespace] = _now() + (self._second_list_seconds if first else self._later_list_seconds)
        if first:
            self._listed.add(namespace)
            for key in self._cache.keys(namespace):
                self._wake(key)

    async def _list(self, kind: Kind, namespace: str | None) -> None:
        listed: set[str] = set()
        versions: list[int] = []
        known = {document.uid: document.version for document in self._cache.documents(kind, namespace)}
        async for page in self._lister.list_pages(kind, namespace):
            versions.append(page.version)
            # The watch has told their end since: the page would bring them back.
            gone = known.keys() - {document.uid for document in self._cache.documents(kind, namespace)}
            for body in page.items:
                uid = body["metadata"]["uid"]
                listed.add(uid)
                if uid not in gone and known.get(uid) != version_of(body):
                    self._tell(self._cache.put(kind, body))
        for document in self._cache.documents(kind, namespace):
            # What was created after the list is newer than it.
            if document.uid not in listed and document.version <= min(versions):
                self._tell(self._cache.remove(kind, document.read()))

    def _tell(self, key: Key | None) -> None:
        if key is not None:
            self.tell(key)

    def _complain(self, namespace: str | None, what: str) -> None:
        if self._failing.get(namespace) != what:
            alone = len(self._namespaces) == 1
            logger.warning("%s: %s", "not ready" if alone else f"namespace {namespace} is left out", what)
        self._failing[namespace] = what


def _now() -> float:
    return asyncio.get_running_loop().time()
