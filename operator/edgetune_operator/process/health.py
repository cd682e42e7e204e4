"""Health: what the kubelet's probes ask.

/healthz (liveness) fails when a pass hangs, or when nothing makes passes any more: only a restart helps. /readyz
(readiness) fails while the operator cannot do its work, such as without an API server: a restart would not help, and
the answer says what would.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from edgetune_operator.process.controller import Vitals


class Health:
    """Judges whether the operator is alive.

    Attributes:
        tasks: what must go on for as long as the operator runs; one that ends makes it unhealthy.
    """

    def __init__(self, vitals: Callable[[], Vitals], max_pass_seconds: float) -> None:
        """`max_pass_seconds`: age at which a pass is taken to hang."""
        self.vitals = vitals
        self.tasks: Sequence[asyncio.Task[None]] = ()
        self._limit = max_pass_seconds

    def complaint(self) -> str:
        """Why only a restart helps; empty if none is needed."""
        ended = next((task for task in self.tasks if task.done()), None)
        if ended is not None:
            return f"{ended.get_name()} has ended"
        seen = self.vitals()
        if seen.oldest_pass_seconds > self._limit:
            return f"a pass has been going on for {seen.oldest_pass_seconds:.0f} s"
        # A long queue that gets shorter is no fault.
        stands_still = seen.last_pass_seconds is None or seen.last_pass_seconds > self._limit
        if seen.queue_wait_seconds > self._limit and stands_still:
            return f"an object has waited for its pass for {seen.queue_wait_seconds:.0f} s, and no pass is made"
        return ""


@asynccontextmanager
async def serving_health(port: int, health: Health, waits_for: Callable[[], str]) -> AsyncIterator[None]:
    """Serve both probes on a port of all addresses while inside.

    Args:
        port: where.
        health: whether the operator is alive.
        waits_for: why the operator is not ready; empty if it is.
    """

    async def healthz(_: web.Request) -> web.Response:
        complaint = health.complaint()
        return web.Response(status=503, text=complaint) if complaint else web.json_response(_figures(health.vitals()))

    async def readyz(_: web.Request) -> web.Response:
        reason = waits_for()
        return web.Response(status=503, text=f"not ready: {reason}") if reason else web.Response(text="ready")

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=1.0, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()


def _figures(seen: Vitals) -> dict[str, float | None]:
    return {
        "oldestPassSeconds": round(seen.oldest_pass_seconds, 3),
        "lastPassSeconds": round(seen.last_pass_seconds, 3) if seen.last_pass_seconds is not None else None,
        "queueWaitSeconds": round(seen.queue_wait_seconds, 3),
    }
