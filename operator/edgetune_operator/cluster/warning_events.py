"""Warning Events of stages' Jobs and Pods, from one watch: why something waits whose status does not say it.

Listing the Events of one Job makes the API server read every Event of the namespace: with 2,000 waiting objects, that
was half of its work. One watch costs the same however many Events others write and however many objects wait.

Only warnings about names of stages' Jobs and Pods are kept, the newest few of each. Tenants can write any Event in
their namespace: the number for one namespace is limited, as is the size of each.
"""

import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.cluster.raw_watch import RETRY_SECONDS, follow

SELECTOR = f"type=Warning,involvedObject.kind!={names.KIND}"
"""Field selector of the watch. It cannot select two kinds, and a second watch costs the API server as much again."""

_KINDS = ("Job", "Pod")
# As names.job_name builds them; Pods have five more characters, and of a long Job name only the first 58.
STAGE_NAMES = re.compile(rf"-({'|'.join((*Stage, names.CLEAN_UP))})-[0-9a-f]{{5}}[0-9a-z-]{{0,11}}$")
"""Names of stages' Jobs and Pods."""

_EVENTS_OF_ONE = 3
_OBJECTS_OF_ONE_NAMESPACE = 5_000
_LONGEST_MESSAGE = 1024


class WarningEvents:
    """The newest warnings of each Job and Pod of the stages."""

    def __init__(self) -> None:
        self._events: dict[str, OrderedDict[str, dict[str, dict[str, Any]]]] = {}
        """By namespace, then by the UID of the Job or Pod, least recently changed first, then by the Event's name."""

    def __len__(self) -> int:
        """Number of Jobs and Pods with warnings."""
        return sum(map(len, self._events.values()))

    def of(self, namespace: str, uid: str) -> Sequence[dict[str, Any]]:
        """The warnings of a Job or Pod."""
        objects = self._events.get(namespace)
        return list(objects[uid].values()) if objects is not None and uid in objects else []

    def take(self, change: str, event: Mapping[str, Any]) -> None:
        """Add or remove an Event of the watch.

        Args:
            change: ADDED, MODIFIED or DELETED.
            event: the Event.
        """
        about, metadata = event.get("involvedObject") or {}, event["metadata"]
        if about.get("kind") not in _KINDS or not about.get("uid") or not STAGE_NAMES.search(about.get("name") or ""):
            return
        namespace, uid = metadata["namespace"], about["uid"]
        if change == "DELETED":
            self._remove(namespace, uid, metadata["name"])
            return
        objects = self._events.setdefault(namespace, OrderedDict())
        events = objects.setdefault(uid, {})
        events.pop(metadata["name"], None)
        events[metadata["name"]] = _trimmed(event)
        objects.move_to_end(uid)
        while len(events) > _EVENTS_OF_ONE:
            del events[next(iter(events))]
        while len(objects) > _OBJECTS_OF_ONE_NAMESPACE:
            objects.popitem(last=False)

    def _remove(self, namespace: str, uid: str, name: str) -> None:
        objects = self._events.get(namespace, OrderedDict())
        events = objects.get(uid, {})
        events.pop(name, None)
        if not events:
            objects.pop(uid, None)
        if not objects:
            self._events.pop(namespace, None)


class EventSource(Protocol):
    """The operation of a cluster that the watch needs."""

    def watch_warnings(self, namespace: str | None, version: str) -> AsyncIterator[bytes]:
        """Chunks of a watch on the Events that `SELECTOR` selects, until the API server ends it.

        Args:
            namespace: the namespace; None for all.
            version: resource version after which it starts; empty starts with the existing Events.

        Raises:
            NotServed: the API server does not serve it; the message says what to do.
        """
        ...


async def watch_warnings(
    source: EventSource, events: WarningEvents, namespace: str | None, *, pause_seconds: float = RETRY_SECONDS
) -> None:
    """Keep the warnings of a namespace, or of all, until cancelled."""
    await follow(lambda version: source.watch_warnings(namespace, version), events.take, pause_seconds)


def _trimmed(event: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that `observe_events` reads."""
    metadata, series = event["metadata"], event.get("series") or {}
    return {
        "metadata": {"creationTimestamp": metadata.get("creationTimestamp")},
        "type": event.get("type"),
        "reason": (event.get("reason") or "")[:_LONGEST_MESSAGE],
        "message": (event.get("message") or "")[:_LONGEST_MESSAGE],
        "lastTimestamp": event.get("lastTimestamp"),
        "eventTime": event.get("eventTime"),
        "series": {"lastObservedTime": series.get("lastObservedTime")},
    }
