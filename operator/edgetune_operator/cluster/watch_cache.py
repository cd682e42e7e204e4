"""The watch cache: the objects, and the fields of their Jobs and Pods that a pass reads.

The specs of Jobs and Pods are dropped almost entirely. An ended Pod is kept until its Job is gone: evicted and
preempted Pods disappear within a second of their end, and only the watch shows how they ended.

Everything is kept as JSON text, which takes a quarter of the memory of the parsed dicts.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple, Self

from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.decisions.observe import containers_of, nodes_of
from edgetune_operator.decisions.pods import controller_uid
from edgetune_operator.telemetry import ObjectFigures

_METADATA = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "ownerReferences")
_POD_CONDITIONS = ("DisruptionTarget", "PodScheduled", "PodReadyToStartContainers")
_WATCHED_LABELS = (names.STAGE_LABEL, names.UID_LABEL, names.QUEUE_LABEL, names.PRIORITY_LABEL, names.INDEX_LABEL)
_JOB_SPEC = ("suspend", "activeDeadlineSeconds", "backoffLimit", "managedBy")
_INDEXED_JOB_SPEC = (*_JOB_SPEC, "completionMode", "completions")
_WATCHED_ANNOTATIONS = (
    names.DIGEST_ANNOTATION,
    names.RETRY_ANNOTATION,
    names.LOOKED_FOR_ANNOTATION,
    names.SETTINGS_ANNOTATION,
    names.PROFILE_ANNOTATION,
    names.PRICES_ANNOTATION,
    names.FIXED_SETTINGS_ANNOTATION,
)


class Kind(StrEnum):
    """The cached resources."""

    OBJECT = names.PLURAL
    JOB = "jobs"
    POD = "pods"


@dataclass(frozen=True, slots=True)
class Document:
    """One version of an object, Job or Pod."""

    namespace: str
    uid: str
    version: int
    """Resource version: within one API server, larger is newer."""

    text: bytes
    """The cached fields as JSON, without the resource version."""

    @classmethod
    def of(cls, body: Mapping[str, Any], kept: Mapping[str, Any]) -> "Document":
        """The version in a body; `kept` are the fields that a pass reads."""
        metadata = body["metadata"]
        return cls(sys.intern(metadata["namespace"]), metadata["uid"], version_of(body), _encode(kept))

    def read(self) -> dict[str, Any]:
        """The cached fields, with the resource version."""
        body: dict[str, Any] = json.loads(self.text)
        body["metadata"]["resourceVersion"] = str(self.version)
        return body

    def supersedes(self, known: "Document | None") -> bool:
        """Whether it replaces the cached version: it is not older, or belongs to another object with the same name."""
        return known is None or known.uid != self.uid or self.version >= known.version

    def differs_from(self, known: "Document | None") -> bool:
        """Whether a pass would see a difference from the cached version."""
        return known is None or known.uid != self.uid or self.text != known.text


class Owner(NamedTuple):
    """Owner of a Job or a Pod. It has the namespace because a Pod in another namespace can claim any UID."""

    namespace: str
    uid: str

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        """The object with this metadata."""
        return cls(metadata["namespace"], metadata["uid"])


class Cache:
    """Latest versions of objects, Jobs and Pods. Own writes are added immediately, so that the next pass sees them."""

    def __init__(self) -> None:
        self._objects: dict[Key, Document] = {}
        self._phases: dict[Key, str] = {}
        self._figures: dict[Key, ObjectFigures] = {}
        self._jobs: defaultdict[Owner, dict[str, Document]] = defaultdict(dict)
        self._pods: defaultdict[Owner, dict[str, Document]] = defaultdict(dict)
        self._keys: dict[Owner, Key] = {}
        self._owners: dict[str, Owner] = {}
        """Owner of each cached Job and Pod by its UID: anybody can edit the owner reference or label that says it."""

    def put(self, kind: Kind, body: Mapping[str, Any]) -> Key | None:
        """Add what a watch or a list reported, unless a newer version is cached.

        Returns:
            The key of the object that it is or belongs to. None if the object is unknown, or if a pass would see no
            difference: the watch returned an own write, or no field changed that a pass reads.
        """
        match kind:
            case Kind.OBJECT:
                return self.put_object(body)
            case Kind.JOB:
                return self.put_job(body)
            case Kind.POD:
                return self._put_pod(body)

    def remove(self, kind: Kind, body: Mapping[str, Any]) -> Key | None:
        """Remove what was deleted. Returns the key of the object that it belonged to; None if the object is unknown."""
        match kind:
            case Kind.OBJECT:
                self._remove_object(body)
                return None
            case Kind.JOB:
                return self._remove_job(body)
            case Kind.POD:
                return self._remove_pod(body)

    def documents(self, kind: Kind, namespace: str | None = None) -> list[Document]:
        """All cached documents of a kind, in one namespace or in all."""
        held = self._jobs if kind is Kind.JOB else self._pods
        every = [self._objects] if kind is Kind.OBJECT else held.values()
        return [each for some in every for each in some.values() if namespace in (None, each.namespace)]

    def key_of_job(self, uid: str) -> Key | None:
        """The object to which a cached Job belongs, by the Job's UID; None if it is unknown."""
        owner = self._owners.get(uid)
        return self._keys.get(owner) if owner is not None else None

    def keys(self, namespace: str | None = None) -> list[Key]:
        """Keys of all objects, in one namespace or in all."""
        return [key for key in self._objects if namespace in (None, key.namespace)]

    def get_object(self, key: Key) -> dict[str, Any] | None:
        """An object; None if there is none."""
        document = self._objects.get(key)
        return document.read() if document is not None else None

    def phases(self, is_counted: Callable[[str], bool] = lambda _: True) -> Counter[str]:
        """Number of objects in each phase, in the namespaces that are counted."""
        return Counter(phase for key, phase in self._phases.items() if is_counted(key.namespace))

    def figures(self, is_counted: Callable[[str], bool] = lambda _: True) -> dict[Key, ObjectFigures]:
        """Figures of the objects for the metrics, in the namespaces that are counted."""
        return {key: figures for key, figures in self._figures.items() if is_counted(key.namespace)}

    def put_object(self, body: Mapping[str, Any]) -> Key | None:
        """Add an object; see `put`."""
        key = Key(body["metadata"]["namespace"], body["metadata"]["name"])
        known, document = self._objects.get(key), Document.of(body, _trimmed_object(body))
        if not document.supersedes(known):
            return None
        self._objects[key] = document
        status = body.get("status") or {}
        self._phases[key], self._figures[key] = status.get("phase", "Pending"), ObjectFigures.of(status)
        self._keys[Owner.of(body["metadata"])] = key
        return key if document.differs_from(known) else None

    def _remove_object(self, body: Mapping[str, Any]) -> None:
        """Remove a deleted object, but not one with the same name that was created since."""
        owner = Owner.of(body["metadata"])
        key = self._keys.pop(owner, None)
        if key in self._objects and self._objects[key].uid == owner.uid:
            del self._objects[key], self._phases[key], self._figures[key]
        for document in (*self._jobs.pop(owner, {}).values(), *self._pods.pop(owner, {}).values()):
            self._owners.pop(document.uid, None)

    def put_job(self, body: Mapping[str, Any]) -> Key | None:
        """Add a Job; see `put`."""
        owner, uid = owner_of_job(body), body["metadata"]["uid"]
        known = self._owners.get(uid)
        if known is None or known == owner:
            return self._put_owned(self._jobs, owner, body, _trimmed_job(body))
        name = body["metadata"]["name"]
        if self._jobs[known][name].version > version_of(body):
            return None
        # Somebody took the Job from its owner, which has to know.
        self._forget_job(known, name, uid)
        self._put_owned(self._jobs, owner, body, _trimmed_job(body))
        return self._keys.get(known)

    def _remove_job(self, body: Mapping[str, Any]) -> Key | None:
        """Remove a deleted Job and its Pods."""
        owner = self._owners.get(body["metadata"]["uid"]) or owner_of_job(body)
        if owner is None:
            return None
        self._forget_job(owner, body["metadata"]["name"], body["metadata"]["uid"])
        return self._keys.get(owner)

    def _forget_job(self, owner: Owner, name: str, uid: str) -> None:
        """Remove a Job from an owner's, with its Pods."""
        jobs, pods = self._jobs[owner], self._pods[owner]
        if name in jobs and jobs[name].uid == uid:
            del jobs[name]
        for pod in [name for name, pod in pods.items() if controller_uid(pod.read(), "Job") == uid]:
            self._owners.pop(pods.pop(pod).uid, None)
        self._owners.pop(uid, None)
        self._drop_if_empty(owner)

    def uid_of_job(self, owner: Mapping[str, Any], name: str) -> str:
        """UID of an object's Job; empty if it is not cached."""
        known = self._jobs.get(Owner.of(owner), {}).get(name)
        return known.uid if known is not None else ""

    def mark_job_deleting(self, owner: Mapping[str, Any], name: str, time: str) -> None:
        """Mark an object's Job as being deleted; the watch confirms it later."""
        known = self._jobs.get(Owner.of(owner), {}).get(name)
        if known is not None:
            job = json.loads(known.text)
            job["metadata"].setdefault("deletionTimestamp", time)
            self._jobs[Owner.of(owner)][name] = replace(known, text=_encode(job))

    def forget_job(self, owner: Mapping[str, Any], name: str) -> None:
        """Remove an object's Job that no longer exists; the watch may have missed its deletion."""
        known = self._jobs.get(Owner.of(owner), {}).get(name)
        if known is not None:
            self._remove_job(known.read())

    def _put_pod(self, body: Mapping[str, Any]) -> Key | None:
        """Add a Pod of an object's Job. A Pod whose label changes stays with its first owner: its Job decides."""
        owner = self._owners.get(body["metadata"]["uid"]) or _owner_by_label(body)
        return self._put_owned(self._pods, owner, body, _trimmed_pod(body))

    def _put_owned(
        self,
        held: defaultdict[Owner, dict[str, Document]],
        owner: Owner | None,
        body: Mapping[str, Any],
        kept: Mapping[str, Any],
    ) -> Key | None:
        if owner is None:
            return None
        name, document = body["metadata"]["name"], Document.of(body, kept)
        known = held[owner].get(name)
        if not document.supersedes(known):
            return None
        if known is not None:
            self._owners.pop(known.uid, None)
        held[owner][name] = document
        self._owners[document.uid] = owner
        return self._keys.get(owner) if document.differs_from(known) else None

    def _remove_pod(self, body: Mapping[str, Any]) -> Key | None:
        """Remove a deleted Pod, unless it had ended and its Job still exists."""
        owner = self._owners.get(body["metadata"]["uid"]) or _owner_by_label(body)
        if owner is None:
            return None
        name, pod = body["metadata"]["name"], _trimmed_pod(body)
        job, known = controller_uid(pod, "Job"), self._pods[owner].get(name)
        if _has_ended(pod) and any(held.uid == job for held in self._jobs[owner].values()):
            # Nothing of it runs any longer, whatever the kubelet could still report.
            pod["status"]["phase"] = "Succeeded" if pod["status"].get("phase") == "Succeeded" else "Failed"
            self._put_owned(self._pods, owner, body, pod)
        elif known is not None and known.uid == body["metadata"]["uid"]:
            del self._pods[owner][name]
            self._owners.pop(known.uid, None)
        self._drop_if_empty(owner)
        return self._keys.get(owner)

    def _drop_if_empty(self, owner: Owner) -> None:
        held: Iterable[defaultdict[Owner, dict[str, Document]]] = (self._jobs, self._pods)
        for of_owner in held:
            if not of_owner[owner]:
                del of_owner[owner]

    def jobs_of(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Jobs of the object with this metadata."""
        return [job.read() for job in self._jobs.get(Owner.of(owner), {}).values()]

    def pods_of(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Pods with the label of the object with this metadata, including ended ones that no longer exist."""
        return [pod.read() for pod in self._pods.get(Owner.of(owner), {}).values()]


def owner_of_job(job: Mapping[str, Any]) -> Owner | None:
    """The object that a Job belongs to; for a clean-up Job, which has no owner reference, by its label."""
    if (job["metadata"].get("labels") or {}).get(names.STAGE_LABEL) == names.CLEAN_UP:
        return _owner_by_label(job)
    uid = controller_uid(job, names.KIND)
    return Owner(job["metadata"]["namespace"], uid) if uid is not None else None


def _owner_by_label(body: Mapping[str, Any]) -> Owner | None:
    uid = (body["metadata"].get("labels") or {}).get(names.UID_LABEL)
    return Owner(body["metadata"]["namespace"], uid) if uid is not None else None


def version_of(body: Mapping[str, Any]) -> int:
    """Resource version of a body from the API server; 0 if it has none."""
    return int(body["metadata"].get("resourceVersion") or 0)


def _encode(kept: Mapping[str, Any]) -> bytes:
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()


def _has_ended(pod: Mapping[str, Any]) -> bool:
    """Whether the stage's container has ended, or its node is gone and cannot report it. Others do not matter."""
    containers = pod["status"]["containerStatuses"]
    terminated = any("terminated" in each["state"] for each in containers if each["name"] == names.CONTAINER)
    return terminated or pod["status"].get("phase") == "Failed"


def _trimmed_object(body: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {k: value for k, value in body["metadata"].items() if k not in ("managedFields", "resourceVersion")}
    annotations = metadata.get("annotations") or {}
    # kubectl's own annotation is as large as the object.
    metadata["annotations"] = {
        key: value for key, value in annotations.items() if key != "kubectl.kubernetes.io/last-applied-configuration"
    }
    return {**body, "metadata": metadata}


def _picked(values: Mapping[str, Any] | None, wanted: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in (values or {}).items() if key in wanted}


def _trimmed_job(body: Mapping[str, Any]) -> dict[str, Any]:
    metadata = body["metadata"]
    status = body.get("status") or {}
    kept = ("startTime", "completionTime", "active", "failed", "succeeded", "conditions")
    resources = [{"name": each["name"], "resources": each.get("resources") or {}} for each in containers_of(body)]
    return {
        "metadata": {
            **_picked(metadata, _METADATA),
            "labels": _picked(metadata.get("labels"), _WATCHED_LABELS),
            "annotations": _picked(metadata.get("annotations"), _WATCHED_ANNOTATIONS),
        },
        "spec": {
            **_picked(body.get("spec"), _INDEXED_JOB_SPEC if nodes_of(body) > 1 else _JOB_SPEC),
            "template": {"spec": {"containers": resources}},
        },
        "status": _picked(status, kept),
    }


def _trimmed_pod(body: Mapping[str, Any]) -> dict[str, Any]:
    metadata, status = body["metadata"], body.get("status") or {}
    return {
        "metadata": {
            **_picked(metadata, _METADATA),
            "labels": _picked(metadata.get("labels"), _WATCHED_LABELS),
        },
        "spec": _picked(body.get("spec"), ("nodeName",)),
        "status": {
            **_picked(status, ("phase", "reason", "message", "podIP")),
            "conditions": [c for c in status.get("conditions") or [] if c.get("type") in _POD_CONDITIONS],
            "containerStatuses": _states(status.get("containerStatuses")),
            **({"initContainerStatuses": _states(found)} if (found := status.get("initContainerStatuses")) else {}),
        },
    }


def _states(containers: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    return [{"name": container["name"], "state": container.get("state") or {}} for container in containers or ()]
