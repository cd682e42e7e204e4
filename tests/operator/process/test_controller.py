"""The controller: workers that survive every error in a pass and after it, and when passes are repeated."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio import client
from prometheus_client import REGISTRY

from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import ProgressStatus
from edgetune_operator.cluster.client import KubernetesCluster
from edgetune_operator.cluster.progress import ProgressReader
from edgetune_operator.cluster.watch_cache import Cache, Kind
from edgetune_operator.decisions.reporting.events import EventDraft
from edgetune_operator.process.controller import Controller, Vitals
from edgetune_operator.process.workqueue import WorkQueue
from edgetune_operator.reconcile import JobRefused, StaleRead
from support.builders import NAMESPACE, UID, JobBuilder, lora_fine_tune
from support.operator_process import free_ports
from support.scenario import PROFILE, MemoryCluster

KEY = Key(NAMESPACE, "sensor-faults")
OWNER = {"namespace": NAMESPACE, "uid": UID}


class EventCluster(MemoryCluster):
    """A cluster in memory that accepts Events and Jobs, unless a test sets an error; its writes update the cache."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(lora_fine_tune().build())
        self.cache = cache
        self.cache.put_object(self.document)
        self.posted: list[str] = []
        self.reads = 0
        self.read_error: Exception | None = None
        self.event_error: Exception | None = None
        self.progress_error: Exception | None = None
        self.job_error: JobRefused | None = None

    async def read_object(self, key: Key) -> dict[str, Any] | None:
        self.reads += 1
        if self.read_error is not None:
            raise self.read_error
        return await super().read_object(key)

    async def read_progress(self, owner: Mapping[str, Any]) -> ProgressStatus | None:
        if self.progress_error is not None:
            raise self.progress_error
        return await super().read_progress(owner)

    async def create_job(self, job: Mapping[str, Any]) -> str:
        if self.job_error is not None:
            raise self.job_error
        return await super().create_job(job)

    async def write_status(self, owner: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        await super().write_status(owner, status)
        self.cache.put_object(self.document)

    async def post_event(self, owner: Mapping[str, Any], event: EventDraft) -> None:  # noqa: ARG002 - one object only
        if self.event_error is not None:
            raise self.event_error
        self.posted.append(event.reason)


class RecordingQueue(WorkQueue[Key]):
    """A queue that records the delays of the requested passes."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []
        self.ended = 0

    def done(self, key: Key) -> None:
        self.ended += 1
        super().done(key)

    def add_after(self, key: Key, seconds: float) -> None:
        self.delays.append(seconds)
        super().add_after(key, seconds)


class World:
    """One worker over one object."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.cluster = EventCluster(self.cache)
        self.queue = RecordingQueue()
        self.controller = Controller(self.cluster, self.cache, self.queue, {"default": PROFILE})

    def work(self, passes: int = 1, between: Callable[[], None] = lambda: None) -> Vitals:
        """Let the worker make some passes, one after another; returns the vitals at the end."""

        async def scene() -> Vitals:
            worker = asyncio.create_task(self.controller.work())
            for number in range(passes):
                self.queue.add(KEY)
                async with asyncio.timeout(10):
                    while self.queue.ended <= number:
                        await asyncio.sleep(0)
                assert not worker.done(), "the worker has ended"
                between()
            worker.cancel()
            return self.controller.vitals()

        return asyncio.run(scene())


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    "error", [aiohttp.ClientOSError("connection lost"), TimeoutError(), ValueError("a bug")], ids=repr
)
def test_a_worker_survives_an_event_that_cannot_be_posted(world: World, error: Exception) -> None:
    world.cluster.event_error = error

    world.work(passes=3)

    assert world.cluster.status_writes == 1
    assert world.queue.delays == [0.5], "the pass is repeated and finds nothing to do"


def test_a_refused_job_is_retried_even_if_the_event_cannot_be_posted(world: World) -> None:
    world.cluster.job_error = JobRefused("JobRefused", "exceeded quota: none")
    world.cluster.event_error = ConnectionResetError()

    world.work()

    assert 60.0 in world.queue.delays


