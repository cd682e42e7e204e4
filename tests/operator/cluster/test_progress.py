"""Following running trainings: in the background, as long as their Pods run, and whatever they answer."""

import asyncio
import gzip
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web

from edgetune_contract.stages import Stage
from edgetune_jobs.runtime.progress import ProgressUpdate, TrainingMetrics
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.status.stage_status import ProgressStatus
from edgetune_operator.cluster.progress import (
    ProgressReader,
    parse_metrics,
    read_metrics,
    reading_progress,
    running_train_pod,
)
from edgetune_operator.cluster.watch_cache import Cache, Kind
from support.builders import NAMESPACE, UID, JobBuilder, PodBuilder, lora_fine_tune
from support.operator_process import free_ports

OWNER = {"namespace": NAMESPACE, "name": "sensor-faults", "uid": UID}


def at_step(step: int) -> ProgressStatus:
    """A reading."""
    return ProgressStatus(stage=Stage.TRAIN, step=step, total_steps=10 * step)


def train_pod(version: int, name: str = "attempt-1", *, running: bool = True) -> dict[str, Any]:
    """A Pod of the object's training."""
    builder = PodBuilder("job", name)
    pod = (builder.running() if running else builder.ended(0, "{}")).build()
    pod["metadata"]["resourceVersion"] = str(version)
    pod["metadata"]["labels"][names.STAGE_LABEL] = Stage.TRAIN.value
    pod["status"]["podIP"] = "10.0.0.1"
    return pod


class World:
    """A cache with the object and its running training, and Pods that answer as the test configured."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.cache.put(Kind.OBJECT, lora_fine_tune().build())
        job = JobBuilder(Stage.TRAIN, "0123456789abcdef", name="job").build()
        self.cache.put(Kind.JOB, job)
        self.cache.put(Kind.POD, train_pod(1))
        self.woken: list[Key] = []
        self.asked: list[str] = []
        self.answer: ProgressStatus | None = None
        self.answers = True

    async def read_metrics(self, pod: Mapping[str, Any]) -> ProgressStatus | None:
        self.asked.append(pod["metadata"]["name"])
        if not self.answers:
            await asyncio.Event().wait()
        return self.answer

    async def readings(self, count: int) -> None:
        """Wait until Pods were read this number of times and the reader has processed the answers."""
        async with asyncio.timeout(30):
            while len(self.asked) < count:
                await asyncio.sleep(0)
        await asyncio.sleep(0)


@pytest.fixture
def world() -> World:
    return World()


def run(world: World, scene: Any) -> None:
    """Run a scene with a reader that reads without a pause."""

    async def play() -> None:
        async with reading_progress(world.cache, 0.0, world.woken.append, world.read_metrics) as reader:
            await scene(reader)

    asyncio.run(play())


def test_a_reading_is_available_to_the_pass_that_it_wakes(world: World) -> None:
    async def scene(reader: ProgressReader) -> None:
        world.answer = at_step(1)
        assert reader.latest(OWNER) is None
        await world.readings(1)
        assert reader.latest(OWNER) == at_step(1)

    run(world, scene)
    assert world.woken == [Key(NAMESPACE, "sensor-faults")]


def test_only_a_changed_reading_wakes_and_a_missing_one_keeps_the_last(world: World) -> None:
    async def scene(reader: ProgressReader) -> None:
        world.answer = at_step(1)
        reader.latest(OWNER)
        await world.readings(3)
        world.answer = None
        await world.readings(len(world.asked) + 2)
        assert reader.latest(OWNER) == at_step(1)
        assert len(world.woken) == 1
        world.answer = at_step(2)
        await world.readings(len(world.asked) + 2)
        assert reader.latest(OWNER) == at_step(2)

    run(world, scene)
    assert len(world.woken) == 2


def test_a_pod_that_never_answers_delays_no_pass(world: World) -> None:
    async def scene(reader: ProgressReader) -> None:
        world.answers = False
        for _ in range(3):
            assert reader.latest(OWNER) is None
            await asyncio.sleep(0)

    run(world, scene)
    assert world.asked == ["attempt-1"]


def test_an_ended_training_is_no_longer_read(world: World) -> None:
    async def scene(reader: ProgressReader) -> None:
        reader.latest(OWNER)
        await world.readings(1)
        world.cache.put(Kind.POD, train_pod(2, running=False))
        await asyncio.sleep(0.01)
        asked = len(world.asked)
        await asyncio.sleep(0.01)
        assert len(world.asked) == asked
        assert reader.latest(OWNER) is None

    run(world, scene)


def test_the_next_attempt_starts_without_the_progress_of_the_last_one(world: World) -> None:
    async def scene(reader: ProgressReader) -> None:
        world.answer = at_step(5)
        reader.latest(OWNER)
        await world.readings(1)
        world.cache.put(Kind.POD, train_pod(2, running=False))
        world.cache.put(Kind.POD, train_pod(3, "attempt-2"))
        world.answer = None
        assert reader.latest(OWNER) is None
        await asyncio.sleep(0.01)
        assert reader.latest(OWNER) is None

    run(world, scene)
    assert set(world.asked) == {"attempt-1", "attempt-2"}


@pytest.mark.parametrize(
    "owners", [[], [{"kind": "Job", "uid": "another", "controller": True}]], ids=["none", "another"]
)
def test_a_pod_that_only_has_the_labels_is_not_read(world: World, owners: list[dict[str, Any]]) -> None:
    stranger = train_pod(2)
    stranger["metadata"]["ownerReferences"] = owners
    world.cache.put(Kind.POD, stranger)

    async def scene(reader: ProgressReader) -> None:
        assert reader.latest(OWNER) is None
        await asyncio.sleep(0.01)

    run(world, scene)
    assert world.asked == []


ON_THIS_MACHINE = {"metadata": {"name": "pod"}, "status": {"podIP": "127.0.0.1"}}
# Longer than the operator's timeout, because other work shares the machine.
PATIENT_SECONDS = 30.0


class TenantPod:
    """A real server on this machine in place of a tenant's Pod."""

    METRICS = "edgetune_train_step 3\nedgetune_train_total_steps 10\n"

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.sent = 0

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self.METRICS)

    async def redirect(self, _: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    async def compressed(self, _: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(self.METRICS.encode()), headers={"Content-Encoding": "gzip"})

    async def bomb(self, _: web.Request) -> web.Response:
        body = gzip.compress(f"{self.METRICS}{'#' * 50_000_000}\n".encode())
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"edgetune_train_step 3\n" * 1000)
            self.sent += 22_000

    async def elsewhere(self, _: web.Request) -> web.Response:
        self.paths.append("/elsewhere")
        return web.Response(text=self.METRICS)

    def read(self, answer: str, timeout_seconds: float = 2.0) -> ProgressStatus | None:
        """The operator's reading from a Pod with this answer."""
        (port,) = free_ports(1)
        application = web.Application()
        application.add_routes([web.get("/metrics", getattr(self, answer)), web.get("/elsewhere", self.elsewhere)])

        async def scene() -> ProgressStatus | None:
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", port).start()
                return await read_metrics(ON_THIS_MACHINE, port=port, timeout_seconds=timeout_seconds)
            finally:
                await runner.cleanup()

        return asyncio.run(scene())


