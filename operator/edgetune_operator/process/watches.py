"""Kopf's watches on objects, their Jobs and their Pods. Each event updates the cache and queues the object."""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import kopf
from prometheus_client import start_http_server

from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.cluster.client import OWNED, connect
from edgetune_operator.cluster.lease_store import KubernetesLeases
from edgetune_operator.cluster.leases import Ownership
from edgetune_operator.cluster.progress import reading_progress
from edgetune_operator.cluster.resync import Resync
from edgetune_operator.cluster.warning_events import watch_warnings
from edgetune_operator.cluster.watch_cache import Cache, Kind
from edgetune_operator.cluster.workloads import Workloads, watch_workloads
from edgetune_operator.process.controller import Controller
from edgetune_operator.process.health import Health, serving_health
from edgetune_operator.process.kopf_lists import restart_expired_lists
from edgetune_operator.process.kopf_storage import NoDiffBaseStorage, NoProgressStorage
from edgetune_operator.process.settings import Settings
from edgetune_operator.process.workqueue import WorkQueue

_OBJECT_METRICS_SECONDS = 10.0


class Watcher:
    """Registers the handlers and runs the controller as long as Kopf runs."""

    def __init__(self, settings: Settings, profiles: Mapping[str, Profile]) -> None:
        self._settings = settings
        self._profiles = profiles
        self._cache = Cache()
        self._queue: WorkQueue[Key] = WorkQueue(group_of=lambda key: key.namespace)
        self._wake: Callable[[Key], None] = self._queue.add
        self._controller: Controller | None = None
        self._resources = contextlib.AsyncExitStack()

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Register all handlers."""
        owned = {names.MANAGED_BY_LABEL: names.MANAGER}
        kopf.on.login(registry=registry)(_log_in)
        kopf.on.startup(registry=registry)(self.start)
        kopf.on.cleanup(registry=registry)(self.stop)
        kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry, id="object")(self.on_object)
        kopf.on.event("batch", "v1", "jobs", labels=owned, registry=registry, id="job")(self.on_job)
        kopf.on.event("", "v1", "pods", labels=owned, registry=registry, id="pod")(self.on_pod)

    async def start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        """Connect, wait for the first lists, and start the workers. Kopf then starts the watches."""
        _configure(settings)
        # Scanning for new namespaces and resources needs cluster-wide permissions.
        settings.scanning.disabled = bool(self._settings.namespaces)
        enter = self._resources.enter_async_context
        progress = await enter(reading_progress(self._cache, self._settings.poll_seconds, self._queue.add))
        watched: Sequence[str | None] = self._settings.namespaces or (None,)
        has_queues = any(profile.queue is not None for profile in self._profiles.values())
        cluster = await enter(connect(self._cache, progress, watches=len(watched) * (1 + has_queues)))
        if has_queues:
            cluster.workloads = Workloads(self._cache.key_of_job, self._queue.add)
        resync = Resync(cluster, self._cache, self._settings.namespaces, self._queue.add)
        self._wake = resync.wake_if_listed
        ownership = self._ownership(KubernetesLeases(cluster))
        self._controller = Controller(cluster, self._cache, self._queue, self._profiles, ownership.owns)
        health = Health(self._controller.vitals, self._settings.max_pass_age_seconds)

        def why_not_ready() -> str:
            return resync.why_not_ready or ownership.why_not_ready

        await enter(serving_health(self._settings.health_port, health, why_not_ready))
        server, thread = start_http_server(self._settings.metrics_port, every_address())
        self._resources.callback(thread.join)
        self._resources.callback(server.server_close)
        self._resources.callback(server.shutdown)
        # A pass with an incomplete cache would treat the other Jobs as missing.
        await resync.run_until_listed()
        self._resources.push_async_callback(ownership.release)
        health.tasks = [
            asyncio.create_task(ownership.run(), name="the holder of the Leases"),
            asyncio.create_task(self._queue.run_delays(), name="the queue's timer"),
            asyncio.create_task(self._update_object_metrics(), name="the update of the objects' metrics"),
            asyncio.create_task(resync.run(), name="the resync"),
            *(
                asyncio.create_task(watch_warnings(cluster, cluster.warnings, each), name="a watch on Events")
                for each in watched
            ),
            *(
                asyncio.create_task(watch_workloads(cluster, cluster.workloads, each), name="a watch on Workloads")
                for each in watched
                if cluster.workloads is not None
            ),
            *(asyncio.create_task(self._controller.work(), name="a worker") for _ in range(self._settings.workers)),
        ]
        self._resources.push_async_callback(_cancel, health.tasks)

    def _ownership(self, leases: KubernetesLeases) -> Ownership:
        settings = self._settings
        return Ownership(
            leases,
            settings.namespaces,
            settings.identity,
            settings.lease_namespace,
            self._wake_namespace,
            lease_seconds=settings.lease_seconds,
        )

    def _wake_namespace(self, namespace: str | None) -> None:
        """Make a pass over each object of a namespace, or of all: its objects are this process's from now on."""
        for key in self._cache.keys(namespace):
            self._wake(key)

    async def stop(self, **_: Any) -> None:
        """Stop the workers, then release the Leases: a running pass is cancelled; the next operator repeats it."""
        await self._resources.aclose()

    async def on_object(self, event: Mapping[str, Any], **_: Any) -> None:
        """An object was added, changed or deleted."""
        self._take(Kind.OBJECT, event)

    async def on_job(self, event: Mapping[str, Any], **_: Any) -> None:
        """A Job of ours was added, changed or deleted."""
        self._take(Kind.JOB, event)

    async def on_pod(self, event: Mapping[str, Any], **_: Any) -> None:
        """A Pod of ours was added, changed or deleted."""
        self._take(Kind.POD, event)

    def _take(self, kind: Kind, event: Mapping[str, Any]) -> None:
        take = self._cache.remove if event["type"] == "DELETED" else self._cache.put
        key = take(kind, event["object"])
        if key is not None:
            self._wake(key)

    async def _update_object_metrics(self) -> None:
        while self._controller is not None:
            self._controller.update_object_metrics()
            await asyncio.sleep(_OBJECT_METRICS_SECONDS)