def test_a_failed_pass_is_retried_with_a_growing_delay(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.cluster.read_error = ConnectionResetError("reset by peer")

    world.work(passes=2)

    assert world.queue.delays == [0.5, 1.0]
    assert caplog.messages == [f"pass failed, retrying in {seconds} s: reset by peer" for seconds in (0.5, 1.0)]
    assert not any(record.exc_info for record in caplog.records)


def test_a_bug_is_logged_with_its_traceback_and_the_worker_continues(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def fix() -> None:
        world.cluster.read_error = None

    world.cluster.read_error = ValueError("a bug")
    with caplog.at_level(logging.INFO):
        world.work(passes=2, between=fix)

    assert caplog.records[0].exc_info
    assert world.cluster.posted == ["PrepareStarted"]


def test_vitals_have_the_age_of_the_last_pass_and_the_wait_of_the_first_object(world: World) -> None:
    async def waiting() -> Vitals:
        world.queue.add(KEY)
        await asyncio.sleep(0.01)
        return world.controller.vitals()

    before, after = asyncio.run(waiting()), World().work()

    assert before.last_pass_seconds is None
    assert before.queue_wait_seconds >= 0.01
    assert after.last_pass_seconds is not None
    assert after.last_pass_seconds < 10
    assert (after.oldest_pass_seconds, after.queue_wait_seconds) == (0.0, 0.0)


def passes(result: str) -> float:
    """Number of passes in this process with a result."""
    return REGISTRY.get_sample_value("edgetune_passes_total", {"result": result}) or 0.0


@pytest.mark.parametrize(
    ("error", "results"),
    [
        (None, {"changed": 1, "unchanged": 1}),
        (StaleRead("has changed since it was read"), {"conflict": 2}),
        (ConnectionResetError("reset by peer"), {"error": 2}),
    ],
    ids=["success", "conflict", "error"],
)
def test_each_pass_is_counted_by_its_result(world: World, error: Exception | None, results: dict[str, int]) -> None:
    every = ("changed", "unchanged", "conflict", "error")
    before = {result: passes(result) for result in every}
    world.cluster.read_error = error

    world.work(passes=2)

    added = {result: passes(result) - before[result] for result in every}
    assert {result: count for result, count in added.items() if count} == results


def test_the_gauge_of_objects_has_the_current_phases_only(world: World) -> None:
    def objects(phase: str) -> float | None:
        return REGISTRY.get_sample_value("edgetune_objects", {"phase": phase})

    other = lora_fine_tune("other").with_metadata(uid="of-the-other").with_status({"phase": "Training"}).build()
    world.cache.put_object(other)
    world.controller.update_object_metrics()
    before = objects("Pending"), objects("Training")
    world.cache.remove(Kind.OBJECT, other)
    world.controller.update_object_metrics()

    assert (before, objects("Pending"), objects("Training")) == ((1, 1), 1, None)


def test_a_standby_makes_no_pass_and_counts_no_object_until_it_holds_the_lease(world: World) -> None:
    owned: set[str] = set()
    controller = Controller(world.cluster, world.cache, world.queue, {"default": PROFILE}, lambda name: name in owned)

    async def scene() -> tuple[int, int]:
        worker = asyncio.create_task(controller.work())
        world.queue.add(KEY)
        async with asyncio.timeout(10):
            while len(world.queue):
                await asyncio.sleep(0)
            controller.update_object_metrics()
            before = world.cluster.reads
            owned.add(KEY.namespace)
            world.queue.add(KEY)
            while not world.cluster.created:
                await asyncio.sleep(0)
        worker.cancel()
        return before, world.cluster.reads

    assert asyncio.run(scene()) == (0, 1)
    assert REGISTRY.get_sample_value("edgetune_objects", {"phase": "Pending"}) is None


@pytest.mark.parametrize(
    ("error", "failures"), [(ValueError("a bug"), 5), (ConnectionResetError("reset by peer"), 12)], ids=repr
)
def test_an_object_whose_passes_keep_failing_is_stalled_with_the_message_until_one_succeeds(
    world: World, error: Exception, failures: int
) -> None:
    def stalled() -> tuple[str, str] | None:
        status = LoraFineTuneStatus.model_validate(world.cluster.document.get("status") or {})
        return next(((each.reason, each.message) for each in status.conditions if each.type == "Stalled"), None)

    def after_each_pass() -> None:
        seen.append(stalled())
        if len(seen) == failures + 1:
            world.cluster.progress_error = None

    seen: list[tuple[str, str] | None] = []
    world.cluster.progress_error = error

    world.work(passes=failures + 2, between=after_each_pass)

    message = f"the operator cannot reconcile this object, and keeps trying: {type(error).__name__}: {error}"
    reported = ("InternalError", message)
    assert seen == [*[None] * (failures - 1), reported, reported, None]
    assert world.cluster.posted == ["InternalError", "PrepareStarted"]
    assert world.cluster.status_writes == 2, "the same failure is written once"


@asynccontextmanager
async def api_server(port: int, cache: Cache) -> AsyncIterator[KubernetesCluster]:
    """A cluster whose API server is at a port of this machine."""
    progress = ProgressReader(cache, 5.0, lambda _: None)
    async with client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{port}")) as api:
        yield KubernetesCluster(api, cache, progress)


def test_an_event_that_does_not_reach_the_api_server_is_dropped() -> None:
    (unused,) = free_ports(1)

    async def post() -> None:
        async with api_server(unused, Cache()) as cluster, cluster.events.sending():
            event = EventDraft("Normal", "Reason", "message")
            await cluster.post_event(lora_fine_tune().build()["metadata"], event)

    asyncio.run(post())


def test_events_are_sent_in_order_and_no_pass_waits_for_them() -> None:
    reasons = [f"Reason{number}" for number in range(20)]
    received: list[str] = []

    async def receive(request: web.Request) -> web.Response:
        received.append((await request.json())["reason"])
        return web.json_response({})

    async def post() -> None:
        async with serving(Cache(), web.post("/api/v1/namespaces/{namespace}/events", receive)) as cluster:
            for reason in reasons:
                await cluster.post_event(lora_fine_tune().build()["metadata"], EventDraft("Normal", reason, "message"))
            assert received == [], "nothing is sent by the pass itself"
            async with cluster.events.sending(senders=1):
                pass

    asyncio.run(post())

    assert received == reasons


@asynccontextmanager
async def serving(cache: Cache, *routes: web.RouteDef) -> AsyncIterator[KubernetesCluster]:
    """A cluster whose API server answers these routes, and all other paths with 404."""
    (port,) = free_ports(1)
    application = web.Application()
    application.add_routes(routes)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        async with api_server(port, cache) as cluster:
            yield cluster
    finally:
        await runner.cleanup()


def test_a_job_that_is_already_gone_is_removed_from_the_cache_and_the_pass_repeated() -> None:
    cache = Cache()
    job = JobBuilder(Stage.TRAIN, "0123456789abcdef", name="train").build()
    cache.put_job(job)

    async def delete() -> None:
        async with serving(cache) as cluster:
            await cluster.delete_job(lora_fine_tune().build()["metadata"], "train")

    assert [found["metadata"]["name"] for found in cache.jobs_of(OWNER)] == ["train"]
    with pytest.raises(StaleRead, match="Job train is already gone"):
        asyncio.run(delete())
    assert cache.jobs_of(OWNER) == []


def a_deleted_object() -> dict[str, Any]:
    """A deleted object that only has the operator's finalizer."""
    document = lora_fine_tune().build()
    deleted = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [names.FINALIZER], "resourceVersion": "7"}
    return {**document, "metadata": {**document["metadata"], **deleted}}


def test_an_object_without_its_last_finalizer_is_removed_from_the_cache_at_once() -> None:
    cache, document = Cache(), a_deleted_object()
    cache.put_object(document)

    async def answer(_: web.Request) -> web.Response:
        metadata = {key: value for key, value in document["metadata"].items() if key != "finalizers"}
        return web.json_response({**document, "metadata": metadata})

    async def release() -> None:
        async with serving(cache, web.patch("/{path:.*}", answer)) as cluster:
            await cluster.write_finalizers(document["metadata"], [])

    asyncio.run(release())

    assert cache.get_object(KEY) is None, "another pass would post the final Event again"


def test_an_object_that_is_already_gone_is_removed_from_the_cache() -> None:
    cache, document = Cache(), a_deleted_object()
    cache.put_object(document)

    async def release() -> None:
        async with serving(cache) as cluster:
            await cluster.write_finalizers(document["metadata"], [])

    with pytest.raises(StaleRead, match="is already gone"):
        asyncio.run(release())
    assert cache.get_object(KEY) is None
