"""A list that the API server no longer has does not end the operator."""

import asyncio
from typing import Any

import kopf
import pytest
from aiohttp import web
from kopf._cogs.clients import auth, errors, fetching, watching
from kopf._cogs.structs import credentials, references

from edgetune_operator.process.kopf_lists import restart_expired_lists

PODS = references.Resource("", "v1", "pods", namespaced=True)
GONE = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}


@pytest.fixture
def _patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "fetch_objs", fetching.fetch_objs)
    restart_expired_lists()


async def listed(refusal: int) -> list[str]:
    """Names that Kopf lists from a server that answers the first second page with a status, as none can be made to."""
    refused = 0

    async def serve(request: web.Request) -> web.Response:
        nonlocal refused
        if "continue" in request.query and not refused:
            refused += 1
            return web.json_response({**GONE, "code": refusal}, status=refusal)
        first = "continue" not in request.query
        metadata = {"resourceVersion": "7", "continue": "next" if first else ""}
        items = [{"metadata": {"name": "one" if first else "two"}}]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items})

    application = web.Application()
    application.router.add_get("/api/v1/pods", serve)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    vault = credentials.Vault({"here": credentials.ConnectionInfo(server=f"http://127.0.0.1:{port}")})
    auth.vault_var.set(vault)
    settings = kopf.OperatorSettings()
    settings.networking.error_backoffs = ()
    names: list[str] = []
    try:
        for _ in range(2):
            async for event in watching.continuous_watch(
                settings=settings, resource=PODS, namespace=None, operator_pause_waiter=ended()
            ):
                if isinstance(event, dict):
                    body: Any = event["object"]
                    names.append(body["metadata"]["name"])
    finally:
        await vault.close()
        await runner.cleanup()
    return names


def ended() -> "asyncio.Future[None]":
    """What ends a watch after its list."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


@pytest.mark.usefixtures("_patched")
def test_an_expired_list_is_begun_again() -> None:
    assert asyncio.run(listed(410)) == ["one", "one", "two"]


@pytest.mark.usefixtures("_patched")
def test_another_refusal_is_an_error_as_before() -> None:
    with pytest.raises(errors.APIClientError) as caught:
        asyncio.run(listed(400))

    assert caught.value.status == 400
