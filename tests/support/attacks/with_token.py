"""Attacks with the operator's token, on the policies that bound its account."""

import copy
from collections.abc import Callable
from typing import Any

from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.decisions.manifests.job_manifests import render_service
from support.attacks.attack import Attack, Attacker, Document, Existing, RefusedBy, Target
from support.builders import lora_fine_tune
from support.golden import NODES, PROFILES, job_of


def stage_job(profile: str = "full", stage: Stage = Stage.TRAIN) -> Document:
    """A stage's Job, as the operator creates it."""
    return copy.deepcopy(job_of(stage, PROFILES[profile]))


def changed(path: str, value: Any) -> Callable[[Document], None]:
    """A change of one field; ~ replaces / in a key, and an index after the end of a list appends."""

    def apply(job: Document) -> None:
        keys = [int(part) if part.isdecimal() else part.replace("~", "/") for part in path.split("/")]
        *parents, last = keys
        node: Any = job
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
        if isinstance(node, list) and last == len(node):
            node.append(value)
        else:
            node[last] = value

    return apply


def job_on_nodes() -> Document:
    """The Job of a training on several nodes, as the operator creates it."""
    return copy.deepcopy(job_of(Stage.TRAIN, NODES))


def service(job: str = "") -> Document:
    """The Service of that Job, or of another."""
    return render_service(lora_fine_tune().build()["metadata"], job or job_on_nodes()["metadata"]["name"], "uid")


POD = "spec/template/spec"
CONTAINER = f"{POD}/containers/0"
LABELS = "the operator may only touch Jobs with the labels of a stage"
OWNER = "a stage's Job must be owned by one LoraFineTune"
HOST = "the Pod may use nothing of its host, no init container and no service account token"
RESTRICTED = "the Pod must be restricted"
ONE_CONTAINER = "the Job must have one container, named stage, and it must be restricted"
IMAGE = "the container must run edgetune_jobs in an image of the profiles, not "
VARIABLE = "an environment variable of the container is not one of the profiles', or reads something else"
VOLUME = "a volume is not one of the profiles': "
CACHE = "the container may mount only its own namespace's folder of the cache"
NAMED = "the service account, priority class, runtime class or pull Secret is not one of the profiles'"
POD_LABEL = "a label or annotation of the Pod is not one of the profiles'"
ROOT = {"name": "root", "image": "root", "securityContext": {"privileged": True}}

_JOBS: dict[str, tuple[Callable[[Document], object], str]] = {
    "without its labels": (changed("metadata/labels", {"team": "a"}), LABELS),
    "managed by another": (changed("metadata/labels/app.kubernetes.io~managed-by", "helm"), LABELS),
    "of no stage": (changed("metadata/labels/edgetune.dev~stage", "shell"), LABELS),
    "without an owner": (changed("metadata/ownerReferences", []), OWNER),
    "owned by a Deployment": (
        changed("metadata/ownerReferences/0", {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x", "uid": "u"}),
        OWNER,
    ),
    "another queue": (
        changed("metadata/labels/kueue.x-k8s.io~queue-name", "others"),
        "the queue is not one of the profiles'",
    ),
    "the host's network": (changed(f"{POD}/hostNetwork", True), HOST),
    "the host's processes": (changed(f"{POD}/hostPID", True), HOST),
    "the host's IPC": (changed(f"{POD}/hostIPC", True), HOST),
    "a chosen node": (changed(f"{POD}/nodeName", "node-1"), HOST),
    "an init container": (changed(f"{POD}/initContainers", [ROOT]), HOST),
    "a service account token": (changed(f"{POD}/automountServiceAccountToken", True), HOST),
    "a default for the token": (lambda job: job["spec"]["template"]["spec"].pop("automountServiceAccountToken"), HOST),
    "root as the Pod's user": (changed(f"{POD}/securityContext/runAsUser", 0), RESTRICTED),
    "no Pod security": (lambda job: job["spec"]["template"]["spec"].pop("securityContext"), RESTRICTED),
    "no seccomp profile": (changed(f"{POD}/securityContext/seccompProfile/type", "Unconfined"), RESTRICTED),
    "system calls": (changed(f"{POD}/securityContext/sysctls", [{"name": "a.b", "value": "1"}]), RESTRICTED),
    "a second container": (changed(f"{POD}/containers/1", ROOT), ONE_CONTAINER),
    "a privileged container": (changed(f"{CONTAINER}/securityContext", {"privileged": True}), ONE_CONTAINER),
    "a capability": (changed(f"{CONTAINER}/securityContext/capabilities/add", ["SYS_ADMIN"]), ONE_CONTAINER),
    "root as the container's user": (changed(f"{CONTAINER}/securityContext/runAsUser", 0), ONE_CONTAINER),
    "a writable root": (changed(f"{CONTAINER}/securityContext/readOnlyRootFilesystem", False), ONE_CONTAINER),
    "another image": (changed(f"{CONTAINER}/image", "evil:1"), f"{IMAGE}evil:1"),
    "a shell": (changed(f"{CONTAINER}/command", ["sh", "-c", "id"]), IMAGE),
    "arguments": (changed(f"{CONTAINER}/args", ["-c", "id"]), IMAGE),
    "a hook": (changed(f"{CONTAINER}/lifecycle", {"preStop": {"exec": {"command": ["id"]}}}), IMAGE),
    "a port of the host": (changed(f"{CONTAINER}/ports", [{"containerPort": 80, "hostPort": 80}]), IMAGE),
    "a loader's variable": (changed(f"{CONTAINER}/env/1", {"name": "LD_PRELOAD", "value": "/tmp/x.so"}), VARIABLE),
    "a variable from a Secret": (
        changed(f"{CONTAINER}/env/1", {"name": "HOME", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}}),
        VARIABLE,
    ),
    "all variables of a Secret": (changed(f"{CONTAINER}/envFrom", [{"secretRef": {"name": "x"}}]), VARIABLE),
    "another Secret": (changed(f"{POD}/volumes/1/secret/secretName", "registry-key"), f"{VOLUME}work, s3-credentials"),
    "the signing key in another stage than publish": (
        changed(f"{POD}/volumes/6", {"name": "signing-key", "secret": {"secretName": "edgetune-signing"}}),
        VOLUME,
    ),
    "another Secret as the signing key": (
        changed(f"{POD}/volumes/6", {"name": "signing-key", "secret": {"secretName": "registry-key"}}),
        VOLUME,
    ),
    "the tracker's credentials in a stage that sends nothing": (
        changed("metadata/labels/edgetune.dev~stage", "prepare"),
        VOLUME,
    ),
    "another Secret as the tracker's credentials": (
        changed(f"{POD}/volumes/4/secret/secretName", "registry-key"),
        VOLUME,
    ),
    "another ConfigMap": (changed(f"{POD}/volumes/2/configMap/name", "others"), VOLUME),
    "another claim": (changed(f"{POD}/volumes/3/persistentVolumeClaim/claimName", "others"), VOLUME),
    "the host's disk": (changed(f"{POD}/volumes/3", {"name": "model-cache", "hostPath": {"path": "/"}}), VOLUME),
    "the host's disk as the work volume": (
        changed(f"{POD}/volumes/0", {"name": "work", "hostPath": {"path": "/"}}),
        VOLUME,
    ),
    "a projected token": (
        changed(
            f"{POD}/volumes/6",
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        ),
        VOLUME,
    ),
    "the cache of others": (changed(f"{CONTAINER}/volumeMounts/3/subPath", "team-b"), CACHE),
    "the whole cache": (
        lambda job: job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][3].pop("subPath"),
        CACHE,
    ),
    "a critical priority": (changed(f"{POD}/priorityClassName", "system-node-critical"), NAMED),
    "another service account": (changed(f"{POD}/serviceAccountName", "admin"), NAMED),
    "another runtime": (changed(f"{POD}/runtimeClassName", "host"), NAMED),
    "another pull Secret": (changed(f"{POD}/imagePullSecrets", [{"name": "others"}]), NAMED),
    "a label that a webhook follows": (changed("spec/template/metadata/labels/inject", "yes"), POD_LABEL),
    "an annotation that a network follows": (
        changed("spec/template/metadata/annotations", {"k8s.v1.cni.cncf.io/networks": "host"}),
        POD_LABEL,
    ),
}


