"""Health: what the kubelet's probes ask.

/healthz (liveness) fails when a pass hangs: only a restart helps. /readyz (readiness) fails while the operator cannot
do its work, such as without an API server: a restart would not help, and the answer says what would.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def serving_health(
    port: int, oldest_pass_seconds: Callable[[], float], max_pass_seconds: float, waits_for: Callable[[], str]
) -> AsyncIterator[None]:
    """Serve both probes on a port of all addresses while inside.

    Args:
        port: where.
        oldest_pass_seconds: age of the oldest pass that goes on now.
        max_pass_seconds: age at which a pass is taken to hang.
        waits_for: why the operator is not ready; empty if it is.
    """

    async def healthz(_: web.Request) -> web.Response:
        seconds = oldest_pass_seconds()
        if seconds > max_pass_seconds:
            return web.Response(status=503, text=f"a pass has been going on for {seconds:.0f} s")
        return web.json_response({"oldestPassSeconds": round(seconds, 3)})

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
