"""Many LoraFineTunes of one namespace, written by one client with many requests in flight."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from edgetune_operator.api import names
from support.builders import lora_fine_tune
from support.kube import Kube

_IN_FLIGHT = 32
_FIELD_MANAGER = "edgetune-bench"
_LIMIT = aiohttp.ClientTimeout(total=120)


def objects_path(namespace: str) -> str:
    """Path of a namespace's LoraFineTunes."""
    return f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"


@asynccontextmanager
async def session_for(kubeconfig: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A session as the user of a kubeconfig, with one connection for each request in flight."""
    kube = Kube.from_kubeconfig(kubeconfig)
    connector = aiohttp.TCPConnector(limit=_IN_FLIGHT, ssl=kube.context)
    headers = {**kube.headers, "Accept": "application/json"}
    async with aiohttp.ClientSession(kube.url, headers=headers, connector=connector, timeout=_LIMIT) as session:
        yield session


async def send(session: aiohttp.ClientSession, method: str, path: str, body: Any, content_type: str) -> dict[str, Any]:
    """Send one request and return the API server's response.

    Raises:
        RuntimeError: the API server refuses the request.
    """
    headers = {"Content-Type": content_type}
    async with session.request(method, path, data=json.dumps(body), headers=headers) as answer:
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {await answer.text()}")
        document: dict[str, Any] = await answer.json()
        return document


@dataclass(frozen=True)
class Fleet:
    """`count` objects in a namespace."""

    kubeconfig: Path
    namespace: str
    count: int

    def create(self) -> None:
        """Create all objects at once."""
        asyncio.run(self._send_all("POST", "application/json", lambda _: f"?fieldManager={_FIELD_MANAGER}"))

    def apply(self, annotations: Mapping[str, str] | None = None) -> None:
        """Apply all manifests at once, as `kubectl apply --server-side` does."""
        query = f"?fieldManager={_FIELD_MANAGER}&force=true"
        kind = "application/apply-patch+yaml"  # JSON is YAML
        asyncio.run(self._send_all("PATCH", kind, lambda name: f"/{name}{query}", annotations or {}))

    async def _send_all(
        self, method: str, content_type: str, suffix: Callable[[str], str], annotations: Mapping[str, str] | None = None
    ) -> None:
        spec, path = lora_fine_tune().build()["spec"], objects_path(self.namespace)
        async with session_for(self.kubeconfig) as session:

            async def send_one(name: str) -> None:
                metadata = {"name": name, "namespace": self.namespace, "annotations": dict(annotations or {})}
                body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": spec}
                await send(session, method, path + suffix(name), body, content_type)

            await asyncio.gather(*(send_one(f"model-{number:05d}") for number in range(self.count)))

    def phases(self) -> dict[str, int]:
        """Number of objects in each phase."""
        counts: dict[str, int] = {}
        for item in Kube.from_kubeconfig(self.kubeconfig).list(names.API_VERSION, names.KIND, self.namespace):
            phase = (item.get("status") or {}).get("phase", "none")
            counts[phase] = counts.get(phase, 0) + 1
        return counts
