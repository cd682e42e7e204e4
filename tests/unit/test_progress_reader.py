"""Following running trainings: beside the passes, for as long as their Pods run."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator import names, progress
from edgetune_operator.api import ProgressStatus
from edgetune_operator.cache import Cache, Kind
from edgetune_operator.progress import ProgressReader, reading_progress
from edgetune_operator.reconcile import Key
from support.builders import NAMESPACE, UID, PodBuilder, lora_fine_tune

OWNER = {"namespace": NAMESPACE, "name": "sensor-faults", "uid": UID}


def at_step(step: int) -> ProgressStatus:
    """A reading."""
    return ProgressStatus(stage=Stage.TRAIN, step=step, total_steps=10, percent=10 * step)


def train_pod(version: int, name: str = "attempt-1", *, running: bool = True) -> dict[str, Any]:
    """The object's training."""
    builder = PodBuilder("job", name)
    pod = (builder.running() if running else builder.ended(0, "{}")).build()
    pod["metadata"] |= {"uid": f"uid-of-{name}", "resourceVersion": str(version)}
    pod["metadata"]["labels"] |= {names.STAGE_LABEL: Stage.TRAIN.value, names.UID_LABEL: UID}
    pod["status"]["podIP"] = "10.0.0.1"
    return pod


class World:
    """A cache with the object and its running training, and Pods that answer what a test says."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.cache.put(Kind.OBJECT, lora_fine_tune().build())
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
        """Wait until Pods were asked so often, and what they said is taken in."""
        async with asyncio.timeout(5):
            while len(self.asked) < count:
                await asyncio.sleep(0)
        await asyncio.sleep(0)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(progress, "read_metrics", world.read_metrics)
    return world


def run(world: World, scene: Any) -> None:
    """Play a scene with a reader that reads as often as it can."""

    async def play() -> None:
        async with reading_progress(world.cache, 0.0, world.woken.append) as reader:
            await scene(reader)

    asyncio.run(play())


def test_a_reading_is_there_at_once_for_the_pass_that_it_wakes(world: World) -> None:
    async def scene(reader: ProgressReader) -> None:
        world.answer = at_step(1)
        assert reader.latest(OWNER) is None
        await world.readings(1)
        assert reader.latest(OWNER) == at_step(1)

    run(world, scene)
    assert world.woken == [Key(NAMESPACE, "sensor-faults")]


def test_only_news_wake_and_a_pod_that_says_nothing_takes_nothing_back(world: World) -> None:
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


def test_a_pod_that_never_answers_holds_no_pass_up(world: World) -> None:
    async def scene(reader: ProgressReader) -> None:
        world.answers = False
        for _ in range(3):
            assert reader.latest(OWNER) is None
            await asyncio.sleep(0)

    run(world, scene)
    assert world.asked == ["attempt-1"]


def test_a_training_that_has_ended_is_asked_no_more(world: World) -> None:
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


def test_the_next_attempt_starts_without_the_progress_of_the_one_before(world: World) -> None:
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
