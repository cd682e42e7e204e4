"""Resync: full lists that fill the cache at the start, and later correct what the watches missed.

Kopf lists again after an interrupted watch, but does not report what was deleted in between: a deleted Job would stay
in the cache as if it were running.

Watched namespaces are independent: one that is deleted, or whose Role is gone, does not affect the others.
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
from edgetune_operator.cluster.watch_cache import Cache, Kind, version_of

_CHECK_SECONDS = 10.0
# Kopf starts its watches some seconds after the first list: the second list covers the time in between.
_SECOND_LIST_SECONDS = 10.0
_LATER_LIST_SECONDS = 600.0
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0)

logger = logging.getLogger("edgetune")


class NotServed(Exception):
    """The API server is unreachable or does not serve what the operator needs; the message says what to do."""


@dataclass(frozen=True)
class Page:
    """One page of a list."""

    items: Sequence[Mapping[str, Any]]
    version: int
    """Resource version of the whole list."""


class Lister(Protocol):
    """The operations of a cluster that a resync needs."""

    async def check(self) -> None:
        """Check that the API server answers; this is cheap.

        Raises:
            NotServed: it does not answer.
        """
        ...

    def list_pages(self, kind: Kind, namespace: str | None) -> AsyncIterator[Page]:
        """The operator's objects of a kind, in one namespace or in all.

        Raises:
            NotServed: the API server does not serve the list.
        """
        ...


class Resync:
    """Lists everything periodically."""

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
        """Configure what is listed, into which cache, and how often.

        Args:
            lister: serves the lists.
            cache: is filled from them.
            namespaces: the watched namespaces; empty is all.
            wake: called with the key of each object with a change.
            second_list_seconds: from a namespace's first list to its second.
            later_list_seconds: between the lists after the second.
            retry_seconds: between attempts at the first list; the last value is repeated.
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
    def why_not_ready(self) -> str:
        """Why no namespace can be reconciled; empty if at least one can."""
        if self._unreachable:
            return self._unreachable
        if len(self._failing) < len(self._namespaces):
            return ""
        return "; ".join(dict.fromkeys(self._failing.values()))

    def wake_if_listed(self, key: Key) -> None:
        """Wake an object if its namespace has been listed: before that, a pass would treat unlisted Jobs as missing."""
        if None in self._listed or key.namespace in self._listed:
            self._wake(key)

    async def run_until_listed(self) -> None:
        """List all namespaces, and retry until at least one of them can be listed."""
        delays = itertools.chain(self._retry_seconds, itertools.repeat(self._retry_seconds[-1]))
        while True:
            await self.list_due()
            if not self.why_not_ready:
                return
            await asyncio.sleep(next(delays))

    async def run(self) -> None:
        """Read the lists that are due, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            await self.list_due()

    async def list_due(self) -> None:
        """Check that the API server answers, and read the lists that are due."""
        try:
            await self._lister.check()
        except NotServed as error:
            if str(error) != self._unreachable:
                logger.warning("not ready: %s", error)
            self._unreachable = str(error)
            # The watches may miss changes from now on.
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
            self._note_failing(namespace, str(error))
        else:
            self._failing.pop(namespace, None)
            self._note_listed(namespace)

    def _note_listed(self, namespace: str | None) -> None:
        is_first = namespace not in self._listed
        self._due[namespace] = _now() + (self._second_list_seconds if is_first else self._later_list_seconds)
        if is_first:
            self._listed.add(namespace)
            for key in self._cache.keys(namespace):
                self._wake(key)

    async def _list(self, kind: Kind, namespace: str | None) -> None:
        listed: set[str] = set()
        versions: list[int] = []
        known = {document.uid: document.version for document in self._cache.documents(kind, namespace)}
        async for page in self._lister.list_pages(kind, namespace):
            versions.append(page.version)
            # The watch has reported their deletion since: the page must not add them again.
            gone = known.keys() - {document.uid for document in self._cache.documents(kind, namespace)}
            for body in page.items:
                uid = body["metadata"]["uid"]
                listed.add(uid)
                if uid not in gone and known.get(uid) != version_of(body):
                    self._wake_owner(self._cache.put(kind, body))
        for document in self._cache.documents(kind, namespace):
            # A newer document was created after the list.
            if document.uid not in listed and document.version <= min(versions):
                self._wake_owner(self._cache.remove(kind, document.read()))

    def _wake_owner(self, key: Key | None) -> None:
        if key is not None:
            self.wake_if_listed(key)

    def _note_failing(self, namespace: str | None, why: str) -> None:
        if self._failing.get(namespace) != why:
            is_only = len(self._namespaces) == 1
            logger.warning("%s: %s", "not ready" if is_only else f"namespace {namespace} is skipped", why)
        self._failing[namespace] = why


def _now() -> float:
    return asyncio.get_running_loop().time()
