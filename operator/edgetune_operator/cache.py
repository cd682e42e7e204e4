"""What the watches have told so far: the objects, and of their Jobs and Pods what a pass looks at.

Jobs and Pods are kept without their specs. A Pod that has ended stays until its Job is gone: evicted and preempted Pods
disappear within a second of their end, and only the watch sees how they ended.

All of it is kept as JSON text, which takes a quarter of the memory of the dicts that it stands for.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from edgetune_operator import names
from edgetune_operator.observe import JOB_NAME_LABEL
from edgetune_operator.reconcile import Key

_METADATA = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "ownerReferences")
_POD_CONDITIONS = ("DisruptionTarget", "PodScheduled")
_WATCHED_LABELS = (names.STAGE_LABEL, names.UID_LABEL, JOB_NAME_LABEL)
_WATCHED_ANNOTATIONS = (names.DIGEST_ANNOTATION, names.RETRY_ANNOTATION, names.SETTINGS_ANNOTATION)


class Kind(StrEnum):
    """What is cached."""

    OBJECT = names.PLURAL
    JOB = "jobs"
    POD = "pods"


@dataclass(frozen=True, slots=True)
class Document:
    """An object, Job or Pod in one of its states."""

    namespace: str
    uid: str
    version: int
    """Resource version: larger is newer, for all that one API server holds."""

    text: bytes
    """What is kept of it, without its version."""

    @classmethod
    def of(cls, body: Mapping[str, Any], kept: Mapping[str, Any]) -> "Document":
        """The state in a body; `kept` is what a pass looks at."""
        metadata = body["metadata"]
        return cls(sys.intern(metadata["namespace"]), metadata["uid"], version_of(body), _encode(kept))

    def read(self) -> dict[str, Any]:
        """What is kept of it, with its version."""
        body: dict[str, Any] = json.loads(self.text)
        body["metadata"]["resourceVersion"] = str(self.version)
        return body

    def supersedes(self, known: "Document | None") -> bool:
        """Whether it is a state of something else than the known one, or not an older one."""
        return known is None or known.uid != self.uid or self.version >= known.version

    def tells_more_than(self, known: "Document | None") -> bool:
        """Whether a pass would see something that it did not see in the known one."""
        return known is None or known.uid != self.uid or self.text != known.text


class Cache:
    """Latest state of objects, Jobs and Pods. Own writes go in at once, so that a pass never sees less than it did."""

    def __init__(self) -> None:
        self._objects: dict[Key, Document] = {}
        self._phases: dict[Key, str] = {}
        self._jobs: defaultdict[str, dict[str, Document]] = defaultdict(dict)
        self._pods: defaultdict[str, dict[str, Document]] = defaultdict(dict)
        self._keys: dict[str, Key] = {}
        """Keys by the object's UID."""

    def put(self, kind: Kind, body: Mapping[str, Any]) -> Key | None:
        """Take in what a watch or a list told, unless a newer state of it is here already.

        Returns:
            The key of the object that it is, or belongs to; None if that is not known, or if a pass would see nothing
            new: an own write that comes back, or a change of what no pass looks at.
        """
        match kind:
            case Kind.OBJECT:
                return self.put_object(body)
            case Kind.JOB:
                return self.put_job(body)
            case Kind.POD:
                return self._put_pod(body)

    def remove(self, kind: Kind, body: Mapping[str, Any]) -> Key | None:
        """Something is gone; the key of the object that it belonged to, if that is there."""
        match kind:
            case Kind.OBJECT:
                self._remove_object(body)
                return None
            case Kind.JOB:
                return self._remove_job(body)
            case Kind.POD:
                return self._remove_pod(body)

    def documents(self, kind: Kind, namespace: str | None = None) -> list[Document]:
        """All that is here of a kind, in one namespace or in all."""
        held = self._jobs if kind is Kind.JOB else self._pods
        every = [self._objects] if kind is Kind.OBJECT else held.values()
        return [each for some in every for each in some.values() if namespace in (None, each.namespace)]

    def keys(self, namespace: str | None = None) -> list[Key]:
        """Keys of all objects, in one namespace or in all."""
        return [key for key in self._objects if namespace in (None, key.namespace)]

    def get_object(self, key: Key) -> dict[str, Any] | None:
        """An object; None if there is none."""
        document = self._objects.get(key)
        return document.read() if document is not None else None

    def phases(self) -> Counter[str]:
        """How many objects are in each phase."""
        return Counter(self._phases.values())

    def put_object(self, body: Mapping[str, Any]) -> Key | None:
        """Take in an object; see `put`."""
        key = Key(body["metadata"]["namespace"], body["metadata"]["name"])
        known, document = self._objects.get(key), Document.of(body, _trimmed_object(body))
        if not document.supersedes(known):
            return None
        self._objects[key] = document
        self._phases[key] = (body.get("status") or {}).get("phase", "Pending")
        self._keys[document.uid] = key
        return key if document.tells_more_than(known) else None

    def _remove_object(self, body: Mapping[str, Any]) -> None:
        """Forget a deleted object; one of the same name that was created since stays."""
        uid = body["metadata"]["uid"]
        key = self._keys.pop(uid, None)
        if key in self._objects and self._objects[key].uid == uid:
            del self._objects[key], self._phases[key]
        self._jobs.pop(uid, None)
        self._pods.pop(uid, None)

    def put_job(self, body: Mapping[str, Any]) -> Key | None:
        """Take in a Job; see `put`."""
        uid = uid_of_owner(body)
        return self._put_owned(self._jobs, uid, body, _trimmed_job(body)) if uid is not None else None

    def _remove_job(self, body: Mapping[str, Any]) -> Key | None:
        """Forget a deleted Job and its Pods."""
        uid = uid_of_owner(body)
        if uid is None:
            return None
        metadata, jobs, pods = body["metadata"], self._jobs[uid], self._pods[uid]
        if metadata["name"] in jobs and jobs[metadata["name"]].uid == metadata["uid"]:
            del jobs[metadata["name"]]
        for name in [name for name, pod in pods.items() if job_uid_of(pod.read()) == metadata["uid"]]:
            del pods[name]
        self._drop_if_empty(uid)
        return self._keys.get(uid)

    def mark_job_deleting(self, uid: str, name: str, time: str) -> None:
        """Note that the deletion of an object's Job was accepted; the watch confirms it later."""
        known = self._jobs.get(uid, {}).get(name)
        if known is not None:
            job = json.loads(known.text)
            job["metadata"].setdefault("deletionTimestamp", time)
            self._jobs[uid][name] = replace(known, text=_encode(job))

    def forget_job(self, uid: str, name: str) -> None:
        """Forget an object's Job that turned out to be gone; the watch may have missed its end."""
        known = self._jobs.get(uid, {}).get(name)
        if known is not None:
            self._remove_job(known.read())

    def _put_pod(self, body: Mapping[str, Any]) -> Key | None:
        """Take in a Pod of an object's Job."""
        uid = _uid_of_pod(body)
        return self._put_owned(self._pods, uid, body, _trimmed_pod(body)) if uid is not None else None

    def _put_owned(
        self,
        held: defaultdict[str, dict[str, Document]],
        uid: str,
        body: Mapping[str, Any],
        kept: Mapping[str, Any],
    ) -> Key | None:
        name, document = body["metadata"]["name"], Document.of(body, kept)
        known = held[uid].get(name)
        if not document.supersedes(known):
            return None
        held[uid][name] = document
        return self._keys.get(uid) if document.tells_more_than(known) else None

    def _remove_pod(self, body: Mapping[str, Any]) -> Key | None:
        """A Pod is gone: one that had ended stays as long as its Job, another is forgotten."""
        uid = _uid_of_pod(body)
        if uid is None:
            return None
        name, pod = body["metadata"]["name"], _trimmed_pod(body)
        job = job_uid_of(pod)
        if _has_ended(pod) and any(known.uid == job for known in self._jobs[uid].values()):
            self._pods[uid][name] = Document.of(body, pod)
        else:
            self._pods[uid].pop(name, None)
        self._drop_if_empty(uid)
        return self._keys.get(uid)

    def _drop_if_empty(self, uid: str) -> None:
        held: Iterable[defaultdict[str, dict[str, Document]]] = (self._jobs, self._pods)
        for of_uid in held:
            if not of_uid[uid]:
                del of_uid[uid]

    def jobs_of(self, uid: str) -> list[dict[str, Any]]:
        """Jobs of an object."""
        return [job.read() for job in self._jobs.get(uid, {}).values()]

    def pods_of(self, uid: str) -> list[dict[str, Any]]:
        """Pods of an object's Jobs, also ended ones that are gone."""
        return [pod.read() for pod in self._pods.get(uid, {}).values()]


