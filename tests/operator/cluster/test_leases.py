"""Leases: who reconciles a scope, when another process takes it, and what those that wait report."""

import asyncio
import copy
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from edgetune_operator.api import names
from edgetune_operator.cluster.leases import LEASE_SECONDS, LONGEST_LEASE_SECONDS, Ownership
from edgetune_operator.cluster.resync import NotServed

LEASES_NAMESPACE = "kube-system"
FIRST, SECOND, FOREIGN = "platform/edgetune/pod-1", "platform/edgetune/pod-2", "other/edgetune/pod-1"


class MemoryLeases:
    """Leases with the conflicts of an API server."""

    def __init__(self) -> None:
        self.leases: dict[tuple[str, str], dict[str, Any]] = {}
        self.failing: str = ""
        self.failing_lists: str = ""
        self.on_write: Callable[[str], Awaitable[None]] | None = None
        self.terminating: set[str] = set()
        self._versions = itertools.count(1)

    async def read_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        self._serve()
        return copy.deepcopy(self.leases.get((namespace, name)))

    async def write_lease(self, lease: Mapping[str, Any]) -> dict[str, Any] | None:
        self._serve()
        key = lease["metadata"]["namespace"], lease["metadata"]["name"]
        if self.on_write is not None:
            await self.on_write(key[0])
        known = self.leases.get(key)
        if known is None and key[0] in self.terminating:
            raise NotServed("the namespace is being terminated")
        if (known or {"metadata": {}})["metadata"].get("resourceVersion") != lease["metadata"].get("resourceVersion"):
            return None
        self.leases[key] = copy.deepcopy(dict(lease))
        self.leases[key]["metadata"]["resourceVersion"] = str(next(self._versions))
        return copy.deepcopy(self.leases[key])

    async def list_leases(self, name: str) -> list[dict[str, Any]]:
        self._serve()
        if self.failing_lists:
            raise NotServed(self.failing_lists)
        return [copy.deepcopy(lease) for key, lease in self.leases.items() if key[1] == name]

    async def is_namespace_terminating(self, namespace: str) -> bool:
        return namespace in self.terminating

    def _serve(self) -> None:
        if self.failing:
            raise NotServed(self.failing)


class World:
    """Some processes over the same Leases, and their clock."""

    def __init__(self) -> None:
        self.store = MemoryLeases()
        self.now = 0.0
        self.woken: list[tuple[str, str | None]] = []

    def process(self, identity: str, *namespaces: str) -> Ownership:
        """A process that watches these namespaces, or the whole cluster."""

        def wake(namespace: str | None) -> None:
            self.woken.append((identity, namespace))

        return Ownership(self.store, namespaces, identity, LEASES_NAMESPACE, wake, clock=lambda: self.now)

    def let_pass(self, seconds: float, *processes: Ownership) -> None:
        """Let time pass, in which these processes work."""
        for _ in range(int(seconds)):
            self.now += 1
            for process in processes:
                asyncio.run(process.settle())


@pytest.fixture
def world() -> World:
    return World()


