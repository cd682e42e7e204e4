"""The controller: workers that take keys from the queue and make one pass over each."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from edgetune_operator import telemetry
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.cluster.watch_cache import Cache
from edgetune_operator.decisions.observe import read_status
from edgetune_operator.decisions.reporting.events import EventDraft, transitions
from edgetune_operator.decisions.reporting.status import UnwritableStatus
from edgetune_operator.process.workqueue import WorkQueue
from edgetune_operator.reconcile import Cluster, DeletionPass, StaleRead, report_failure, run_once

# Failed passes in a row until the status says so: after 15 seconds or, for what may pass by itself, five minutes.
_FAILURES = 5
_LASTING_FAILURES = 12
# Others write an object at most some times a second: more conflicts in a row have another cause.
_MANY_CONFLICTS = 10
_CONFLICT_SECONDS = 1.0

logger = logging.getLogger("edgetune")


@dataclass(frozen=True)
class Vitals:
    """Health of the passes, in seconds."""

    oldest_pass_seconds: float
    """Age of the oldest running pass; 0 if none is running."""

    last_pass_seconds: float | None
    """Time since a pass ended; None if none has."""

    queue_wait_seconds: float
    """Time that the first object in the queue has waited; 0 if the queue is empty."""


class EventCluster(Cluster, Protocol):
    """A cluster that also accepts Events."""

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
        owns: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`owns`: whether this process reconciles the objects of a namespace now."""
        self._cluster = cluster
        self._cache = cache
        self._queue = queue
        self._profiles = profiles
        self._owns = owns
        self._started: dict[Key, float] = {}
        self._conflicts: Counter[Key] = Counter()
        """Conflicts of each object since its last pass without one."""

        self._last_end: float | None = None

    def vitals(self) -> Vitals:
        """Current health of the passes."""
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
            if not self._owns(key.namespace):
                # Whoever holds the namespace's Lease makes the pass; this process is woken when it takes the Lease.
                self._queue.done(key)
                continue
            self._started[key] = time.monotonic()
            try:
                await self._pass(key)
            except StaleRead:
                # The refused write has brought the present version into the cache.
                self._conflicts[key] += 1
                self._queue.add_after(key, 0.0 if self._conflicts[key] < _MANY_CONFLICTS else _CONFLICT_SECONDS)
                telemetry.PASSES.labels(result="conflict").inc()
            except Exception as error:  # noqa: BLE001  logged; a worker must survive every error
                await self._fail(key, error)
            finally:
                self._last_end = time.monotonic()
                telemetry.LAST_PASS.set_to_current_time()
                telemetry.PASS_SECONDS.observe(self._last_end - self._started.pop(key))
                self._queue.done(key)

    async def _pass(self, key: Key) -> None:
        document = self._cache.get_object(key)
        before = read_status(document) if document is not None else LoraFineTuneStatus()
        outcome = await run_once(self._cluster, key, self._profiles, datetime.now(UTC))
        self._queue.forget(key)
        self._conflicts.pop(key, None)
        telemetry.PASSES.labels(result="changed" if outcome is not None and outcome.wrote_status else "unchanged").inc()
        if outcome is None or document is None:
            return
        if outcome.plan.look_again is not None:
            self._queue.add_after(key, outcome.plan.look_again.total_seconds())
        if outcome.wrote_status:
            await self._report(key, document["metadata"], before)
        if isinstance(outcome, DeletionPass) and outcome.plan.final_event is not None:
            await self._post_final_event(key, document["metadata"], outcome.plan.final_event)

    async def _fail(self, key: Key, error: Exception) -> None:
        seconds = self._queue.retry(key)
        telemetry.PASSES.labels(result="error").inc()
        logger.warning(
            "pass failed, retrying in %.1f s: %s", seconds, error, extra=_context(key), exc_info=_is_bug(error)
        )
        if self._queue.failures(key) >= (_LASTING_FAILURES if _may_pass(error) else _FAILURES):
            try:
                await self._report_failure(key, f"{type(error).__name__}: {error}")
            except Exception as second:  # noqa: BLE001  logged; a worker must survive every error
                logger.warning("the failure cannot be reported: %s", second, extra=_context(key))

    async def _report_failure(self, key: Key, error: str) -> None:
        document = self._cache.get_object(key)
        if document is not None and await report_failure(self._cluster, key, error, datetime.now(UTC)):
            await self._report(key, document["metadata"], read_status(document))

    async def _report(self, key: Key, owner: Mapping[str, Any], before: LoraFineTuneStatus) -> None:
        after = read_status(self._cache.get_object(key) or {})
        telemetry.count_stages(key.namespace, before, after)
        for event in transitions(before, after):
            logger.info("%s: %s", event.reason, event.message, extra=_context(key, phase=after.phase.value))
            await self._cluster.post_event(owner, event)

    async def _post_final_event(self, key: Key, owner: Mapping[str, Any], final_event: EventDraft) -> None:
        telemetry.DELETIONS.labels(result=final_event.reason).inc()
        logger.info("%s: %s", final_event.reason, final_event.message, extra=_context(key))
        await self._cluster.post_event(owner, final_event)

    def update_object_metrics(self) -> None:
        """Update the metrics of this process's objects from their statuses."""
        telemetry.OBJECT_METRICS.replace(self._cache.figures(self._owns))
        telemetry.OBJECTS.clear()
        for phase, count in self._cache.phases(self._owns).items():
            telemetry.OBJECTS.labels(phase=phase).set(count)


def _context(key: Key, **values: str) -> dict[str, str]:
    return {"namespace": key.namespace, "object": key.name, **values}


def _may_pass(error: Exception) -> bool:
    """Whether an error can pass by itself: the network's, and those for which the API server is responsible."""
    is_refused = getattr(error, "status", None) in range(400, 500)
    return not (is_refused or _is_bug(error) or isinstance(error, UnwritableStatus))


def _is_bug(error: Exception) -> bool:
    """Whether an error needs a traceback; errors of the network and the API server are logged as one sentence."""
    bugs = TypeError | ValueError | LookupError | AttributeError | ArithmeticError | AssertionError | RuntimeError
    return isinstance(error, bugs)