def uid_of_owner(job: Mapping[str, Any]) -> str | None:
    """UID of the object that a Job belongs to; of a clean-up Job, which has no owner, by its label."""
    labels = job["metadata"].get("labels") or {}
    if labels.get(names.STAGE_LABEL) == names.CLEAN_UP:
        uid: str | None = labels.get(names.UID_LABEL)
        return uid
    return _owner_uid(job, names.KIND)


def job_uid_of(pod: Mapping[str, Any]) -> str | None:
    """UID of the Job that controls a Pod; None if none does."""
    return _owner_uid(pod, "Job")


def _uid_of_pod(body: Mapping[str, Any]) -> str | None:
    uid: str | None = (body["metadata"].get("labels") or {}).get(names.UID_LABEL)
    return uid


def version_of(body: Mapping[str, Any]) -> int:
    """Resource version of a body as the API server gives it; 0 if it has none."""
    return int(body["metadata"].get("resourceVersion") or 0)


def _encode(kept: Mapping[str, Any]) -> bytes:
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()


def _has_ended(pod: Mapping[str, Any]) -> bool:
    """Whether a Pod's container has ended, or its node is gone and cannot say so."""
    terminated = any("terminated" in container["state"] for container in pod["status"]["containerStatuses"])
    return terminated or pod["status"].get("phase") == "Failed"


