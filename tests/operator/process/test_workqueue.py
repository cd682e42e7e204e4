"""The work queue: the order in which groups of keys are given out, and that no key is lost, doubled or given twice."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from edgetune_operator.api.names import Key
from edgetune_operator.process.workqueue import WorkQueue

T = TypeVar("T")
Queue = WorkQueue[Key]


def played(scene: Callable[[Queue], Awaitable[T]]) -> T:
    """The outcome of a scene with a queue that is grouped by namespace."""

    async def play() -> T:
        return await scene(WorkQueue(group_of=lambda key: key.namespace))

    return asyncio.run(play())


async def taken(queue: Queue, count: int) -> list[Key]:
    """The next keys; each pass ends before the next key is taken."""
    keys = []
    for _ in range(count):
        key, _ = await queue.get()
        keys.append(key)
        queue.done(key)
    return keys


def keys_of(namespace: str, count: int) -> list[Key]:
    return [Key(namespace, f"model-{number}") for number in range(count)]


def test_a_tenant_with_many_objects_delays_the_first_object_of_another_by_one_pass() -> None:
    many, few = keys_of("many", 1500), keys_of("few", 2)

    async def scene(queue: Queue) -> list[Key]:
        for key in (*many, *few):
            queue.add(key)
        return await taken(queue, len(many) + len(few))

    order = played(scene)

    assert order[:5] == [many[0], few[0], many[1], few[1], many[2]]
    assert [key for key in order if key.namespace == "many"] == many


def test_a_tenant_that_comes_later_does_not_wait_for_those_that_were_there() -> None:
    async def scene(queue: Queue) -> list[Key]:
        for namespace in ("a", "b", "c"):
            for key in keys_of(namespace, 100):
                queue.add(key)
        first = await taken(queue, 30)
        for key in keys_of("late", 3):
            queue.add(key)
        return first + await taken(queue, 12)

    order = played(scene)

    assert [key.namespace for key in order[:6]] == ["a", "b", "c", "a", "b", "c"]
    assert [key.namespace for key in order[30:]] == ["a", "b", "c", "late"] * 3


def test_objects_that_are_reconciled_again_and_again_take_no_other_tenants_turn() -> None:
    """A pass whose object changes meanwhile is followed by another one of the same object."""

    async def scene(queue: Queue) -> list[str]:
        busy, quiet = keys_of("busy", 1)[0], keys_of("quiet", 5)
        for key in (busy, *quiet):
            queue.add(key)
        order = []
        for _ in range(10):
            key, _ = await queue.get()
            order.append(key.namespace)
            queue.add(busy)
            queue.done(key)
        return order

    assert played(scene) == ["busy", "quiet"] * 5


def test_a_key_is_queued_once_and_given_to_one_worker_at_a_time() -> None:
    key = Key("team-a", "model")

    async def scene(queue: Queue) -> tuple[int, int, list[Key]]:
        queue.add(key)
        queue.add(key)
        once = len(queue)
        await queue.get()
        queue.add(key)
        second = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        given = int(second.done())
        queue.done(key)
        return once, given, [(await second)[0]]

    assert played(scene) == (1, 0, [key])


def test_waiting_workers_get_one_key_each_and_a_cancelled_one_takes_none() -> None:
    keys = [Key(f"team-{number}", "model") for number in range(3)]

    async def scene(queue: Queue) -> list[Key]:
        workers = [asyncio.create_task(queue.get()) for _ in range(4)]
        await asyncio.sleep(0)
        workers[0].cancel()
        for key in keys:
            queue.add(key)
        return [(await worker)[0] for worker in workers[1:]]

    assert played(scene) == keys


def test_the_longest_wait_is_of_the_oldest_key_of_all_groups() -> None:
    async def scene(queue: Queue) -> tuple[float, float, float]:
        empty = queue.longest_wait()
        old, older = keys_of("old", 2)
        queue.add(old)
        queue.add(older)
        await asyncio.sleep(0.02)
        queue.add(Key("new", "model"))
        await taken(queue, 1)
        with_old = queue.longest_wait()
        await taken(queue, 2)
        return empty, with_old, queue.longest_wait()

    empty, with_old, at_the_end = played(scene)

    assert (empty, at_the_end) == (0.0, 0.0)
    assert with_old >= 0.02
