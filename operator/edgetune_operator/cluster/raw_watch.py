"""Raw watches: followed line by line, for resources of which little is kept and nothing is listed."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from edgetune_operator.cluster.resync import NotServed

RETRY_SECONDS = 5.0
_LONGEST_LINE = 256 * 1024

logger = logging.getLogger("edgetune")

Take = Callable[[str, Mapping[str, Any]], None]
"""Called with ADDED, MODIFIED or DELETED, and the object."""


async def follow(open_watch: Callable[[str], AsyncIterator[bytes]], take: Take, pause_seconds: float) -> None:
    """Follow a watch until cancelled. It pauses after a watch that is refused, and logs each refusal once.

    Args:
        open_watch: chunks of a watch that starts after a resource version, or with the existing objects if that is
            empty; raises NotServed.
        take: gets each change.
        pause_seconds: pause after a refusal.
    """
    version, reported = "", ""
    while True:
        is_refused = False
        try:
            async for line in _lines(open_watch(version)):
                version = _take_line(line, take, version)
            reported = ""
        except NotServed as error:
            if str(error) != reported:
                logger.warning("%s", error)
            reported, version = str(error), ""
            is_refused = True
        # A restarted API server has ended the watches of all clients at once.
        await asyncio.sleep(pause_seconds * (1.0 if is_refused else random.uniform(0.02, 0.2)))  # noqa: S311


def _take_line(line: bytes, take: Take, version: str) -> str:
    """Take one line of a watch; returns the resource version from which to continue."""
    try:
        change = json.loads(line)
        kind, body = change["type"], change["object"]
        if kind == "ERROR":
            return ""  # mostly 410: the API server no longer has the version
        if kind != "BOOKMARK":
            take(kind, body)
        return str(body["metadata"]["resourceVersion"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return version  # tenants can write any object that the API server accepts


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines of a watch, without those that are too long: an object can have annotations of 256 KiB."""
    rest, is_too_long = b"", False
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not is_too_long and line:
                yield line
            is_too_long = False
        if len(rest) > _LONGEST_LINE:
            rest, is_too_long = b"", True
