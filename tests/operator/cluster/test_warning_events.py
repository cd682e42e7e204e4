"""Warning Events: which are kept, for how long the watch continues, and what tenants cannot do with them."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.cluster.resync import NotServed
from edgetune_operator.cluster.warning_events import WarningEvents, watch_warnings

JOB = names.job_name("sensor-faults", Stage.TRAIN, "0123456789abcdef")
POD = f"{JOB}-x7k2p"
LONG_JOB = names.job_name("a-model-with-a-name-that-fills-the-label-of-its-job", Stage.QUANTIZE, "0123456789abcdef")
# As the Job controller's Pods are named: the API server cuts the prefix at 58 characters.
LONG_POD = f"{LONG_JOB}-"[:58] + "x7k2p"


def event(about: str, uid: str = "uid-1", name: str = "", kind: str = "", message: str = "no") -> dict[str, Any]:
    """A warning about a Job or a Pod."""
    return {
        "metadata": {
            "name": name or f"{about}.1",
            "namespace": "team-a",
            "resourceVersion": "7",
            "creationTimestamp": "2026-11-24T08:00:00Z",
            "managedFields": [{"manager": "kubelet"}],
        },
        "involvedObject": {"kind": kind or ("Job" if about in (JOB, LONG_JOB) else "Pod"), "name": about, "uid": uid},
        "type": "Warning",
        "reason": "FailedMount",
        "message": message,
        "lastTimestamp": "2026-11-24T08:00:00Z",
    }


def messages(events: WarningEvents, uid: str = "uid-1", namespace: str = "team-a") -> list[str]:
    return [each["message"] for each in events.of(namespace, uid)]


@pytest.mark.parametrize("about", [JOB, POD, LONG_JOB, LONG_POD, names.clean_up_job_name("model", "ab-0123456789")])
def test_a_warning_about_a_job_or_pod_of_a_stage_is_kept(about: str) -> None:
    events = WarningEvents()
    events.take("ADDED", event(about, kind="Pod"))

    assert messages(events) == ["no"]
    assert messages(events, namespace="team-b") == []
    assert messages(events, uid="uid-2") == []


@pytest.mark.parametrize(
    ("about", "kind"), [("web-5d4f", "Pod"), ("backup-train", "Job"), (JOB, "Service"), ("node-1", "Node")]
)
def test_warnings_about_anything_else_take_no_memory(about: str, kind: str) -> None:
    events = WarningEvents()
    events.take("ADDED", event(about, kind=kind))

    assert len(events) == 0


def test_of_one_pod_the_newest_few_are_kept_and_a_repeated_one_replaces_itself() -> None:
    events = WarningEvents()
    for number in range(10):
        events.take("ADDED", event(POD, name=f"e{number}", message=f"{number}"))
    events.take("MODIFIED", event(POD, name="e7", message="7 again"))
    events.take("DELETED", event(POD, name="e9"))

    assert messages(events) == ["8", "7 again"]


def test_deleted_warnings_leave_nothing_behind() -> None:
    events = WarningEvents()
    events.take("ADDED", event(POD))
    events.take("DELETED", event(POD))
    events.take("DELETED", event(POD))

    assert len(events) == 0


def test_a_namespace_full_of_warnings_forgets_its_oldest_and_none_of_another() -> None:
    events = WarningEvents()
    other = event(POD)
    other["metadata"]["namespace"] = "team-b"
    events.take("ADDED", other)
    for number in range(6_000):
        events.take("ADDED", event(POD, uid=f"uid-{number}", message="x" * 100_000))

    assert len(events) == 5_001
    assert messages(events, "uid-0") == []
    assert [len(each) for each in messages(events, "uid-5999")] == [1024]
    assert messages(events, "uid-1", "team-b") == ["no"]


class Watches:
    """An API server that answers each watch with some chunks, or an error."""

    def __init__(self, *answers: Sequence[bytes] | NotServed) -> None:
        self._answers = list(answers)
        self.versions: list[str] = []
        self.is_done = asyncio.Event()

    async def watch_warnings(self, namespace: str | None, version: str) -> AsyncIterator[bytes]:
        assert namespace == "team-a"
        self.versions.append(version)
        if not self._answers:
            self.is_done.set()
            await asyncio.Event().wait()
        answer = self._answers.pop(0)
        if isinstance(answer, NotServed):
            raise answer
        for chunk in answer:
            yield chunk


def line(change: str, body: Any) -> bytes:
    return json.dumps({"type": change, "object": body}).encode() + b"\n"


def watched(*answers: Sequence[bytes] | NotServed) -> tuple[WarningEvents, list[str]]:
    """What is kept after these answers, and the versions from which each watch started."""

    async def scene() -> tuple[WarningEvents, list[str]]:
        events, watches = WarningEvents(), Watches(*answers)
        task = asyncio.create_task(watch_warnings(watches, events, "team-a", pause_seconds=0.0))
        async with asyncio.timeout(20):
            await watches.is_done.wait()
        task.cancel()
        return events, watches.versions

    return asyncio.run(scene())


def test_a_watch_that_ends_continues_where_it_was() -> None:
    text = line("ADDED", event(POD, message="first"))
    bookmark = line("BOOKMARK", {"metadata": {"resourceVersion": "30"}})
    events, versions = watched([text[:50], text[50:]], [bookmark], [line("ADDED", event(JOB, uid="of-the-job"))])

    assert versions == ["", "7", "30", "7"]
    assert messages(events) == ["first"]
    assert messages(events, "of-the-job") == ["no"]


def test_a_watch_whose_version_is_gone_starts_again_with_the_existing_events() -> None:
    _, versions = watched([line("ADDED", event(POD))], [line("ERROR", {"code": 410, "message": "too old"})])

    assert versions == ["", "7", ""]


def test_a_watch_that_is_refused_is_reported_once_and_retried(caplog: pytest.LogCaptureFixture) -> None:
    refused = NotServed("Events in namespace team-a are not watched: 403 forbidden")
    _, versions = watched(refused, refused, [line("ADDED", event(POD))])

    assert versions == ["", "", "", "7"]
    assert caplog.messages == [str(refused)]


@pytest.mark.parametrize(
    "hostile",
    [
        line("ADDED", {**event(POD), "metadata": {"annotations": {"a": "x" * 300_000}}}),
        b"x" * 1_000_000 + b"\n",
        line("ADDED", None),
        line("ADDED", {"metadata": {}}),
        line("ADDED", {**event(POD), "involvedObject": "none"}),
        b"[]\n\n\xff\n",
    ],
    ids=["too long", "no JSON", "no object", "no fields", "other types", "not even text"],
)
def test_an_event_that_no_component_of_kubernetes_writes_does_not_stop_the_watch(hostile: bytes) -> None:
    chunks = [hostile[start : start + 65_536] for start in range(0, len(hostile), 65_536)]
    events, versions = watched([*chunks, line("ADDED", event(POD, message="next"))])

    assert versions == ["", "7"]
    assert messages(events) == ["next"]
