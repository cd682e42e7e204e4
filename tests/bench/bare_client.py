"""A minimal Python client that watches objects, creates their first Job and writes their first status.

    python tests/bench/bare_client.py --kubeconfig FILE --namespace NAME

It writes the same Job and status as the operator, made once and copied: it parses no spec, keeps no cache, decides
nothing and posts no Events. It runs until it is stopped.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.fleet import objects_path, send, session_for
from support.builders import lora_fine_tune
from support.scenario import Scenario

_TEMPLATE = "template-object"
_WORKERS = 32


def main() -> None:
    """Serve a namespace until stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--namespace", required=True)
    options = parser.parse_args()
    first = Scenario(lora_fine_tune(_TEMPLATE))
    first.reconcile()
    job, status = first.cluster.created[0], first.cluster.document["status"]
    asyncio.run(_serve(options.kubeconfig, options.namespace, job, status))


async def _serve(kubeconfig: Path, namespace: str, job: Mapping[str, Any], status: Mapping[str, Any]) -> None:
    queue: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    async with session_for(kubeconfig) as session:
        workers = [asyncio.create_task(_work(session, queue, namespace, job, status)) for _ in range(_WORKERS)]
        await asyncio.gather(_watch(session, queue, namespace), *workers)


async def _watch(session: aiohttp.ClientSession, queue: asyncio.Queue[Mapping[str, Any]], namespace: str) -> None:
    """List and then watch; start again when the API server ends the watch, for example for a slow client."""
    path, seen = objects_path(namespace), set[str]()
    while True:
        async with session.get(path) as answer:
            listed = await answer.json()
        found = [item["metadata"] for item in listed["items"]]
        watch = f"{path}?watch=true&resourceVersion={listed['metadata']['resourceVersion']}"
        async with session.get(watch, timeout=aiohttp.ClientTimeout(total=None)) as answer:
            async for metadata in _created(found, answer):
                if metadata["uid"] not in seen:
                    seen.add(metadata["uid"])
                    queue.put_nowait(metadata)


async def _created(found: list[Mapping[str, Any]], watch: aiohttp.ClientResponse) -> AsyncIterator[Mapping[str, Any]]:
    for metadata in found:
        yield metadata
    async for line in watch.content:
        event = json.loads(line)
        if event["type"] == "ADDED":
            yield event["object"]["metadata"]


async def _work(
    session: aiohttp.ClientSession,
    queue: asyncio.Queue[Mapping[str, Any]],
    namespace: str,
    job: Mapping[str, Any],
    status: Mapping[str, Any],
) -> None:
    template, jobs = json.dumps(job), f"/apis/batch/v1/namespaces/{namespace}/jobs"
    template_uid = job["metadata"]["ownerReferences"][0]["uid"]
    while True:
        owner = await queue.get()
        own = template.replace(_TEMPLATE, owner["name"]).replace(template_uid, owner["uid"])
        body = json.loads(own.replace(job["metadata"]["namespace"], namespace))
        del body["metadata"]["creationTimestamp"]
        body.pop("status", None)
        await send(session, "POST", jobs, body, "application/json")
        path = f"{objects_path(namespace)}/{owner['name']}/status"
        await send(session, "PATCH", path, {"status": status}, "application/merge-patch+json")


if __name__ == "__main__":
    main()
