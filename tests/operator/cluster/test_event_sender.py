"""The sender of Events: what it holds while the API server is slow."""

import asyncio
import gc
import weakref
from typing import Any

from kubernetes.aio.client.exceptions import ApiException
from prometheus_client import REGISTRY

from edgetune_operator.cluster.event_sender import EventSender
from edgetune_operator.decisions.reporting.events import EventDraft


class Metadata(dict[str, Any]):
    """Metadata that can be referenced weakly."""


def test_a_waiting_event_holds_nothing_else_of_its_object() -> None:
    """Annotations of a tenant have up to 256 KiB, and thousands of Events may wait."""
    sent: list[dict[str, Any]] = []

    async def call(method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        sent.append({"method": method, "path": path, **body})
        return {}

    async def run() -> None:
        sender = EventSender(call)
        owner = Metadata(name="tune", namespace="team-a", uid="1", annotations={"large": "x" * 10_000})
        sender.put(owner, EventDraft("Warning", "Stalled", "why"))
        held = weakref.ref(owner)
        del owner
        gc.collect()
        assert held() is None
        async with sender.sending(senders=1):
            pass

    asyncio.run(run())
    assert [(each["method"], each["path"]) for each in sent] == [("POST", "/api/v1/namespaces/team-a/events")]
    assert sent[0]["involvedObject"]["name"] == "tune"
    assert "x" * 100 not in str(sent)


def test_an_event_that_the_api_server_refuses_is_counted_and_the_next_one_is_sent() -> None:
    answers = [ApiException(status=403, reason="forbidden"), None]

    async def call(*_: str, **__: object) -> dict[str, Any]:
        if (refusal := answers.pop(0)) is not None:
            raise refusal
        return {}

    async def run() -> None:
        sender = EventSender(call)
        for message in ("first", "second"):
            sender.put({"name": "tune", "namespace": "team-a", "uid": "1"}, EventDraft("Normal", "Stage", message))
        async with sender.sending(senders=1):
            pass

    before = REGISTRY.get_sample_value("edgetune_events_dropped_total") or 0.0
    asyncio.run(run())
    assert answers == []
    assert REGISTRY.get_sample_value("edgetune_events_dropped_total") == before + 1
