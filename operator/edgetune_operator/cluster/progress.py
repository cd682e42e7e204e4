"""Progress of a running training, from the metrics that its Pod serves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from edgetune_contract.stages import Stage
from edgetune_contract.values.times import timestamp
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.status.stage_status import ProgressStatus
from edgetune_operator.cluster.watch_cache import Cache
from edgetune_operator.decisions.manifests.job_manifests import METRICS_PORT
from edgetune_operator.decisions.pods import controller_uid, index_of

_TIMEOUT_SECONDS = 2.0
# A training sends no compressed response unless asked; nothing is decompressed here.
_HEADERS = {"Accept-Encoding": "identity"}
_LIMIT_BYTES = 64 * 1024

ReadMetrics = Callable[[Mapping[str, Any]], Awaitable[ProgressStatus | None]]
"""From a running Pod to the progress of its training; None if it reports none."""


class ProgressReader:
    """Reads the progress of running trainings in the background: a Pod that does not answer delays no pass."""

    def __init__(
        self, cache: Cache, interval_seconds: float, wake: Callable[[Key], None], read: ReadMetrics | None = None
    ) -> None:
        """Configure what is read, how, and how often.

        Args:
            cache: has the objects' Jobs and Pods.
            interval_seconds: between two readings of one training.
            wake: called when a reading differs from the last one.
            read: reads one Pod; None is `read_metrics`.
        """
        self._cache = cache
        self._read = read or read_metrics
        self._interval = interval_seconds
        self._wake = wake
        self._latest: dict[str, ProgressStatus] = {}
        self._followed: dict[str, asyncio.Task[None]] = {}
        """Tasks by the Pod's UID."""

    def latest(self, owner: Mapping[str, Any]) -> ProgressStatus | None:
        """The newest reading of an object's running training; None before the first. Starts to follow the training."""
        pod = self._running(owner)
        if pod is None:
            return None
        uid: str = pod["metadata"]["uid"]
        if uid not in self._followed:
            self._followed[uid] = asyncio.create_task(self._follow(owner, pod))
        return self._latest.get(uid)

    def _running(self, owner: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The running Pod of the object's training. It must belong to one of the Jobs: anybody can set labels."""
        jobs = {job["metadata"]["uid"] for job in self._cache.jobs_of(owner)}
        return running_train_pod([pod for pod in self._cache.pods_of(owner) if controller_uid(pod, "Job") in jobs])

    async def _follow(self, owner: Mapping[str, Any], pod: Mapping[str, Any]) -> None:
        """Read until the Pod is no longer running."""
        key, uid = Key(owner["namespace"], owner["name"]), pod["metadata"]["uid"]
        try:
            while (running := self._running(owner)) is not None:
                if running["metadata"]["uid"] != uid:
                    return
                progress = await self._read(pod)
                if progress is not None and progress != self._latest.get(uid):
                    self._latest[uid] = progress
                    self._wake(key)
                await asyncio.sleep(self._interval)
        finally:
            del self._followed[uid]
            self._latest.pop(uid, None)

    async def close(self) -> None:
        """Stop following all trainings."""
        tasks = list(self._followed.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def reading_progress(
    cache: Cache, interval_seconds: float, wake: Callable[[Key], None], read: ReadMetrics | None = None
) -> AsyncIterator[ProgressReader]:
    """A reader that is closed at the end of the context."""
    reader = ProgressReader(cache, interval_seconds, wake, read)
    try:
        yield reader
    finally:
        await reader.close()


def running_train_pod(pods: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The running Pod of a training with an address, of several nodes that of the first; None if there is none."""
    for pod in pods:
        if index_of(pod):
            continue
        stage = (pod["metadata"].get("labels") or {}).get(names.STAGE_LABEL)
        status = pod["status"]
        if stage == Stage.TRAIN and status.get("phase") == "Running" and status.get("podIP"):
            return pod
    return None


async def read_metrics(
    pod: Mapping[str, Any], *, port: int = METRICS_PORT, timeout_seconds: float = _TIMEOUT_SECONDS
) -> ProgressStatus | None:
    """Progress of the training in a running Pod; None if it does not answer or has not started.

    The Pod is the tenant's and can send anything: redirects are not followed, and the response is limited.
    """
    address = pod["status"]["podIP"]
    host = f"[{address}]" if ":" in address else address
    timeout = aiohttp.ClientTimeout(total=timeout_seconds)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.get(f"http://{host}:{port}/metrics", headers=_HEADERS, allow_redirects=False) as response,
        ):
            text = await _read_text(response.content)
    except (aiohttp.ClientError, TimeoutError):
        return None
    return parse_metrics(text, pod["metadata"]["name"]) if text is not None else None


async def _read_text(content: aiohttp.StreamReader) -> str | None:
    """The whole body as text; None if it is longer than the limit, which no training reaches."""
    try:
        await content.readexactly(_LIMIT_BYTES)
    except asyncio.IncompleteReadError as end:
        return end.partial.decode(errors="replace")
    return None


def parse_metrics(text: str, pod: str) -> ProgressStatus | None:
    """Progress from the text of a Pod's metrics; None before the first step, or if the text is invalid."""
    try:
        values = {
            sample.name.removeprefix("edgetune_train_"): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        step, total = int(values["step"]), int(values["total_steps"])
        return ProgressStatus(
            stage=Stage.TRAIN,
            step=step,
            total_steps=total,
            loss=values.get("loss"),
            tokens_per_second=values.get("tokens_per_second"),
            eta_seconds=values.get("eta_seconds"),
            pod=pod,
            resumed_from=int(values.get("resumed_from_step", 0)),
            started_at=timestamp(datetime.fromtimestamp(values["start_time_seconds"], UTC))
            if "start_time_seconds" in values
            else None,
        )
    except (KeyError, ValueError, OverflowError, OSError):
        return None