def test_one_of_two_releases_reconciles_and_the_other_says_so_and_waits(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first, foreign = world.process(FIRST), world.process(FOREIGN)
    with caplog.at_level(logging.INFO):
        world.let_pass(60, first, foreign)

    assert (first.owns("team-a"), foreign.owns("team-a")) == (True, False)
    assert first.why_not_ready == ""
    message = (
        "waiting for the whole cluster: another release, platform/edgetune, reconciles it (Lease "
        "edgetune-operator-of-all-namespaces in namespace kube-system is held by platform/edgetune/pod-1); uninstall "
        "one of the two, or let them watch different namespaces"
    )
    assert foreign.why_not_ready == message
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [message]


def test_a_standby_is_ready_and_takes_over_when_the_holder_dies(world: World) -> None:
    first, second = world.process(FIRST), world.process(SECOND)
    world.let_pass(30, first, second)
    assert (first.owns("team-a"), second.owns("team-a"), second.why_not_ready) == (True, False, "")

    world.let_pass(LEASE_SECONDS - 1, second)
    assert not first.owns("team-a"), "the holder gives up before the standby can take the Lease"
    assert not second.owns("team-a")
    world.let_pass(2, second)

    assert second.owns("team-a")
    assert world.woken == [(FIRST, None), (SECOND, None)]
    world.let_pass(5, first, second)
    assert (first.owns("team-a"), second.owns("team-a")) == (False, True)


def test_a_released_lease_is_taken_at_once(world: World) -> None:
    first, second = world.process(FIRST), world.process(SECOND)
    world.let_pass(5, first, second)
    asyncio.run(first.release())
    world.let_pass(1, second)

    lease = world.store.leases[LEASES_NAMESPACE, names.CLUSTER_LEASE]["spec"]
    assert (first.owns("team-a"), second.owns("team-a")) == (False, True)
    assert (lease["holderIdentity"], lease["leaseTransitions"]) == (SECOND, 2)


def test_a_restarted_process_finds_its_own_name_and_continues_at_once(world: World) -> None:
    world.let_pass(5, world.process(FIRST))
    restarted = world.process(FIRST)
    world.let_pass(1, restarted)

    assert restarted.owns("team-a")


def test_of_two_processes_that_start_together_one_holds_the_lease(world: World) -> None:
    processes = [world.process(f"platform/edgetune/pod-{number}") for number in range(5)]

    async def start() -> None:
        await asyncio.gather(*(process.settle() for process in processes))

    asyncio.run(start())
    assert sum(process.owns("team-a") for process in processes) == 1


def test_a_holder_that_cannot_renew_gives_up_and_takes_the_lease_again(world: World) -> None:
    first = world.process(FIRST, "team-a")
    world.let_pass(5, first)
    world.store.failing = "the API server does not answer: 503; retrying"
    world.let_pass(5, first)
    assert first.owns("team-a")
    assert first.why_not_ready == ""

    world.let_pass(10, first)
    assert not first.owns("team-a")
    assert first.why_not_ready == f"waiting for namespace team-a: {world.store.failing}"

    world.store.failing = ""
    world.let_pass(1, first)
    assert first.owns("team-a")
    assert world.woken == [(FIRST, "team-a"), (FIRST, "team-a")]


def test_objects_are_woken_after_a_lease_that_expired_while_its_renewal_was_not_answered(world: World) -> None:
    """A worker drops an object whose Lease is not held, and nothing else would bring it back."""
    first = world.process(FIRST, "team-a")
    world.let_pass(5, first)
    seen: list[bool] = []

    async def answer_late(_: str) -> None:
        world.now += 3
        seen.append(first.owns("team-a"))

    world.let_pass(8)
    assert first.owns("team-a")
    world.store.on_write = answer_late
    world.let_pass(1, first)

    assert seen == [False]
    assert first.owns("team-a")
    assert world.woken == [(FIRST, "team-a"), (FIRST, "team-a")]


def test_a_request_that_is_not_answered_delays_no_other_namespace(world: World) -> None:
    first = world.process(FIRST, "team-a", "team-b")

    async def hang(namespace: str) -> None:
        if namespace == "team-a":
            await asyncio.Event().wait()

    async def run() -> None:
        task = asyncio.create_task(first.run())
        while not first.owns("team-b"):
            await asyncio.sleep(0)
        assert not first.owns("team-a")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    world.store.on_write = hang
    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_request_that_is_not_answered_ends_before_a_held_lease_expires(world: World) -> None:
    store, seconds = world.store, 3.0
    first = Ownership(store, ("team-a",), FIRST, LEASES_NAMESPACE, lambda _: None, lease_seconds=seconds)

    async def hang(_: str) -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        await first.settle()
        store.on_write = hang
        await first.settle()
        assert first.owns("team-a")
        store.on_write = None
        await first.settle()
        assert first.owns("team-a")

    asyncio.run(asyncio.wait_for(run(), 10))


def test_the_whole_cluster_is_not_reconciled_before_others_namespaces_are_known(world: World) -> None:
    world.store.failing_lists = "the operator is not allowed to list the Leases edgetune-operator of all namespaces"
    everywhere = world.process(FIRST)
    world.let_pass(5, everywhere)
    before = everywhere.owns("team-a"), everywhere.why_not_ready
    world.store.failing_lists = ""
    world.let_pass(1, everywhere)
    world.store.failing_lists = "the API server does not answer"
    world.let_pass(5, everywhere)

    why = "the operator is not allowed to list the Leases edgetune-operator of all namespaces"
    assert before == (False, f"waiting for the whole cluster: {why}")
    assert (everywhere.owns("team-a"), everywhere.why_not_ready) == (True, "")
    assert world.woken == [(FIRST, None)]


def test_a_lease_that_another_client_touched_or_deleted_stays_held(world: World) -> None:
    first = world.process(FIRST, "team-a")
    world.let_pass(5, first)
    world.store.leases["team-a", names.LEASE]["metadata"]["resourceVersion"] = "1000"
    world.let_pass(1, first)
    touched = first.owns("team-a")
    del world.store.leases["team-a", names.LEASE]
    world.let_pass(1, first)

    assert (touched, first.owns("team-a"), world.woken) == (True, True, [(FIRST, "team-a")])


def test_watched_namespaces_are_independent(world: World) -> None:
    first, foreign = world.process(FIRST, "team-a", "team-b"), world.process(FOREIGN, "team-b", "team-c")
    world.let_pass(5, first, foreign)

    owned = [[name for name in ("team-a", "team-b", "team-c") if each.owns(name)] for each in (first, foreign)]
    assert owned == [["team-a", "team-b"], ["team-c"]]
    assert foreign.why_not_ready == "", "it reconciles one of its namespaces"


def test_an_operator_of_the_whole_cluster_leaves_a_namespace_to_the_release_that_holds_it(world: World) -> None:
    everywhere, one = world.process(FIRST), world.process(FOREIGN, "team-b")
    world.let_pass(5, everywhere)
    world.let_pass(30, one, everywhere)
    assert (one.owns("team-b"), everywhere.owns("team-b"), everywhere.owns("team-a")) == (True, False, True)

    world.let_pass(LEASE_SECONDS + 1, everywhere)
    assert everywhere.owns("team-b"), "nobody renews the namespace's Lease"
    world.let_pass(30, everywhere)

    assert everywhere.owns("team-b")
    assert world.woken == [(FIRST, None), (FOREIGN, "team-b"), (FIRST, "team-b")]


def test_objects_of_a_namespace_that_is_deleted_are_still_released(world: World) -> None:
    """No Lease can be created in it, and finalizers must be removed."""
    first = world.process(FIRST, "team-a")
    world.let_pass(5, first)
    world.store.terminating.add("team-a")
    del world.store.leases["team-a", names.LEASE]
    world.let_pass(60, first)

    assert first.owns("team-a")
    assert world.woken == [(FIRST, "team-a")]


def test_a_lease_that_a_tenant_wrote_for_a_century_lasts_some_minutes(world: World) -> None:
    spec = {"holderIdentity": "tenant", "leaseDurationSeconds": 2**31 - 1}
    metadata = {"name": names.LEASE, "namespace": "team-a", "resourceVersion": "1"}
    world.store.leases["team-a", names.LEASE] = {"metadata": metadata, "spec": spec}
    everywhere, one = world.process(FIRST), world.process(SECOND, "team-a")
    world.let_pass(60, everywhere, one)
    before = everywhere.owns("team-a"), one.owns("team-a")
    world.let_pass(LONGEST_LEASE_SECONDS, everywhere)

    assert before == (False, False)
    assert everywhere.owns("team-a")
