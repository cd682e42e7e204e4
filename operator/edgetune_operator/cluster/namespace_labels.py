"""Labels of namespaces, which decide who may use a profile. They seldom change: one reading serves many passes."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kubernetes.aio.client.exceptions import ApiException

_SECONDS = 30
_NOT_FOUND = 404


class NamespaceLabels:
    """Labels by namespace, each read again after some seconds."""

    def __init__(self, call: Callable[[str, str], Awaitable[Mapping[str, Any]]]) -> None:
        """`call`: sends a request with a method and a path."""
        self._call = call
        self._known: dict[str, tuple[float, Mapping[str, str]]] = {}

    async def read(self, namespace: str) -> Mapping[str, str]:
        """Labels of a namespace; empty if it is gone.

        Raises:
            ApiException: they cannot be read.
        """
        known = self._known.get(namespace)
        if known is None or time.monotonic() - known[0] > _SECONDS:
            known = self._known[namespace] = (time.monotonic(), await self._ask(namespace))
        return known[1]

    async def _ask(self, namespace: str) -> Mapping[str, str]:
        try:
            found = await self._call("GET", f"/api/v1/namespaces/{namespace}")
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise
            return {}
        labels: Mapping[str, str] = found["metadata"].get("labels") or {}
        return labels
