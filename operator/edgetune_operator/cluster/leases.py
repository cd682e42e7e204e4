"""Leases: one operator at a time reconciles a watched scope; the others wait, as standby or because they are foreign.

A scope is one watched namespace, or the whole cluster. Its Lease (coordination.k8s.io) names the holder, as
`<release>/<process>`. The holder renews it; whoever sees it unchanged for its duration takes it, by a write that the
API server refuses if anybody else wrote first. No clock of another machine is trusted.

A process that waits for another process of its release is a standby, and ready. One that waits for another release is
not: two releases over the same namespaces are a mistake, which its log, readiness and metrics report.

An operator of the whole cluster leaves a namespace to the release that holds the namespace's own Lease.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from edgetune_operator import telemetry
from edgetune_operator.api import names
from edgetune_operator.cluster.resync import NotServed

LEASE_SECONDS = 15
"""Time without a renewal after which another process takes a Lease."""

LONGEST_LEASE_SECONDS = 300.0

# As client-go's leader election: a holder gives up some time before another process can take its Lease.
_RENEWAL_SHARE = 2 / 3
_RETRY_SHARE = 2 / 15
_REQUEST_SHARE = 1 / 3
_NEVER = -math.inf

logger = logging.getLogger("edgetune")


class LeaseStore(Protocol):
    """The operations of a cluster that Leases need. Each raises NotServed if the API server does not carry it out."""

    async def read_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A Lease; None if there is none."""
        ...

    async def write_lease(self, lease: Mapping[str, Any]) -> dict[str, Any] | None:
        """Create a Lease, or replace the one with this resource version. None if another process was faster."""
        ...

    async def list_leases(self, name: str) -> list[dict[str, Any]]:
        """The Leases with this name, of all namespaces."""
        ...

    async def is_namespace_terminating(self, namespace: str) -> bool:
        """Whether a namespace is being deleted: no Lease can be created in it."""
        ...


@dataclass
class _Sighting:
    """A Lease as this process has seen it."""

    version: str
    since: float
    """When this version was first seen, in seconds of this process's clock."""

    holder: str
    seconds: float

    def is_live(self, now: float) -> bool:
        """Whether its holder may still be working."""
        return bool(self.holder) and now - self.since < self.seconds


@dataclass
class _Scope:
    """One watched scope."""

    namespace: str | None
    """The namespace; None for the whole cluster."""

    lease_namespace: str
    lease_name: str
    held_until: float = _NEVER
    """When this process stops working on it unless it renews the Lease."""

    known: dict[str, Any] | None = None
    """The Lease after this process's last write."""

    sighting: _Sighting | None = None
    problem: str = "the Leases have not been read"
    """Why it is not held; empty for the holder and for a standby."""

    reported: str = ""
    others: dict[str, _Sighting] = field(default_factory=dict)
    """With the whole cluster: Leases of single namespaces, by namespace."""

    left: frozenset[str] = frozenset()
    """Namespaces whose own Lease is live."""

    @property
    def what(self) -> str:
        """The scope, for messages."""
        return f"namespace {self.namespace}" if self.namespace else "the whole cluster"

    @property
    def lease(self) -> str:
        """The Lease, for messages."""
        return f"Lease {self.lease_name} in namespace {self.lease_namespace}"


