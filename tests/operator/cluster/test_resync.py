"""The cache and the lists that fill it: newer versions win, deleted items are removed, and ended Pods are kept."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.cluster.resync import NotServed, Page, Resync
from edgetune_operator.cluster.watch_cache import Cache, Kind
from edgetune_operator.process.watches import EndlessBackoffs

KEY = Key("team-a", "sensor-faults")


def body(name: str, version: int, **fields: Any) -> dict[str, Any]:
    """A body as the API server returns it; its UID is derived from its name."""
    metadata = {"name": name, "namespace": "team-a", "uid": f"uid-of-{name}", "resourceVersion": str(version)}
    return {"metadata": {**metadata, **fields}, "status": {}}


def an_object(version: int, uid: str = "uid-of-sensor-faults", **metadata: str) -> dict[str, Any]:
    """The object."""
    return body("sensor-faults", version, uid=uid, **metadata)


def a_job(version: int, name: str = "job-1") -> dict[str, Any]:
    """A Job of the object."""
    owner = {"controller": True, "kind": names.KIND, "uid": "uid-of-sensor-faults"}
    return body(name, version, ownerReferences=[owner])


def a_pod(version: int, name: str = "pod-1", *, ended: bool = False) -> dict[str, Any]:
    """A Pod of job-1."""
    labels = {names.UID_LABEL: "uid-of-sensor-faults"}
    owner = {"controller": True, "kind": "Job", "uid": "uid-of-job-1"}
    state = {"terminated": {"exitCode": 75}} if ended else {"running": {}}
    pod = body(name, version, labels=labels, ownerReferences=[owner])
    return {**pod, "status": {"phase": "Running", "containerStatuses": [{"name": "stage", "state": state}]}}


class ApiServer:
    """Serves lists of a test's bodies, or refuses them for a while."""

    def __init__(self) -> None:
        self.bodies: dict[Kind, list[dict[str, Any]]] = {kind: [] for kind in Kind}
        self.version = 100
        self.refusals: list[str] = []
        self.forbidden: dict[str, str] = {}
        """Why a namespace cannot be listed."""

        self.lists: list[tuple[Kind, str | None]] = []
        self.on_check: Callable[[], None] = lambda: None

    async def check(self) -> None:
        """Refuse as the test configured."""
        self.on_check()
        if self.refusals:
            raise NotServed(self.refusals.pop(0))

    async def list_pages(self, kind: Kind, namespace: str | None) -> AsyncIterator[Page]:
        """Pages with one item each."""
        if namespace in self.forbidden:
            raise NotServed(self.forbidden[namespace])
        self.lists.append((kind, namespace))
        for each in [*self.bodies[kind], None]:
            if each is None or namespace in (None, each["metadata"]["namespace"]):
                yield Page([] if each is None else [each], self.version)


@pytest.fixture
def server() -> ApiServer:
    """An API server with one object, its Job and its Pod."""
    server = ApiServer()
    server.bodies = {Kind.OBJECT: [an_object(10)], Kind.JOB: [a_job(20)], Kind.POD: [a_pod(30)]}
    return server


class World:
    """A cache and the keys that were woken. By default, all lists are always due."""

    def __init__(self, server: ApiServer, *namespaces: str, second_list_seconds: float = 0.0) -> None:
        self.cache = Cache()
        self.woken: list[Key] = []
        self.resync = Resync(
            server,
            self.cache,
            namespaces,
            self.woken.append,
            second_list_seconds=second_list_seconds,
            later_list_seconds=0.0,
            retry_seconds=(0.0,),
        )

    def read_lists(self) -> list[Key]:
        """Resync once; returns the woken keys."""
        self.woken.clear()
        asyncio.run(self.resync.run_until_listed())
        return list(self.woken)

    def names(self, kind: Kind) -> list[str]:
        """Names of all cached items of a kind."""
        return [each.read()["metadata"]["name"] for each in self.cache.documents(kind)]


def test_the_first_lists_fill_the_cache(server: ApiServer) -> None:
    world = World(server)

    assert world.resync.why_not_ready == "the first lists have not been read"
    assert set(world.read_lists()) == {KEY}
    assert [world.names(kind) for kind in Kind] == [["sensor-faults"], ["job-1"], ["pod-1"]]
    assert world.resync.why_not_ready == ""


def test_a_deletion_that_the_watch_missed_is_detected_and_wakes_the_object(server: ApiServer) -> None:
    world = World(server)
    world.read_lists()
    server.bodies[Kind.JOB], server.bodies[Kind.POD] = [], []

    assert world.read_lists() == [KEY]
    assert world.names(Kind.JOB) == []
    assert world.names(Kind.POD) == []


def test_an_unchanged_list_wakes_nothing(server: ApiServer) -> None:
    world = World(server)
    world.read_lists()

    assert world.read_lists() == []


def test_items_newer_than_the_list_are_kept(server: ApiServer) -> None:
    world = World(server)
    world.read_lists()
    world.cache.put_job(a_job(version=101, name="job-2"))

    assert world.read_lists() == []
    assert world.names(Kind.JOB) == ["job-1", "job-2"]


def test_a_list_does_not_overwrite_newer_watch_events(server: ApiServer) -> None:
    world = World(server)
    world.cache.put(Kind.POD, a_pod(40, ended=True))

    world.read_lists()

    (pod,) = [each.read() for each in world.cache.documents(Kind.POD)]
    assert "terminated" in pod["status"]["containerStatuses"][0]["state"]