def test_a_pod_that_serves_its_metrics_is_read() -> None:
    reading = TenantPod().read("metrics", PATIENT_SECONDS)

    assert reading is not None
    assert (reading.step, reading.total_steps, reading.percent) == (3, 10, 30)


def test_the_metrics_of_a_real_training_are_read() -> None:
    (port,) = free_ports(1)
    metrics = TrainingMetrics(NAMESPACE, "sensor-faults")
    metrics.observe(ProgressUpdate(done=3, total=10, unit="steps", figures={"loss": 1.5}))

    with metrics.serving(port):
        reading = asyncio.run(read_metrics(ON_THIS_MACHINE, port=port, timeout_seconds=PATIENT_SECONDS))

    assert reading is not None
    assert (reading.step, reading.total_steps, reading.loss) == (3, 10, 1.5)


def test_a_redirect_is_not_followed() -> None:
    pod = TenantPod()

    assert pod.read("redirect") is None
    assert pod.paths == []


def test_an_endless_response_is_abandoned_after_64_kib() -> None:
    pod = TenantPod()

    assert pod.read("endless") is None
    assert pod.sent < 20_000_000, "only what fits into the buffers of a connection"


@pytest.mark.parametrize("answer", ["compressed", "bomb"])
def test_a_compressed_response_is_not_decompressed(answer: str) -> None:
    assert TenantPod().read(answer) is None


@pytest.mark.parametrize(
    "figures",
    [
        {"step": "+Inf"},
        {"step": "-1"},
        {"step": "1e300"},
        {"loss": "NaN"},
        {"eta_seconds": "-5"},
        {"resumed_from_step": "1e300"},
        {"resumed_from_step": "+Inf"},
        {"start_time_seconds": "NaN"},
        {"start_time_seconds": "1e300"},
    ],
    ids=str,
)
def test_metrics_that_are_invalid_in_the_status_are_ignored(figures: dict[str, str]) -> None:
    metrics = {"step": "3", "total_steps": "10"} | figures

    assert parse_metrics("".join(f"edgetune_train_{name} {value}\n" for name, value in metrics.items()), "pod") is None


def test_of_the_pods_of_several_nodes_the_first_one_is_read() -> None:
    other, first = train_pod(1, "node-1"), train_pod(2, "node-0")
    other["metadata"]["labels"][names.INDEX_LABEL] = "1"
    first["metadata"]["labels"][names.INDEX_LABEL] = "0"

    assert running_train_pod([other, first]) == first
    assert running_train_pod([other]) is None
