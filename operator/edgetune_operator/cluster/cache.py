"""What the watches have told so far: the objects, and of their Jobs and Pods what a pass looks at.

Of the specs of Jobs and Pods, next to nothing is kept. A Pod that has ended stays until its Job is gone: evicted and
preempted Pods disappear within a second of their end, and only the watch sees how they ended.

All of it is kept as JSON text, which takes a quarter of the memory of the dicts that it stands for.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple, Self

from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.decisions.observe import containers_of, controller_uid

_METADATA = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "ownerReferences")
_POD_CONDITIONS = ("DisruptionTarget", "PodScheduled")
_WATCHED_LABELS = (names.STAGE_LABEL, names.UID_LABEL)
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


class Owner(NamedTuple):
    """Whose a Job or a Pod is. A UID alone does not tell: somebody may name it in a namespace of his own."""

    namespace: str
    uid: str

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        """The object with this metadata."""
        return cls(metadata["namespace"], metadata["uid"])


class Cache:
    """Latest state of objects, Jobs and Pods. Own writes go in at once, so that a pass never sees less than it did."""

    def __init__(self) -> None:
        self._objects: dict[Key, Document] = {}
        self._phases: dict[Key, str] = {}
        self._jobs: defaultdict[Owner, dict[str, Document]] = defaultdict(dict)
        self._pods: defaultdict[Owner, dict[str, Document]] = defaultdict(dict)
        self._keys: dict[Owner, Key] = {}

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
        self._keys[Owner.of(body["metadata"])] = key
        return key if document.tells_more_than(known) else None

    def _remove_object(self, body: Mapping[str, Any]) -> None:
        """Forget a deleted object; one of the same name that was created since stays."""
        owner = Owner.of(body["metadata"])
        key = self._keys.pop(owner, None)
        if key in self._objects and self._objects[key].uid == owner.uid:
            del self._objects[key], self._phases[key]
        self._jobs.pop(owner, None)
        self._pods.pop(owner, None)

    def put_job(self, body: Mapping[str, Any]) -> Key | None:
        """Take in a Job; see `put`."""
        return self._put_owned(self._jobs, owner_of_job(body), body, _trimmed_job(body))

    def _remove_job(self, body: Mapping[str, Any]) -> Key | None:
        """Forget a deleted Job and its Pods."""
        owner = owner_of_job(body)
        if owner is None:
            return None
        metadata, jobs, pods = body["metadata"], self._jobs[owner], self._pods[owner]
        if metadata["name"] in jobs and jobs[metadata["name"]].uid == metadata["uid"]:
            del jobs[metadata["name"]]
        for name in [name for name, pod in pods.items() if controller_uid(pod.read(), "Job") == metadata["uid"]]:
            del pods[name]
        self._drop_if_empty(owner)
        return self._keys.get(owner)

    def mark_job_deleting(self, owner: Mapping[str, Any], name: str, time: str) -> None:
        """Note that the deletion of an object's Job was accepted; the watch confirms it later."""
        known = self._jobs.get(Owner.of(owner), {}).get(name)
        if known is not None:
            job = json.loads(known.text)
            job["metadata"].setdefault("deletionTimestamp", time)
            self._jobs[Owner.of(owner)][name] = replace(known, text=_encode(job))

    def forget_job(self, owner: Mapping[str, Any], name: str) -> None:
        """Forget an object's Job that turned out to be gone; the watch may have missed its end."""
        known = self._jobs.get(Owner.of(owner), {}).get(name)
        if known is not None:
            self._remove_job(known.read())

    def _put_pod(self, body: Mapping[str, Any]) -> Key | None:
        """Take in a Pod of an object's Job."""
        return self._put_owned(self._pods, _owner_by_label(body), body, _trimmed_pod(body))

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
        held[owner][name] = document
        return self._keys.get(owner) if document.tells_more_than(known) else None

    def _remove_pod(self, body: Mapping[str, Any]) -> Key | None:
        """A Pod is gone: one that had ended stays as long as its Job, another is forgotten."""
        owner = _owner_by_label(body)
        if owner is None:
            return None
        name, pod = body["metadata"]["name"], _trimmed_pod(body)
        job = controller_uid(pod, "Job")
        if _has_ended(pod) and any(known.uid == job for known in self._jobs[owner].values()):
            self._pods[owner][name] = Document.of(body, pod)
        else:
            self._pods[owner].pop(name, None)
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
        """Pods with the label of the object with this metadata, also ended ones that are gone."""
        return [pod.read() for pod in self._pods.get(Owner.of(owner), {}).values()]


def owner_of_job(job: Mapping[str, Any]) -> Owner | None:
    """The object that a Job belongs to; of a clean-up Job, which has no owner reference, by its label."""
    if (job["metadata"].get("labels") or {}).get(names.STAGE_LABEL) == names.CLEAN_UP:
        return _owner_by_label(job)
    uid = controller_uid(job, names.KIND)
    return Owner(job["metadata"]["namespace"], uid) if uid is not None else None


def _owner_by_label(body: Mapping[str, Any]) -> Owner | None:
    uid = (body["metadata"].get("labels") or {}).get(names.UID_LABEL)
    return Owner(body["metadata"]["namespace"], uid) if uid is not None else None


def version_of(body: Mapping[str, Any]) -> int:
    """Resource version of a body as the API server gives it; 0 if it has none."""
    return int(body["metadata"].get("resourceVersion") or 0)


def _encode(kept: Mapping[str, Any]) -> bytes:
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()


def _has_ended(pod: Mapping[str, Any]) -> bool:
    """Whether a Pod's container has ended, or its node is gone and cannot say so."""
    terminated = any("terminated" in container["state"] for container in pod["status"]["containerStatuses"])
    return terminated or pod["status"].get("phase") == "Failed"


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
    resources = [{"name": each["name"], "resources": each.get("resources") or {}} for each in containers_of(body)]
    return {
        "metadata": {
            **_picked(metadata, _METADATA),
            "labels": _picked(metadata.get("labels"), _WATCHED_LABELS),
            "annotations": _picked(metadata.get("annotations"), _WATCHED_ANNOTATIONS),
        },
        "spec": {
            **_picked(body.get("spec"), ("suspend", "activeDeadlineSeconds", "backoffLimit")),
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
        "status": {
            **_picked(status, ("phase", "reason", "message", "podIP")),
            "conditions": [c for c in status.get("conditions") or [] if c.get("type") in _POD_CONDITIONS],
            "containerStatuses": [
                {"name": container["name"], "state": container.get("state") or {}}
                for container in status.get("containerStatuses") or []
            ],
        },
    }
