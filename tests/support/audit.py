"""Figures from the API server's audit log: who wrote what, and when the API server answered."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from edgetune_contract.stages import Stage

_WRITES = ("create", "update", "patch", "delete")
# As edgetune_operator.api.names builds them: object, stage, digest. Pod names have five more characters.
_JOB = re.compile(rf"(?P<object>.+)-(?P<stage>{'|'.join(Stage)})-[0-9a-f]{{10}}(-[a-z0-9]{{5}})?")


@dataclass(frozen=True)
class Request:
    """One request that the API server answered."""

    user: str
    verb: str
    resource: str
    """Plural, with the subresource: pods/status."""

    name: str
    code: int
    received: float
    """Seconds since the epoch."""

    answered: float
    """Seconds since the epoch; watchers receive the change at about this time."""

    @property
    def is_write(self) -> bool:
        """Whether it writes, also if it was refused. Leases are renewed all the time, whatever happens."""
        return self.verb in _WRITES and self.resource != "leases"

    @property
    def kind(self) -> str:
        """Verb and resource, such as `create jobs`; with the status code if it was refused."""
        return f"{self.verb} {self.resource}" + (f" ({self.code})" if self.code >= 300 else "")

    @property
    def stage_of(self) -> tuple[str, Stage] | None:
        """Object and stage of a Job or one of its Pods; None for anything else."""
        found = _JOB.fullmatch(self.name)
        return (found["object"], Stage(found["stage"])) if found else None


class AuditLog:
    """The audit log of an API server that may still be running: each reading returns the new requests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.requests: list[Request] = []
        """All requests read so far, in the order of the log."""

    def read(self) -> Sequence[Request]:
        """Requests that were answered since the last reading."""
        known = len(self.requests)
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the API server has not written the rest
                self._offset += len(line)
                request = _request(json.loads(line))
                if request is not None:
                    self.requests.append(request)
        return self.requests[known:]


def _request(event: dict[str, Any]) -> Request | None:
    reference, status = event.get("objectRef"), event.get("responseStatus")
    if reference is None or status is None or event["stage"] != "ResponseComplete":
        return None
    subresource = f"/{reference['subresource']}" if "subresource" in reference else ""
    return Request(
        user=event["user"].get("username", ""),
        verb=event["verb"],
        resource=reference["resource"] + subresource,
        name=reference.get("name", ""),
        code=status["code"],
        received=datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
        answered=datetime.fromisoformat(event["stageTimestamp"]).timestamp(),
    )


def writes(requests: Iterable[Request], user: str) -> Counter[str]:
    """Number of a user's writes of each kind."""
    return Counter(request.kind for request in requests if request.user == user and request.is_write)


def seconds_to_first_jobs(requests: Sequence[Request], user: str) -> float:
    """Time from the first object's creation until a user has created the first Job of the last object."""
    created = [each.received for each in requests if each.kind == "create lorafinetunes"]
    created += [each.received for each in requests if each.kind == "patch lorafinetunes" and each.code == 201]
    jobs = [each for each in requests if each.user == user and each.kind == "create jobs"]
    first = [each.answered for each in jobs if each.stage_of is not None and each.stage_of[1] is Stage.PREPARE]
    return max(first) - min(created)


def hand_off_seconds(requests: Sequence[Request], user: str) -> list[float]:
    """For each stage after the first: time from the end of its predecessor's Pod until a user created its Job."""
    ended: dict[tuple[str, Stage], float] = {}
    jobs: dict[tuple[str, Stage], float] = {}
    for request in requests:
        of = request.stage_of
        if of is None:
            continue
        if request.kind == "patch pods/status":
            # The last patch: a Pod's status no longer changes once its container has ended.
            ended[of] = max(request.answered, ended.get(of, 0.0))
        elif request.kind == "create jobs" and request.user == user:
            jobs[of] = request.answered
    stages = list(Stage)
    before = dict(zip(stages[1:], stages, strict=False))
    return [
        created - ended[name, before[stage]]
        for (name, stage), created in jobs.items()
        if stage in before and (name, before[stage]) in ended
    ]
