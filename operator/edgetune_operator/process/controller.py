"""The controller: workers that take keys from the queue and make one pass each."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from edgetune_operator import telemetry
from edgetune_operator.api.objects import LoraFineTuneStatus
from edgetune_operator.api.profiles import Profile
from edgetune_operator.api.reasons import Reason
from edgetune_operator.cluster.cache import Cache
from edgetune_operator.decisions.diagnosis import quiet_wait
from edgetune_operator.decisions.events import EventDraft, transitions
from edgetune_operator.decisions.observe import read_status
from edgetune_operator.decisions.plan import Outcome
from edgetune_operator.process.workqueue import WorkQueue
from edgetune_operator.reconcile import Cluster, Conflict, DeletionPass, Key, Pass, run_once

_CONFLICT_SECONDS = 1.0
# What only the cluster can judge may pass without anything that the watches see.
_STALLED_SECONDS = 60.0
_UNHEARD_SECONDS = 5.0
# The Job of an earlier object of the same name is in nobody's cache.
_PENDING_SECONDS = 2.0
# What a deletion waits for may pass unseen as well, and it has a limit of its own.
_DELETION_SECONDS = 10.0

logger = logging.getLogger("edgetune")


@dataclass(frozen=True)
class Vitals:
    """How the passes go, in seconds."""

    oldest_pass_seconds: float
    """Age of the oldest pass that goes on now; 0 if none does."""

    last_pass_seconds: float | None
    """Time since a pass ended; None if none has."""

    queue_wait_seconds: float
    """Time that the first object in the queue has waited for its pass; 0 if none waits."""


class EventCluster(Cluster, Protocol):
    """A cluster that also takes Events."""

    async def post_event(self, owner: Mapping[str, Any], event: EventDraft) -> None:
        """Post an Event of the object."""
        ...


class Controller:
    """Passes over objects, at most one at a time for each."""

    def __init__(
        self,
        cluster: EventCluster,
        cache: Cache,
        queue: WorkQueue[Key],
        profiles: Mapping[str, Profile],
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._queue = queue
        self._profiles = profiles
        self._started: dict[Key, float] = {}
        self._last_end: float | None = None

    def vitals(self) -> Vitals:
        """How the passes go."""
        now = time.monotonic()
        return Vitals(
            oldest_pass_seconds=max((now - started for started in self._started.values()), default=0.0),
            last_pass_seconds=now - self._last_end if self._last_end is not None else None,
            queue_wait_seconds=self._queue.longest_wait(),
        )

    async def work(self) -> None:
        """Make passes until cancelled."""
        while True:
            key, waited = await self._queue.get()
            telemetry.QUEUE_SECONDS.observe(waited)
            telemetry.QUEUE_DEPTH.set(len(self._queue))
            self._started[key] = time.monotonic()
            try:
                await self._pass(key)
            except Conflict:
                # The watch brings the change, and with it the next pass; the delay covers one that it brought already.
                self._queue.add_after(key, _CONFLICT_SECONDS)
                telemetry.PASSES.labels(result="conflict").inc()
            except Exception as error:  # noqa: BLE001  logged; without its workers the operator would do nothing
                self._fail(key, error)
            finally:
                self._last_end = time.monotonic()
                telemetry.LAST_PASS.set_to_current_time()
                telemetry.PASS_SECONDS.observe(self._last_end - self._started.pop(key))
                self._queue.done(key)

    async def _pass(self, key: Key) -> None:
        document = self._cache.get_object(key)
        before = read_status(document) if document is not None else LoraFineTuneStatus()
        made = await run_once(self._cluster, key, self._profiles, datetime.now(UTC))
        self._queue.forget(key)
        telemetry.PASSES.labels(result="changed" if made is not None and made.wrote_status else "unchanged").inc()
        if made is None or document is None:
            return
        self._look_again(key, made)
        if made.wrote_status:
            await self._report(key, document["metadata"], before)
        if isinstance(made, DeletionPass) and made.plan.farewell is not None:
            await self._take_leave(key, document["metadata"], made.plan.farewell)

    def _fail(self, key: Key, error: Exception) -> None:
        seconds = self._queue.retry(key)
        telemetry.PASSES.labels(result="error").inc()
        logger.warning("pass failed, again in %.1f s: %s", seconds, error, extra=_bound(key), exc_info=_is_bug(error))

    def _look_again(self, key: Key, made: Pass | DeletionPass) -> None:
        """Ask for the next pass where nothing that the watches see may bring it."""
        if isinstance(made, DeletionPass):
            if made.plan.farewell is None:
                self._queue.add_after(key, _DELETION_SECONDS)
            return
        wait = quiet_wait(made.snapshot)
        if wait is not None:
            self._queue.add_after(key, wait.next_look(datetime.now(UTC)).total_seconds())
        if made.plan.unheard:
            self._queue.add_after(key, _UNHEARD_SECONDS)
        if made.plan.view.reason == Reason.PENDING:
            self._queue.add_after(key, _PENDING_SECONDS)
        if made.plan.view.outcome in (Outcome.STALLED, Outcome.BLOCKED):
            self._queue.add_after(key, _STALLED_SECONDS)

    async def _report(self, key: Key, owner: Mapping[str, Any], before: LoraFineTuneStatus) -> None:
        after = read_status(self._cache.get_object(key) or {})
        telemetry.count_stages(before, after)
        for event in transitions(before, after):
            logger.info("%s: %s", event.reason, event.message, extra=_bound(key, phase=after.phase.value))
            await self._cluster.post_event(owner, event)

    async def _take_leave(self, key: Key, owner: Mapping[str, Any], farewell: EventDraft) -> None:
        telemetry.DELETIONS.labels(result=farewell.reason).inc()
        logger.info("%s: %s", farewell.reason, farewell.message, extra=_bound(key))
        await self._cluster.post_event(owner, farewell)

    def count_phases(self) -> None:
        """Bring the gauge of objects by phase up to date."""
        telemetry.OBJECTS.clear()
        for phase, count in self._cache.phases().items():
            telemetry.OBJECTS.labels(phase=phase).set(count)


def _bound(key: Key, **values: str) -> dict[str, str]:
    return {"namespace": key.namespace, "object": key.name, **values}


def _is_bug(error: Exception) -> bool:
    """Whether it needs a traceback; what the network and the API server do is told in a sentence."""
    bugs = TypeError | ValueError | LookupError | AttributeError | ArithmeticError | AssertionError | RuntimeError
    return isinstance(error, bugs)
