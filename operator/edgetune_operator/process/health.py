"""Health: the endpoints of the kubelet's probes.

/healthz (liveness) fails when a pass hangs or no worker makes passes: a restart is needed. /readyz (readiness) fails
while the operator cannot work, for example because the API server is unreachable: a restart would not help, and the
response says what would.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from edgetune_operator.process.controller import Vitals


class Health:
    """Decides whether the operator is alive.

    Attributes:
        tasks: tasks that must run as long as the operator; it is unhealthy once one has ended.
    """

    def __init__(self, vitals: Callable[[], Vitals], max_pass_seconds: float) -> None:
        """`max_pass_seconds`: age from which a pass is considered hung."""
        self.vitals = vitals
        self.tasks: Sequence[asyncio.Task[None]] = ()
        self._limit = max_pass_seconds

    def problem(self) -> str:
        """Why the operator must be restarted; empty if it is healthy."""
        ended = next((task for task in self.tasks if task.done()), None)
        if ended is not None:
            return f"{ended.get_name()} has ended"
        seen = self.vitals()
        if seen.oldest_pass_seconds > self._limit:
            return f"a pass has been running for {seen.oldest_pass_seconds:.0f} s"
        # A long queue is healthy while passes are made.
        is_idle = seen.last_pass_seconds is None or seen.last_pass_seconds > self._limit
        if seen.queue_wait_seconds > self._limit and is_idle:
            return f"an object has waited for its pass for {seen.queue_wait_seconds:.0f} s and no passes are completing"
        return ""


@asynccontextmanager
async def serving_health(port: int, health: Health, why_not_ready: Callable[[], str]) -> AsyncIterator[None]:
    """Serve both probes on all addresses inside the context.

    Args:
        port: TCP port.
        health: whether the operator is alive.
        why_not_ready: why the operator is not ready; empty if it is.
    """

    async def healthz(_: web.Request) -> web.Response:
        problem = health.problem()
        return web.Response(status=503, text=problem) if problem else web.json_response(_figures(health.vitals()))

    async def readyz(_: web.Request) -> web.Response:
        reason = why_not_ready()
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