_SERVICES: dict[str, Callable[[Document], object]] = {
    "an address of its own": lambda found: found["spec"].pop("clusterIP"),
    "an address from outside": changed("spec/externalIPs", ["192.0.2.1"]),
    "a port of each node": changed("spec", {"type": "NodePort", "ports": [{"port": 80}], "selector": {"a": "b"}}),
    "a name elsewhere": changed("spec", {"type": "ExternalName", "externalName": "example.com"}),
    "the Pods of others": changed("spec/selector", {"app": "bank"}),
    "no owner": changed("metadata/ownerReferences", []),
    "the name of another": changed("metadata/name", "bank"),
    "a Job of others": changed("metadata/ownerReferences/0/name", "bank"),
}


def _service(change: Callable[[Document], object]) -> Document:
    document = service()
    change(document)
    return document


def _job(change: Callable[[Document], object]) -> Document:
    job = stage_job()
    change(job)
    return job


def _attack(name: str, document: Document, message: str, **fields: Any) -> Attack:
    return Attack(Target.TOKEN, name, RefusedBy.POLICY, message, document, attacker=Attacker.TOKEN, **fields)


_ONLY_STATUS = "the operator may only change the finalizers and the status of a LoraFineTune"
_EVENT = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Normal", "reason": "R"}
_LEASE = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "others"}}

_CHANGES: dict[str, Document] = {
    "profile": {"spec": {"profile": "other"}},
    "labels": {"metadata": {"labels": {"team": "b"}}},
    "annotations": {"metadata": {"annotations": {names.RETRY_REQUESTED_ANNOTATION: "now"}}},
}

WITH_TOKEN = (
    *(_attack(f"a Job with {name}", _job(change), message) for name, (change, message) in _JOBS.items()),
    *(
        _attack(f"a Job in {namespace}", stage_job(), "no LoraFineTune runs in a namespace of", namespace=namespace)
        for namespace in ("kube-system", "kube-public")
    ),
    *(
        _attack(f"a change of an object's {what}", patch, _ONLY_STATUS, existing=Existing.OBJECT)
        for what, patch in _CHANGES.items()
    ),
    _attack(
        "a Job that leaves its queue",
        {"spec": {"suspend": True}},
        "only the queue suspends and resumes Jobs",
        existing=Existing.STAGE_JOB,
    ),
    _attack(
        "a Job that changes to the queue of others",
        {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "others"}}},
        "the queue is not one of the profiles'",
        existing=Existing.STAGE_JOB,
    ),
    _attack(
        "a Job that loses the label of its queue",
        {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": None}}},
        "a Job stays in a queue",
        existing=Existing.STAGE_JOB,
    ),
    *(
        _attack(
            f"a Service with {name}",
            _service(change),
            "the operator may only create Services without an address, for the Pods of the training that owns them",
        )
        for name, change in _SERVICES.items()
    ),
    _attack("a Lease of others", _LEASE, "the operator may only write its own Leases", namespace="kube-system"),
    _attack(
        "an Event about a Pod",
        {**_EVENT, "involvedObject": {"kind": "Pod", "namespace": "team-a", "name": "x"}},
        "the operator may only post Events of LoraFineTunes",
    ),
)