class Ownership:
    """Takes, renews and releases the Leases of all watched scopes."""

    def __init__(
        self,
        store: LeaseStore,
        namespaces: Sequence[str],
        identity: str,
        lease_namespace: str,
        wake: Callable[[str | None], None],
        *,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Configure which scopes are taken, and as whom.

        Args:
            store: has the Leases.
            namespaces: the watched namespaces; empty is the whole cluster.
            identity: `<release>/<process>`; without a slash, the process is a release of its own.
            lease_namespace: namespace of the whole cluster's Lease, the same for all releases.
            wake: called with a namespace, or None for all, from which on its objects are this process's.
            lease_seconds: time without a renewal after which others take a Lease.
            clock: monotonic, in seconds; None is the event loop's.
        """
        self._store = store
        self._identity = identity
        self._wake = wake
        self._seconds = lease_seconds
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._scopes: dict[str | None, _Scope] = (
            {name: _Scope(name, name, names.LEASE) for name in namespaces}
            if namespaces
            else {None: _Scope(None, lease_namespace, names.CLUSTER_LEASE)}
        )

    def owns(self, namespace: str) -> bool:
        """Whether this process reconciles the objects of a namespace now."""
        scope = self._scopes.get(namespace) or self._scopes.get(None)
        return scope is not None and self._holds(scope) and namespace not in scope.left

    @property
    def why_not_ready(self) -> str:
        """Why this process neither reconciles a scope nor is a standby for one; empty otherwise."""
        problems = [scope.problem for scope in self._scopes.values()]
        return "; ".join(dict.fromkeys(problems)) if all(problems) else ""

    async def run(self) -> None:
        """Take and renew Leases until cancelled."""
        await asyncio.gather(*(self._keep(scope) for scope in self._scopes.values()))

    async def _keep(self, scope: _Scope) -> None:
        """One task for each scope: a request that is not answered delays no other scope's renewal."""
        while True:
            await self._settle(scope)
            self._count()
            await asyncio.sleep(self._seconds * _RETRY_SHARE)

    async def settle(self) -> None:
        """Renew the Leases that are held, and take those that are free."""
        await asyncio.gather(*(self._settle(scope) for scope in self._scopes.values()))
        self._count()

    def _count(self) -> None:
        held = [scope for scope in self._scopes.values() if self._holds(scope)]
        telemetry.LEASES_HELD.set(len(held))
        failing = sum(bool(scope.problem) for scope in self._scopes.values())
        telemetry.SCOPES_OF_OTHERS.set(failing + sum(len(scope.left) for scope in held))

    async def release(self) -> None:
        """Give up the Leases that are held, so that a standby takes them at once."""
        for scope in self._scopes.values():
            if self._holds(scope) and scope.known is not None:
                scope.held_until = _NEVER
                try:
                    await self._store.write_lease(self._claimed(scope, scope.known, holder=""))
                except NotServed as error:
                    logger.warning("%s is not released, and expires: %s", scope.lease, error)

    def _holds(self, scope: _Scope) -> bool:
        return self._clock() < scope.held_until

    async def _settle(self, scope: _Scope) -> None:
        was_held = self._holds(scope)
        try:
            async with self._answered_in_time():
                until = await self._take(scope, was_held)
            # It may have expired during the request: workers have dropped objects since, which must be woken.
            was_held = self._holds(scope)
            if scope.namespace is None and self._clock() < until:
                scope.held_until = until if was_held else _NEVER
                # Before the first pass: it would be made over objects of others.
                async with self._answered_in_time():
                    await self._look_for_others(scope)
            scope.held_until = until
            self._report(scope, "")
        except NotServed as error:
            was_held = self._holds(scope)
            await self._fail(scope, str(error))
        if self._holds(scope) and not was_held:
            self._wake(scope.namespace)

    @contextlib.asynccontextmanager
    async def _answered_in_time(self) -> AsyncIterator[None]:
        """Give up a request early enough for another one before a held Lease expires."""
        try:
            async with asyncio.timeout(self._seconds * _REQUEST_SHARE):
                yield
        except TimeoutError:
            raise NotServed("the API server does not answer: TimeoutError; retrying") from None

    async def _take(self, scope: _Scope, was_held: bool) -> float:
        """Renew or take a Lease if it is free; returns until when it is held."""
        # The holder writes without reading first: the write is refused if the Lease has changed.
        if was_held and scope.known is not None:
            until = await self._write(scope, scope.known)
            if until is not None:
                return until
        current = await self._read(scope)
        until = await self._write(scope, current) if self._is_free(scope) else None
        return until if until is not None else _NEVER

    async def _write(self, scope: _Scope, current: Mapping[str, Any] | None) -> float | None:
        """Write a Lease with this process as its holder; None if another process was faster."""
        # From before the request: others count from when they see its outcome.
        until = self._clock() + self._seconds * _RENEWAL_SHARE
        scope.known = await self._store.write_lease(self._claimed(scope, current, holder=self._identity))
        return until if scope.known is not None else None

    async def _read(self, scope: _Scope) -> dict[str, Any] | None:
        found = await self._store.read_lease(scope.lease_namespace, scope.lease_name)
        scope.sighting = self._sight(scope.sighting, found) if found is not None else None
        return found

    def _sight(self, before: _Sighting | None, lease: Mapping[str, Any]) -> _Sighting:
        version, spec = lease["metadata"]["resourceVersion"], lease.get("spec") or {}
        since = before.since if before is not None and before.version == version else self._clock()
        # Tenants can write the Lease of their own namespace: its duration is limited.
        seconds = min(float(spec.get("leaseDurationSeconds") or self._seconds), LONGEST_LEASE_SECONDS)
        return _Sighting(version, since, spec.get("holderIdentity") or "", seconds)

    def _is_free(self, scope: _Scope) -> bool:
        seen = scope.sighting
        # A process that finds its own name was restarted: nobody else has it.
        return seen is None or seen.holder == self._identity or not seen.is_live(self._clock())

    def _claimed(self, scope: _Scope, current: Mapping[str, Any] | None, holder: str) -> dict[str, Any]:
        """The Lease with a holder; an empty one releases it."""
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        before = (current or {}).get("spec") or {}
        is_new = before.get("holderIdentity") != holder
        metadata = (current or {}).get("metadata") or {"name": scope.lease_name, "namespace": scope.lease_namespace}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {key: value for key, value in metadata.items() if key != "managedFields"},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": max(round(self._seconds), 1),
                "acquireTime": now if is_new else before.get("acquireTime") or now,
                "renewTime": now,
                "leaseTransitions": (before.get("leaseTransitions") or 0) + (1 if is_new and holder else 0),
            },
        }

    async def _look_for_others(self, scope: _Scope) -> None:
        """With the whole cluster, leave the namespaces whose own Lease another process holds."""
        found = {each["metadata"]["namespace"]: each for each in await self._store.list_leases(names.LEASE)}
        scope.others = {name: self._sight(scope.others.get(name), lease) for name, lease in found.items()}
        live = frozenset(name for name, seen in scope.others.items() if seen.is_live(self._clock()))
        for name in live - scope.left:
            logger.warning("namespace %s is left to %s, which holds its Lease", name, scope.others[name].holder)
        back, scope.left = scope.left - live, live
        for name in back:
            logger.info("namespace %s is reconciled again: nobody renews its Lease", name)
            self._wake(name)

    async def _fail(self, scope: _Scope, why: str) -> None:
        """The API server did not carry out a request: a held Lease lasts until it would expire."""
        if scope.namespace is not None and await self._is_terminating(scope.namespace):
            # Its Lease and Role may be gone already, and nobody can create a Lease in it: what is left to do, removing
            # finalizers, is the same for everybody.
            scope.held_until = self._clock() + self._seconds
            self._report(scope, "")
        elif not self._holds(scope):
            self._report(scope, why)

    async def _is_terminating(self, namespace: str) -> bool:
        try:
            async with self._answered_in_time():
                return await self._store.is_namespace_terminating(namespace)
        except NotServed:
            return False

    def _report(self, scope: _Scope, failure: str) -> None:
        """Set the scope's problem, and log a change of who holds it."""
        seen = scope.sighting
        scope.problem = ""
        if failure:
            scope.problem = text = f"waiting for {scope.what}: {failure}"
        elif self._holds(scope):
            text = f"reconciling {scope.what}: {scope.lease} is held as {self._identity}"
        elif seen is None or not seen.holder or release_of(seen.holder) == release_of(self._identity):
            text = f"standby for {scope.what}: {seen.holder if seen else 'another process'} holds {scope.lease}"
        else:
            scope.problem = text = (
                f"waiting for {scope.what}: another release, {release_of(seen.holder)}, reconciles it ({scope.lease} "
                f"is held by {seen.holder}); uninstall one of the two, or let them watch different namespaces"
            )
        if text != scope.reported:
            logger.log(logging.WARNING if scope.problem else logging.INFO, "%s", text)
        scope.reported = text


def release_of(identity: str) -> str:
    """The release of a process; the process itself if it names none."""
    return identity.rpartition("/")[0] or identity