def _owner_uid(body: Mapping[str, Any], kind: str) -> str | None:
    owners = body["metadata"].get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller") and owner["kind"] == kind), None)


def _trimmed_object(body: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {k: value for k, value in body["metadata"].items() if k not in ("managedFields", "resourceVersion")}
    annotations = metadata.get("annotations") or {}
    # What kubectl keeps for itself is as large as the object.
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
    return {
        "metadata": {
            **_picked(metadata, _METADATA),
            "labels": _picked(metadata.get("labels"), _WATCHED_LABELS),
            "annotations": _picked(metadata.get("annotations"), _WATCHED_ANNOTATIONS),
        },
        "spec": _picked(body.get("spec"), ("suspend", "activeDeadlineSeconds", "backoffLimit")),
        "status": _picked(status, kept),
    }


def _trimmed_pod(body: Mapping[str, Any]) -> dict[str, Any]:
    metadata, status = body["metadata"], body.get("status") or {}
    return {
        "metadata": {
            **_picked(metadata, _METADATA),
            "labels": _picked(metadata.get("labels"), _WATCHED_LABELS),
        },
        "status": {
            **_picked(status, ("phase", "reason", "message", "podIP")),
            "conditions": [c for c in status.get("conditions") or [] if c.get("type") in _POD_CONDITIONS],
            "containerStatuses": [
                {"name": container["name"], "state": container.get("state") or {}}
                for container in status.get("containerStatuses") or []
            ],
        },
    }
