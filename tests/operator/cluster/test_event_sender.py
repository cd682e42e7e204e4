"""The sender of Events: what it holds while the API server is slow."""

import asyncio
import gc
import weakref
from typing import Any

from edgetune_operator.cluster.event_sender import EventSender
from edgetune_operator.decisions.events import EventDraft


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
