"""Kopf's lists, begun again when the API server no longer has them.

An API server keeps the rest of a list for five to ten minutes. If a page is asked for later, because the server or
this process is busy, it answers 410, and Kopf 1.45 ends the whole operator. It begins a list again, as client-go does,
when the connection breaks: so that is what such an answer becomes.
"""

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import aiohttp
from kopf._cogs.clients import errors, fetching


def restart_expired_lists() -> None:
    """Let Kopf begin expired lists again; it is idempotent."""
    fetch: Any = fetching.fetch_objs
    if getattr(fetch, "restarts", False):
        return

    async def fetch_again(**options: Any) -> AsyncIterator[Any]:
        try:
            async for page in fetch(**options):
                yield page
        except errors.APIClientError as error:
            if error.status != HTTPStatus.GONE:
                raise
            raise aiohttp.ClientPayloadError("the list expired") from error

    vars(fetch_again)["restarts"] = True
    vars(fetching)["fetch_objs"] = fetch_again
