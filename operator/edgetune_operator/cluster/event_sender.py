"""Sends the objects' Events behind the passes, which do not wait for them: Jobs and statuses have priority."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

from edgetune_contract.values.times import timestamp
from edgetune_operator.api import names
from edgetune_operator.decisions.reporting.events import EventDraft
from edgetune_operator.telemetry import EVENTS_DROPPED

FAILURES = (ApiException, aiohttp.ClientError, TimeoutError)
"""Errors of a request that the API server refuses or that does not reach it."""

_EVENTS = "/api/v1/namespaces/{namespace}/events"
# Fewer than there are workers.
_SENDERS = 4
_MOST_EVENTS = 10_000
_LAST_EVENTS_SECONDS = 2.0

logger = logging.getLogger("edgetune")

Call = Callable[..., Awaitable[dict[str, Any]]]
"""`KubernetesCluster.call`."""


class EventSender:
    """A queue of Events, and the tasks that send them. Events only repeat the status: a failed one is not retried."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._queue: deque[dict[str, Any]] = deque()
        """Events to send, oldest first. They have nothing of their objects whose size tenants choose."""

        self._sending = 0
        self._has_events = asyncio.Event()

    def put(self, owner: Mapping[str, Any], event: EventDraft) -> None:
        """Queue an Event of an object. If too many wait, the oldest is dropped."""
        if len(self._queue) == _MOST_EVENTS:
            self._queue.popleft()
            EVENTS_DROPPED.inc()
        self._queue.append(_body(owner, event, timestamp(datetime.now(UTC))))
        self._has_events.set()

    @contextlib.asynccontextmanager
    async def sending(self, senders: int = _SENDERS) -> AsyncIterator[None]:
        """Send Events inside the context; at its end, wait a moment for those that are left."""
        tasks = [asyncio.create_task(self._send_all()) for _ in range(senders)]
        try:
            yield
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_EVENTS_SECONDS):
                    while self._queue or self._sending:
                        await asyncio.sleep(_LAST_EVENTS_SECONDS / 100)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_all(self) -> None:
        while True:
            await self._has_events.wait()
            if not self._queue:
                self._has_events.clear()
                continue
            self._sending += 1
            try:
                await self._send(self._queue.popleft())
            except Exception:
                logger.exception("an Event is not posted")
            finally:
                self._sending -= 1

    async def _send(self, body: Mapping[str, Any]) -> None:
        try:
            await self._call("POST", _EVENTS.format(namespace=body["metadata"]["namespace"]), body=body)
        except FAILURES as error:
            EVENTS_DROPPED.inc()
            logger.info("an Event is not posted: %s", error)


def _body(owner: Mapping[str, Any], event: EventDraft, now: str) -> dict[str, Any]:
    return {
        "metadata": {"generateName": f"{owner['name'][:40].rstrip('-.')}-", "namespace": owner["namespace"]},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": owner["name"],
            "namespace": owner["namespace"],
            "uid": owner["uid"],
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:1024],
        "source": {"component": names.MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