def every_address() -> str:
    """Address that listens on IPv6 and IPv4, or on IPv4 only if the machine has no dual stack."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - Prometheus may be on any host


def _log_in(**arguments: Any) -> kopf.ConnectionInfo | None:
    connection = kopf.login_with_service_account(**arguments)
    if connection is None:
        return kopf.login_with_kubeconfig(**arguments)
    # Kopf resolves the API server by DNS; use its address from the Pod's environment, as other clients do.
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return dataclasses.replace(connection, server=f"https://{f'[{host}]' if ':' in host else host}:{port}")


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EndlessBackoffs:
    """Seconds between Kopf's retries of a request that the API server refuses or does not answer.

    They never end: after the last one Kopf would stop the whole operator because of one namespace that is deleted or
    has no Role.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 2.0, 5.0, 10.0), itertools.repeat(20.0))


def _configure(settings: kopf.OperatorSettings) -> None:
    # The controller posts our own Events, from transitions of the status.
    settings.posting.enabled = False
    settings.persistence.finalizer = f"{names.GROUP}/finalizer"
    settings.persistence.diffbase_storage = NoDiffBaseStorage()
    settings.persistence.progress_storage = NoProgressStorage()
    # With Kopf's default, an object would wait 60 s after each internal error.
    settings.execution.default_backoff = 1
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = EndlessBackoffs()
    # Kopf keeps the last body of each object for this long after its last event. At the start every object has an
    # event, and the default of 5 s would hold all bodies in memory at once; so would lists without pages.
    settings.queueing.idle_timeout = 0.2
    settings.watching.chunk_size = 100
    restart_expired_lists()
    # Foreign Jobs and Pods never reach this process.
    settings.watching.label_selectors["batch", "v1", "jobs"] = OWNED
    settings.watching.label_selectors["", "v1", "pods"] = OWNED