def test_a_list_does_not_restore_what_was_deleted_meanwhile(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(server)
    world.read_lists()
    server.bodies[Kind.JOB] = [a_job(version=50)]
    list_pages = server.list_pages

    async def list_during_deletion(kind: Kind, namespace: str | None) -> AsyncIterator[Page]:
        async for page in list_pages(kind, namespace):
            if kind is Kind.JOB:
                world.cache.remove(Kind.JOB, a_job(version=51))
            yield page

    monkeypatch.setattr(server, "list_pages", list_during_deletion)
    world.read_lists()

    assert world.names(Kind.JOB) == []


def test_only_watched_namespaces_are_listed(server: ApiServer) -> None:
    world = World(server, "team-b")

    assert world.read_lists() == []
    assert world.names(Kind.OBJECT) == []


def test_lists_are_retried_and_the_reason_is_logged(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    world = World(server)
    server.refusals = ["the API server does not answer"] * 3 + ["the CRD is missing"]
    reasons: list[str] = []
    server.on_check = lambda: reasons.append(world.resync.why_not_ready)
    world.read_lists()

    assert reasons[1:] == ["the API server does not answer"] * 3 + ["the CRD is missing"]
    assert world.resync.why_not_ready == ""
    assert caplog.messages == ["not ready: the API server does not answer", "not ready: the CRD is missing"]


TEAM_B = Key("team-b", "sensor-faults")
FORBIDDEN = {"team-b": "the operator is not allowed to list lorafinetunes in namespace team-b"}


@pytest.fixture
def two_teams(server: ApiServer) -> ApiServer:
    """An API server with an object in each of two namespaces."""
    server.bodies[Kind.OBJECT].append(an_object(11, uid="uid-of-team-b", namespace="team-b"))
    return server


def test_a_namespace_that_cannot_be_listed_affects_no_other(
    two_teams: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    two_teams.forbidden = FORBIDDEN
    world = World(two_teams, "team-a", "team-b")

    assert set(world.read_lists()) == {KEY}
    assert world.resync.why_not_ready == ""
    world.read_lists()
    assert caplog.messages == [f"namespace team-b is skipped: {FORBIDDEN['team-b']}"]


def test_a_namespace_that_can_be_listed_again_is_reconciled(two_teams: ApiServer) -> None:
    two_teams.forbidden = FORBIDDEN
    world = World(two_teams, "team-a", "team-b")
    world.read_lists()
    two_teams.forbidden = {}

    assert set(world.read_lists()) == {TEAM_B}


def test_the_cache_of_a_namespace_is_kept_while_it_cannot_be_listed(two_teams: ApiServer) -> None:
    world = World(two_teams, "team-a", "team-b")
    world.read_lists()
    two_teams.forbidden = FORBIDDEN
    two_teams.bodies[Kind.OBJECT] = []

    world.read_lists()

    assert world.cache.keys() == [TEAM_B]


def test_no_object_is_woken_before_its_namespace_is_listed(two_teams: ApiServer) -> None:
    """The watches report objects and their Jobs in any order; a pass would treat unlisted Jobs as missing."""
    two_teams.forbidden = FORBIDDEN
    world = World(two_teams, "team-a", "team-b")
    world.read_lists()
    world.woken.clear()

    world.cache.put(Kind.OBJECT, an_object(11, uid="uid-of-team-b", namespace="team-b"))
    world.resync.wake_if_listed(TEAM_B)
    world.resync.wake_if_listed(KEY)

    assert world.woken == [KEY]
    two_teams.forbidden = {}
    assert set(world.read_lists()) == {TEAM_B}, "although the list has no change"


def test_an_operator_that_can_list_no_namespace_is_not_ready(two_teams: ApiServer) -> None:
    world = World(two_teams, "team-a", "team-b")
    world.read_lists()
    two_teams.forbidden = {"team-a": "may not list jobs", "team-b": "may not list lorafinetunes"}

    asyncio.run(world.resync.list_due())

    assert world.resync.why_not_ready == "may not list jobs; may not list lorafinetunes"
    two_teams.forbidden = {}
    world.read_lists()
    assert world.resync.why_not_ready == ""


def test_lists_are_read_when_they_are_due_and_after_an_outage_of_the_api_server(server: ApiServer) -> None:
    world = World(server, second_list_seconds=600.0)
    every = [(kind, None) for kind in Kind]
    world.read_lists()
    world.read_lists()
    assert server.lists == every

    server.refusals = ["the API server does not answer"]
    asyncio.run(world.resync.list_due())
    assert world.resync.why_not_ready == "the API server does not answer"
    world.read_lists()
    assert world.resync.why_not_ready == ""

    assert server.lists == [*every, *every]


def test_an_ended_pod_is_kept_until_its_job_is_gone(server: ApiServer) -> None:
    world = World(server)
    world.read_lists()
    world.cache.remove(Kind.POD, a_pod(50, ended=True))
    before = world.names(Kind.POD)
    world.read_lists()

    world.cache.remove(Kind.JOB, a_job(60))

    assert before == ["pod-1"]
    assert world.names(Kind.POD) == []


def test_a_pod_deleted_after_its_job_is_removed(server: ApiServer) -> None:
    world = World(server)
    world.read_lists()
    world.cache.remove(Kind.JOB, a_job(60))

    world.cache.remove(Kind.POD, a_pod(70, ended=True))

    assert world.names(Kind.POD) == []


def test_a_recreated_object_is_kept(server: ApiServer) -> None:
    world = World(server)
    world.read_lists()
    world.cache.put_object(an_object(90, uid="another"))

    world.cache.remove(Kind.OBJECT, an_object(80))

    (kept,) = world.cache.documents(Kind.OBJECT)
    assert kept.uid == "another"


def test_kopf_never_runs_out_of_retries() -> None:
    """Otherwise it would stop the operator, and with it the work in all other namespaces."""
    assert len(list(itertools.islice(EndlessBackoffs(), 1000))) == 1000
