"""A LoraFineTune on a cluster that really runs it, with what tests wait for and read."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.processes import wait_for
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from support.kube import Document, Kube, condition

_KIND = (names.API_VERSION, names.KIND)
# A whole run takes 45 s on two idle cores.
_LIMIT_SECONDS = 480
_POLL_SECONDS = 0.1
ENDED = ("Succeeded", "Failed", "Refused")


@dataclass(frozen=True)
class LiveObject:
    """One object of a cluster, by its name."""

    kube: Kube
    namespace: str
    name: str

    @classmethod
    def apply(cls, kube: Kube, manifest: Document) -> "LiveObject":
        """Create or change the object that a manifest describes."""
        metadata = kube.apply(manifest)["metadata"]
        return cls(kube, metadata["namespace"], metadata["name"])

    def status(self) -> Document:
        """Its current status; empty before the first pass."""
        found = self.kube.get(*_KIND, self.namespace, self.name)
        assert found is not None, f"{self.namespace}/{self.name} is gone"
        status: Document = found.get("status") or {}
        return status

    def row(self, stage: Stage) -> Document:
        """Status of one stage; empty before the first pass."""
        return _row(self.status(), stage)

    def columns(self) -> Document:
        """Its columns in `kubectl get`, by their titles."""
        return self.kube.columns(*_KIND, self.namespace, self.name)

    def events(self, reason: str) -> list[str]:
        """Messages of its Events with a reason, oldest first."""
        found = self.kube.list("v1", "Event", self.namespace)
        own = [each for each in found if each["reason"] == reason and _is_about(each, self.name)]
        return [each["message"] for each in sorted(own, key=lambda each: int(each["metadata"]["resourceVersion"]))]

    def patch(self, spec: Document) -> None:
        """Change some fields of its spec."""
        self.kube.merge(*_KIND, self.namespace, self.name, {"spec": spec})

    def delete(self) -> None:
        """Request its deletion."""
        self.kube.delete(*_KIND, self.namespace, self.name)

    def wait_until_gone(self) -> None:
        """Wait until it no longer exists."""
        if not wait_for(lambda: self.kube.get(*_KIND, self.namespace, self.name) is None, _LIMIT_SECONDS):
            raise TimeoutError(f"{self.namespace}/{self.name} still exists; its status: {self.status()}")

    def wait(self, holds: Callable[[Document], bool], what: str) -> Document:
        """Its status, once it describes the current spec and a condition holds for it."""

        def is_current(found: Document) -> bool:
            status = found.get("status") or {}
            return status.get("observedGeneration") == found["metadata"]["generation"] and holds(status)

        found = self.kube.wait(*_KIND, self.namespace, self.name, is_current, what, _LIMIT_SECONDS)
        status: Document = found["status"]
        return status

    def wait_for_end(self) -> Document:
        """Its status, once its run has ended."""
        return self.wait(lambda status: status.get("phase") in ENDED, "the run has ended")

    def wait_for_reason(self, condition_type: str, reason: str, words: str = "") -> str:
        """The message of a condition, once it has this reason and these words."""

        def found(status: Document) -> Document:
            return condition({"status": status}, condition_type) or {"reason": "", "message": ""}

        def holds(status: Document) -> bool:
            return found(status)["reason"] == reason and words in found(status)["message"]

        return str(found(self.wait(holds, f"{condition_type} {reason} with {words!r}"))["message"])

    def wait_for_stage(self, stage: Stage, state: str = "Succeeded") -> Document:
        """The row of a stage in the status, once it has this state."""
        return _row(self.wait(lambda status: _row(status, stage).get("state") == state, f"{stage} is {state}"), stage)

    def wait_for_step(self, step: int) -> int:
        """Wait until the status reports at least this step of the training; returns the reported step."""

        def reached(status: Document) -> int:
            progress = status.get("progress") or {}
            return int(progress.get("step", 0)) if progress.get("stage") == Stage.TRAIN else 0

        return reached(self.wait(lambda status: reached(status) >= step, f"training has reached step {step}"))

    def wait_for_pod(self, stage: Stage, *, other_than: str = "") -> Document:
        """The stage's newest Pod that is not being deleted, once there is one.

        Args:
            other_than: name of an earlier Pod to ignore.
        """
        return self._wait_for_first(lambda: [pod for pod in self.pods(stage) if pod["metadata"]["name"] != other_than])

    def wait_for_job(self, stage: Stage) -> Document:
        """The stage's Job, once there is one."""
        return self._wait_for_first(lambda: self.jobs(stage))

    def _wait_for_first(self, find: Callable[[], list[Document]]) -> Document:
        deadline = time.monotonic() + _LIMIT_SECONDS
        while True:
            for found in find():
                if "deletionTimestamp" not in found["metadata"]:
                    return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"not found within {_LIMIT_SECONDS} s; the object is {self.status()['phase']}")
            time.sleep(_POLL_SECONDS)

    def pods(self, stage: Stage) -> list[Document]:
        """The stage's existing Pods, newest first."""
        found = self._owned("v1", "Pod", stage)
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True)

    def jobs(self, stage: Stage) -> list[Document]:
        """The stage's existing Jobs."""
        return self._owned("batch/v1", "Job", stage)

    def selector(self, stage: Stage) -> str:
        """Label selector of the stage's Jobs and Pods."""
        return f"{names.OWNER_LABEL}={names.label_value(self.name)},{names.STAGE_LABEL}={stage}"

    def lines(self, pod: str) -> list[Any]:
        """JSON objects that a stage's Pod has printed, one from each line; other lines are skipped."""
        lines = self.kube.logs(self.namespace, pod).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def _owned(self, api_version: str, kind: str, stage: Stage) -> list[Document]:
        return self.kube.list(api_version, kind, self.namespace, self.selector(stage))


def _row(status: Document, stage: Stage) -> Document:
    return next((row for row in status.get("stages", ()) if row["name"] == stage), {})


def _is_about(event: Document, name: str) -> bool:
    return (event["involvedObject"]["kind"], event["involvedObject"]["name"]) == (names.KIND, name)
