"""Kueue's Workloads of the stages' Jobs, from one watch: why a Job that is suspended waits.

The watch runs only if a profile has a queue. Without Kueue, or without the permission, a status says only that its Job
waits. Of Workloads of other Jobs, nothing is kept.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from kubernetes.aio.client.exceptions import ApiException

from edgetune_operator.api.names import Key
from edgetune_operator.cluster.raw_watch import follow
from edgetune_operator.cluster.warning_events import STAGE_NAMES
from edgetune_operator.decisions.pods import controller_uid

_KUEUE = "/apis/kueue.x-k8s.io/v1beta2"
WORKLOADS = f"{_KUEUE}/namespaces/{{namespace}}/workloads"
_FORBIDDEN = 403
_NOT_FOUND = 404
# Kueue may be installed later.
_RETRY_SECONDS = 30.0
_LONGEST_MESSAGE = 1024
_PREEMPTOR = re.compile(r"JobUID: ([0-9a-f-]{36})\)")


class Workloads:
    """The Workload of each waiting or admitted stage."""

    def __init__(self, key_of: Callable[[str], Key | None], wake: Callable[[Key], None]) -> None:
        """Keep nothing yet.

        Args:
            key_of: the object to which a Job's UID belongs; None if it is unknown.
            wake: called with the object of each Workload that has changed.
        """
        self._key_of = key_of
        self._wake = wake
        self._by_job: dict[tuple[str, str], dict[str, Any]] = {}
        """By namespace and UID of the Job: a Workload of another namespace can claim any UID."""

    def __len__(self) -> int:
        """Number of Workloads."""
        return len(self._by_job)

    def of(self, namespace: str, jobs: Sequence[str]) -> list[dict[str, Any]]:
        """Workloads of Jobs, each with the object of this namespace that preempted it.

        Args:
            namespace: of the Jobs.
            jobs: their UIDs.
        """
        found = (self._by_job.get((namespace, uid)) for uid in jobs)
        return [{**each, "preemptor": self._preemptor(namespace, each)} for each in found if each is not None]

    def _preemptor(self, namespace: str, workload: Mapping[str, Any]) -> str:
        for condition in workload["status"]["conditions"]:
            named = _PREEMPTOR.search(condition["message"]) if condition["type"] == "Evicted" else None
            key = self._key_of(named[1]) if named is not None else None
            # The names of another team's objects are not for this one's users.
            if key is not None and key.namespace == namespace:
                return key.name
        return ""

    def take(self, change: str, body: Mapping[str, Any]) -> None:
        """Add or remove a Workload of the watch.

        Args:
            change: ADDED, MODIFIED or DELETED.
            body: the Workload.
        """
        job = controller_uid(body, "Job")
        owners = body["metadata"].get("ownerReferences") or []
        if job is None or not any(STAGE_NAMES.search(owner["name"]) for owner in owners):
            return
        place = (body["metadata"]["namespace"], job)
        known = self._by_job.get(place)
        if change == "DELETED":
            if known is not None and known["metadata"]["uid"] == body["metadata"]["uid"]:
                del self._by_job[place]
        else:
            self._by_job[place] = _trimmed(job, body)
        if self._by_job.get(place) != known and (key := self._key_of(job)) is not None:
            self._wake(key)


class WorkloadSource(Protocol):
    """The operation of a cluster that the watch needs."""

    def watch_workloads(self, namespace: str | None, version: str) -> AsyncIterator[bytes]:
        """Chunks of a watch on Workloads, until the API server ends it.

        Args:
            namespace: the namespace; None for all.
            version: resource version after which it starts; empty starts with the existing Workloads.

        Raises:
            NotServed: the API server does not serve it; the message says what to do.
        """
        ...


async def watch_workloads(
    source: WorkloadSource, workloads: Workloads, namespace: str | None, *, pause_seconds: float = _RETRY_SECONDS
) -> None:
    """Keep the Workloads of a namespace, or of all, until cancelled."""
    await follow(lambda version: source.watch_workloads(namespace, version), workloads.take, pause_seconds)


def _trimmed(job: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that `queueing.observe_workloads` reads."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return {
        "job": job,
        "metadata": {key: metadata.get(key) for key in ("name", "uid", "creationTimestamp")},
        "spec": {key: spec[key] for key in ("queueName", "active") if key in spec},
        "status": {
            "conditions": [_cut(each) for each in status.get("conditions") or ()],
            "admissionChecks": [_cut(each) for each in status.get("admissionChecks") or ()],
        },
    }


def _cut(item: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("type", "name", "state", "status", "reason", "lastTransitionTime")
    message = (item.get("message") or "")[:_LONGEST_MESSAGE]
    return {key: item[key] for key in wanted if key in item} | {"message": message}


Get = Callable[[str, str], Awaitable[dict[str, Any]]]
"""Sends a request with a method and a path; raises ApiException."""


async def read_queue(call: Get, namespace: str, queue: str, priority: str) -> dict[str, Any]:
    """A queue as `queueing.observe_queue` reads it.

    Args:
        call: sends a request.
        namespace: of the LocalQueue.
        queue: its name.
        priority: name of a WorkloadPriorityClass to look for; empty for none.
    """
    if await _find(call, _KUEUE) is None:
        return {"isServed": False}
    local = await _find(call, f"{_KUEUE}/namespaces/{namespace}/localqueues/{queue}")
    name = ((local or {}).get("spec") or {}).get("clusterQueue")
    cluster = await _find(call, f"{_KUEUE}/clusterqueues/{name}") if name else None
    is_missing = bool(priority) and await _find(call, f"{_KUEUE}/workloadpriorityclasses/{priority}") is None
    missing = priority if is_missing else ""
    return {"isServed": True, "localQueue": local, "clusterQueue": cluster, "missingPriority": missing}


async def _find(call: Get, path: str) -> dict[str, Any] | None:
    """An object; None if there is none, and an empty one if the operator is not allowed to read it."""
    try:
        return await call("GET", path)
    except ApiException as error:
        if error.status not in (_FORBIDDEN, _NOT_FOUND):
            raise
        return None if error.status == _NOT_FOUND else {}
