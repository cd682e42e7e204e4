"""Fluent builders of Kubernetes objects as the API server returns them. Each step returns a new builder."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any, Self

from edgetune_contract.request import Failure, Result
from edgetune_contract.stages import ExitCode, Stage, reason_for
from edgetune_operator.api import names

UID = "11111111-2222-3333-4444-555555555555"
NAMESPACE = "team-a"
CREATED = "2026-11-24T08:00:00Z"


@dataclass(frozen=True)
class ObjectBuilder:
    """A LoraFineTune."""

    document: dict[str, Any]

    def with_spec(self, path: str, value: Any) -> Self:
        """Set a field such as lora.rank."""
        return self._changed("spec", path, value)

    def without_spec(self, path: str) -> Self:
        """Remove a field of the spec."""
        built = self.build()
        *parents, last = path.split(".")
        node = built["spec"]
        for name in parents:
            node = node[name]
        del node[last]
        return replace(self, document=built)

    def edited(self, path: str, value: Any) -> Self:
        """Set a field of the spec as an edit of an existing object: the generation increases."""
        return self.with_spec(path, value).with_metadata(generation=self.document["metadata"]["generation"] + 1)

    def with_metadata(self, **fields: Any) -> Self:
        """Set fields of the metadata."""
        built = self.build()
        built["metadata"] |= fields
        return replace(self, document=built)

    def with_retry_requested(self, token: str) -> Self:
        """Set the annotation that requests a retry."""
        return self.with_metadata(annotations={names.RETRY_REQUESTED_ANNOTATION: token})

    def with_status(self, status: dict[str, Any]) -> Self:
        """Set the status of an earlier pass."""
        return replace(self, document=self.build() | {"status": copy.deepcopy(status)})

    def build(self) -> dict[str, Any]:
        """The object."""
        return copy.deepcopy(self.document)

    def _changed(self, top: str, path: str, value: Any) -> Self:
        built = self.build()
        *parents, last = path.split(".")
        node = built[top]
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
        return replace(self, document=built)


def lora_fine_tune(name: str = "sensor-faults") -> ObjectBuilder:
    """The smallest valid LoraFineTune."""
    return ObjectBuilder(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "namespace": NAMESPACE, "uid": UID, "generation": 1},
            "spec": {
                "baseModel": {"uri": "s3://models/smollm2-135m-instruct"},
                "dataset": {"train": {"uri": "s3://datasets/sensor/train.jsonl"}},
            },
        }
    )


@dataclass(frozen=True)
class JobBuilder:
    """A Job of a stage."""

    stage: Stage
    digest: str
    owner_uid: str = UID
    name: str = ""
    retry: str = ""
    created: str = CREATED
    status: dict[str, Any] = field(default_factory=lambda: {"active": 1, "startTime": CREATED})
    deleting: bool = False

    def complete(self, at: str = "2026-11-24T08:01:00Z") -> Self:
        """The Job succeeded."""
        condition = {"type": "Complete", "status": "True", "lastTransitionTime": at}
        status = {"succeeded": 1, "startTime": self.created, "completionTime": at, "conditions": [condition]}
        return replace(self, status=status)

    def failed(self, reason: str, message: str = "", attempts: int = 1, at: str = "2026-11-24T08:01:00Z") -> Self:
        """The Job failed."""
        condition = {"type": "Failed", "status": "True", "reason": reason, "message": message, "lastTransitionTime": at}
        return replace(self, status={"failed": attempts, "startTime": self.created, "conditions": [condition]})

    def build(self) -> dict[str, Any]:
        """The Job."""
        name = self.name or names.job_name("sensor-faults", self.stage, self.digest)
        metadata: dict[str, Any] = {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-of-{name}",
            "creationTimestamp": self.created,
            "labels": {names.STAGE_LABEL: self.stage.value},
            "annotations": {names.DIGEST_ANNOTATION: self.digest, names.RETRY_ANNOTATION: self.retry},
            "ownerReferences": [{"kind": names.KIND, "uid": self.owner_uid, "controller": True}],
        }
        if self.deleting:
            metadata["deletionTimestamp"] = CREATED
        return {"metadata": metadata, "status": copy.deepcopy(self.status)}


@dataclass(frozen=True)
class PodBuilder:
    """A Pod of a Job: one attempt."""

    job: str
    name: str = "pod-1"
    created: str = CREATED
    phase: str = "Pending"
    state: dict[str, Any] = field(default_factory=dict)
    conditions: tuple[dict[str, str], ...] = ()
    kubelet: dict[str, str] = field(default_factory=dict)
    now: str = CREATED
    job_uid: str = ""
    sidecar: str = ""
    is_native: bool = False
    node: int | None = None
    """Completion index of a Pod of an Indexed Job."""

    def running(self) -> Self:
        """The container is running."""
        return replace(self, phase="Running", state={"running": {"startedAt": self.created}})

    def waiting(self, reason: str, message: str = "") -> Self:
        """The container waits, for example for its image."""
        return replace(self, phase="Pending", state={"waiting": {"reason": reason, "message": message}})

    def unschedulable(self, message: str) -> Self:
        """No node fits the Pod."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        return replace(self, phase="Pending", state={}, conditions=(condition,))

    def scheduled(self, at: str) -> Self:
        """It was bound to a node."""
        condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": at}
        return replace(self, conditions=(*self.conditions, condition))

    def set_up(self) -> Self:
        """Its sandbox, network and volumes are ready."""
        condition = {"type": "PodReadyToStartContainers", "status": "True"}
        return replace(self, conditions=(*self.conditions, condition))

    def ended(self, exit_code: int, message: str = "", reason: str = "") -> Self:
        """The container ended."""
        reason = reason or ("Completed" if exit_code == 0 else "Error")
        terminated = {"exitCode": exit_code, "message": message, "reason": reason}
        terminated |= {"startedAt": self.created, "finishedAt": self.now}
        return replace(self, phase="Failed" if exit_code else "Succeeded", state={"terminated": terminated})

    def succeeded(self, result: Result) -> Self:
        """The stage succeeded with this result."""
        return self.ended(ExitCode.DONE, result.encode().decode())

    def failed(self, stage: Stage, digest: str, exit_code: int, message: str) -> Self:
        """The stage failed with this message."""
        result = failed_result(stage, digest, exit_code, reason_for(exit_code), message)
        return self.ended(exit_code, result.encode().decode())

    def disrupted(self, reason: str = "EvictionByEvictionAPI") -> Self:
        """The Pod was stopped from outside."""
        condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": self.now}
        return replace(self, conditions=(*self.conditions, condition))

    def outlived_by(self, container: str, *, native: bool = False) -> Self:
        """A container beside the stage's is still running, such as one that a service mesh injects."""
        return replace(self, phase="Running", sidecar=container, is_native=native)

    def failed_by_kubelet(self, reason: str, message: str = "") -> Self:
        """The kubelet failed the whole Pod, for example by evicting it."""
        return replace(self, phase="Failed", kubelet={"reason": reason, "message": message})

    @property
    def _index(self) -> dict[str, str]:
        return {} if self.node is None else {names.INDEX_LABEL: str(self.node)}

    def build(self) -> dict[str, Any]:
        """The Pod."""
        containers = [{"name": names.CONTAINER, "state": copy.deepcopy(self.state)}] if self.state else []
        beside = [{"name": self.sidecar, "state": {"running": {"startedAt": self.created}}}] if self.sidecar else []
        owner = {"kind": "Job", "name": self.job, "uid": self.job_uid or f"uid-of-{self.job}", "controller": True}
        return {
            "metadata": {
                "name": self.name,
                "namespace": NAMESPACE,
                "uid": f"uid-of-{self.name}",
                "creationTimestamp": self.created,
                "labels": {names.UID_LABEL: UID, **self._index},
                "ownerReferences": [owner],
            },
            "status": {
                **self.kubelet,
                "phase": self.phase,
                "containerStatuses": [*containers, *([] if self.is_native else beside)],
                **({"initContainerStatuses": beside} if beside and self.is_native else {}),
                "conditions": [dict(condition) for condition in self.conditions],
            },
        }


def failed_result(
    stage: Stage, digest: str, exit_code: int, reason: str, message: str, step: int | None = None
) -> Result:
    """Result of a stage that did not finish."""
    return Result(stage=stage, digest=digest, failure=Failure.brief(exit_code, reason, message, step))
