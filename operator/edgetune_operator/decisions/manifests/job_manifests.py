"""Render: the complete Kubernetes Job of a stage or of a clean-up, as a function of object, profile and request."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgetune_contract.clean_up import CleanUpRequest
from edgetune_contract.digest import recipe_digest
from edgetune_contract.pipeline import BASE, inputs_of
from edgetune_contract.request import Request
from edgetune_contract.stages import ExitCode, Stage
from edgetune_contract.values.quantities import parse_bytes
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import CA_VARIABLES, Cache, Profile, Signing
from edgetune_operator.api.profiles.queue import Topology
from edgetune_operator.api.profiles.resources import ResourceClaim, Resources
from edgetune_operator.api.profiles.tracking import TRACKED_STAGES, Mlflow
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.decisions.deletion import CLEAN_UP_RETRIES, CLEAN_UP_SECONDS
from edgetune_operator.decisions.manifests.stage_resources import (
    StageResources,
    job_settings,
    stage_resources,
    topology_of,
)

WORK_DIR = "/work"
CREDENTIALS_DIR = "/var/run/secrets/edgetune/s3"
SIGNING_DIR = "/var/run/secrets/edgetune/signing"
SIGNING_VOLUME = "signing-key"
TRACKING_DIR = "/var/run/secrets/edgetune/tracking"
TRACKING_VOLUME = "tracking-credentials"
SIGNING_KEY_VARIABLE = "EDGETUNE_SIGNING_KEY"
CA_BUNDLE_DIR = "/etc/edgetune/ca"
MODEL_CACHE_DIR = "/var/cache/edgetune/models"
SHARED_MEMORY_DIR = "/dev/shm"  # noqa: S108 - a volume of the container
METRICS_PORT = 8080
RENDEZVOUS_PORT = 29500
"""Port of the Pod of index 0 at which the processes of a training on several nodes find each other."""

_CA_KEY = "ca.crt"
_SHARED_MEMORY = "1Gi"
_OF_JOB_ONLY = (names.QUEUE_LABEL, names.PRIORITY_LABEL)
_USER = 65532

RESTRICTED_POD_OF_ANY_USER: Mapping[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
RESTRICTED_POD: Mapping[str, Any] = {
    **RESTRICTED_POD_OF_ANY_USER,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "fsGroup": _USER,
}
RESTRICTED_CONTAINER: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def render_job(
    owner: Mapping[str, Any],
    spec: LoraFineTuneSpec,
    profile: Profile,
    request: Request,
    retry: str,
    resources: StageResources,
    failed_before: int = 0,
    active_before: float = 0.0,
) -> dict[str, Any]:
    """Job manifest of one stage.

    Args:
        owner: the object's metadata; the Job is garbage-collected with the object.
        spec: the user's retry limit and deadline.
        profile: the platform team's images, resources, node selection, credentials and queue.
        request: the stage's request.
        retry: the current retry token.
        resources: of the stage's container and its work volume.
        failed_before: failed attempts of the Jobs that this one replaces.
        active_before: seconds that attempts of these Jobs ran.
    """
    container = _container(profile, resources.container, request.encode())
    volumes = _volumes(profile, resources.volume)
    if profile.cache is not None and BASE in inputs_of(request.stage, request.parameters):
        _mount_cache(profile.cache, request.namespace, container, volumes)
    if profile.signing is not None and request.stage is Stage.PUBLISH and request.sign:
        _mount_signing_key(profile.signing, container, volumes)
    if profile.tracking is not None and request.stage in TRACKED_STAGES:
        _add_tracking(profile.tracking.mlflow, container, volumes)
    seconds_left = max(spec.active_deadline_seconds - round(active_before), 1)
    container["env"].append({"name": "EDGETUNE_DEADLINE_SECONDS", "value": str(seconds_left)})
    if request.stage is Stage.PREPARE and profile.gpu_memory is not None:
        container["env"].append({"name": "EDGETUNE_GPU_BYTES", "value": str(parse_bytes(profile.gpu_memory))})
    name, nodes = names.job_name(request.name, request.stage, request.digest), resources.container.nodes
    if resources.container.gpus > 1 or nodes > 1:
        _mount_shared_memory(container, volumes)
    if nodes > 1:
        container["env"] += _rendezvous(name, nodes)
    if request.stage is Stage.TRAIN:
        container["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    prices = profile.prices
    settings = job_settings(spec, profile, request.stage, resources)
    fixed = {names.FIXED_SETTINGS_ANNOTATION: settings.fixed} if settings.queue else {}
    is_look = request.stage is Stage.PREPARE
    looked_for = {names.LOOKED_FOR_ANNOTATION: recipe_digest(request.parameters)} if is_look else {}
    metadata = {
        "name": name,
        "namespace": request.namespace,
        "labels": {**_labels(owner, request.stage), **_queue_labels(spec, settings.queue)},
        "annotations": {
            names.DIGEST_ANNOTATION: request.digest,
            names.RETRY_ANNOTATION: retry,
            **looked_for,
            names.SETTINGS_ANNOTATION: settings.all,
            **fixed,
            names.PROFILE_ANNOTATION: spec.profile,
            **({} if prices is None else {names.PRICES_ANNOTATION: prices.model_dump_json(by_alias=True)}),
        },
        "ownerReferences": [_owner_reference(owner)],
    }
    limits = {
        "backoffLimit": backoff_limit(max(spec.retry_limit - failed_before, 0), nodes),
        "activeDeadlineSeconds": spec.active_deadline_seconds,
    }
    if profile.require_queue and resources.container.gpus:
        limits["suspend"] = True
    job = _job(metadata, limits, profile, container, volumes, resources.container.claims)
    return job if nodes == 1 else _on_nodes(job, nodes, topology_of(profile, request.stage, nodes))


def backoff_limit(retries: int, nodes: int) -> int:
    """Pods of a Job that may fail: in each attempt but the last one all of them, and then all but one.

    The Job counts Pods. An attempt on several nodes may have several that fail by themselves, such as all of them when
    the store does not answer; the operator counts it once (`limits.why_given_up`).
    """
    return retries * nodes + nodes - 1


def _on_nodes(job: dict[str, Any], nodes: int, topology: Topology | None) -> dict[str, Any]:
    """A Job with one Pod for each node, all at the same time, whose host names the Job's Service resolves."""
    job["spec"] |= {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    metadata, pod = job["spec"]["template"]["metadata"], job["spec"]["template"]["spec"]
    pod["subdomain"] = names.service_name(job["metadata"]["name"])
    if topology is not None:
        metadata["annotations"] = {**metadata.get("annotations", {}), **topology.annotation}
    return job


def _rendezvous(job: str, nodes: int) -> list[dict[str, str]]:
    """What the processes of a Pod need to find those of the others; Kubernetes says which index it has."""
    address = f"{job}-0.{names.service_name(job)}:{RENDEZVOUS_PORT}"
    return [{"name": "EDGETUNE_NODES", "value": str(nodes)}, {"name": "EDGETUNE_RENDEZVOUS", "value": address}]


def render_service(owner: Mapping[str, Any], job: str, uid: str) -> dict[str, Any]:
    """The Service without an address of its own that gives the Pods of a Job host names; it is deleted with the Job.

    Args:
        owner: the object's metadata.
        job: name of the Job of its training.
        uid: of the Job.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names.service_name(job),
            "namespace": owner["namespace"],
            "labels": _labels(owner, Stage.TRAIN),
            # Not as a controller that blocks the deletion: that would need rights on the finalizers of Jobs.
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}],
        },
        "spec": {
            "clusterIP": "None",
            # Processes look for each other before any of them could be ready.
            "publishNotReadyAddresses": True,
            "selector": {names.JOB_NAME_LABEL: job},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def render_clean_up(owner: Mapping[str, Any], profile: Profile, request: CleanUpRequest) -> dict[str, Any]:
    """Job manifest of the clean-up: with the resources of publish, and without an owner reference (see `deletion`).

    Args:
        owner: the object's metadata.
        profile: as for the stages.
        request: the clean-up's request.
    """
    resources = stage_resources(profile, Stage.PUBLISH)
    container = _container(profile, resources.container, request.encode(), names.CLEAN_UP)
    metadata = {
        "name": names.clean_up_job_name(request.name, owner["uid"]),
        "namespace": request.namespace,
        "labels": _labels(owner, names.CLEAN_UP),
    }
    limits = {"backoffLimit": CLEAN_UP_RETRIES, "activeDeadlineSeconds": CLEAN_UP_SECONDS}
    return _job(metadata, limits, profile, container, _volumes(profile, resources.volume))


def change_of(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What may be changed in a Job that waits in a queue, as a JSON patch: its limits, its queue, and where it runs.

    Kueue then updates the Job's Workload, which keeps its place.

    Args:
        job: the Job as it would be created now.
    """
    metadata, spec = job["metadata"], job["spec"]
    pod = spec["template"]["spec"]
    settings = metadata["annotations"][names.SETTINGS_ANNOTATION]
    values = {f"/metadata/annotations/{_escaped(names.SETTINGS_ANNOTATION)}": settings}
    for label in _OF_JOB_ONLY:
        if label in metadata["labels"]:
            values[f"/metadata/labels/{_escaped(label)}"] = metadata["labels"][label]
    for limit in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        values[f"/spec/{limit}"] = spec[limit]
    values["/spec/template/spec/nodeSelector"] = pod.get("nodeSelector", {})
    values["/spec/template/spec/tolerations"] = pod.get("tolerations", [])
    # It may have been admitted since.
    return [
        {"op": "test", "path": "/spec/suspend", "value": True},
        *({"op": "add", "path": path, "value": value} for path, value in values.items()),
    ]


def _escaped(key: str) -> str:
    """A key as a part of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def _queue_labels(spec: LoraFineTuneSpec, queue: str) -> dict[str, str]:
    if not queue:
        return {}
    priority = {} if spec.priority is None else {names.PRIORITY_LABEL: spec.priority}
    return {names.QUEUE_LABEL: queue, **priority}


def _labels(owner: Mapping[str, Any], stage: str) -> dict[str, str]:
    return {
        names.STAGE_LABEL: str(stage),
        names.OWNER_LABEL: names.label_value(owner["name"]),
        names.UID_LABEL: owner["uid"],
        names.MANAGED_BY_LABEL: names.MANAGER,
    }


def _job(
    metadata: Mapping[str, Any],
    limits: Mapping[str, int],
    profile: Profile,
    container: Mapping[str, Any],
    volumes: Sequence[Mapping[str, Any]],
    claims: Sequence[ResourceClaim] = (),
) -> dict[str, Any]:
    # Kueue's labels are the Job's only.
    labels = {key: value for key, value in metadata["labels"].items() if key not in _OF_JOB_ONLY}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            **limits,
            "ttlSecondsAfterFinished": profile.ttl_seconds_after_finished,
            # Two Pods of a Job, or of one of its nodes, never run at the same time: the first writes its checkpoint
            # before the second reads it.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": pod_failure_rules()},
            "template": {
                "metadata": _pod_metadata(profile, labels),
                "spec": _pod_spec(profile, container, volumes, claims),
            },
        },
    }


def _pod_metadata(profile: Profile, labels: Mapping[str, str]) -> dict[str, Any]:
    metadata = {"labels": {**profile.pod_labels, **labels}, "annotations": profile.pod_annotations}
    return {key: value for key, value in metadata.items() if value}


def pod_failure_rules() -> list[dict[str, Any]]:
    """Rules of podFailurePolicy, from the exit codes. The disruption rule is first because the first match decides."""
    ignored = [code.value for code in ExitCode if code.is_ignored]
    failing = [code.value for code in ExitCode if code.fails_job]
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": names.CONTAINER, "operator": "In", "values": failing}},
        {"action": "Ignore", "onExitCodes": {"containerName": names.CONTAINER, "operator": "In", "values": ignored}},
    ]


def _owner_reference(owner: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": owner["name"],
        "uid": owner["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _pod_spec(
    profile: Profile,
    container: Mapping[str, Any],
    volumes: Sequence[Mapping[str, Any]],
    claims: Sequence[ResourceClaim],
) -> dict[str, Any]:
    optional: dict[str, Any] = {
        "nodeSelector": profile.node_selector,
        "tolerations": list(profile.tolerations),
        "affinity": profile.affinity,
        "runtimeClassName": profile.runtime_class_name,
        "priorityClassName": profile.priority_class_name,
        "serviceAccountName": profile.service_account_name,
        "imagePullSecrets": [{"name": name} for name in profile.image.pull_secrets],
        "resourceClaims": [claim.model_dump(by_alias=True) for claim in claims],
    }
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": profile.termination_grace_period_seconds,
        "securityContext": dict(RESTRICTED_POD_OF_ANY_USER if profile.openshift else RESTRICTED_POD),
        "containers": [container],
        "volumes": list(volumes),
    } | {key: value for key, value in optional.items() if value}


def _container(profile: Profile, resources: Resources, request: str, *arguments: str) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [{"name": "work", "mountPath": WORK_DIR}]
    if profile.store.credentials_secret:
        mounts.append({"name": "s3-credentials", "mountPath": CREDENTIALS_DIR, "readOnly": True})
    if profile.ca_bundle_config_map:
        mounts.append({"name": "ca-bundle", "mountPath": CA_BUNDLE_DIR, "readOnly": True})
    return {
        "name": names.CONTAINER,
        "image": profile.image.reference,
        "imagePullPolicy": profile.image.pull_policy,
        # Exec form: Python is the container's first process and receives SIGTERM.
        "command": ["python", "-m", "edgetune_jobs", *arguments],
        "env": _environment(profile, request, resources.gpus),
        "resources": _requested(resources),
        "securityContext": dict(RESTRICTED_CONTAINER),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _requested(resources: Resources) -> dict[str, Any]:
    claims = {"claims": [{"name": claim.name} for claim in resources.claims]} if resources.claims else {}
    return resources.model_dump(include={"requests", "limits"}, exclude_defaults=True) | claims


def _mount_signing_key(signing: Signing, container: dict[str, Any], volumes: list[dict[str, Any]]) -> None:
    """Mount the private key, and nothing else of its Secret."""
    container["volumeMounts"].append({"name": SIGNING_VOLUME, "mountPath": SIGNING_DIR, "readOnly": True})
    container["env"].append({"name": SIGNING_KEY_VARIABLE, "value": f"{SIGNING_DIR}/{signing.key}"})
    items = [{"key": signing.key, "path": signing.key}]
    secret = {"secretName": signing.secret_name, "items": items, "defaultMode": 0o440}
    volumes.append({"name": SIGNING_VOLUME, "secret": secret})


def _add_tracking(mlflow: Mlflow, container: dict[str, Any], volumes: list[dict[str, Any]]) -> None:
    """Name the tracker, and mount its credentials. The Pod also starts without them: a tracker stops no training."""
    container["env"].append({"name": "EDGETUNE_MLFLOW_URI", "value": mlflow.uri})
    if mlflow.experiment is not None:
        container["env"].append({"name": "EDGETUNE_MLFLOW_EXPERIMENT", "value": mlflow.experiment})
    if mlflow.credentials_secret is None:
        return
    container["env"].append({"name": "EDGETUNE_TRACKING_CREDENTIALS_DIR", "value": TRACKING_DIR})
    container["volumeMounts"].append({"name": TRACKING_VOLUME, "mountPath": TRACKING_DIR, "readOnly": True})
    secret = {"secretName": mlflow.credentials_secret, "optional": True, "defaultMode": 0o440}
    volumes.append({"name": TRACKING_VOLUME, "secret": secret})


def _mount_cache(cache: Cache, namespace: str, container: dict[str, Any], volumes: list[dict[str, Any]]) -> None:
    """Mount the cache, of which each namespace has a folder of its own: nothing is shared between namespaces."""
    mount = {"name": "model-cache", "mountPath": MODEL_CACHE_DIR, "subPath": namespace}
    container["volumeMounts"].append(mount)
    container["env"] += [
        {"name": "EDGETUNE_MODEL_CACHE_DIR", "value": MODEL_CACHE_DIR},
        {"name": "EDGETUNE_MODEL_CACHE_BYTES", "value": str(parse_bytes(cache.size))},
    ]
    volume: dict[str, Any] = {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}
    if cache.persistent_volume_claim is not None:
        volume = {"persistentVolumeClaim": {"claimName": cache.persistent_volume_claim}}
    volumes.append({"name": "model-cache", **volume})


def _mount_shared_memory(container: dict[str, Any], volumes: list[dict[str, Any]]) -> None:
    """Give the container more than the runtime's 64 MiB of /dev/shm, through which NCCL connects GPUs."""
    container["volumeMounts"].append({"name": "shm", "mountPath": SHARED_MEMORY_DIR})
    volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}})


def _environment(profile: Profile, request: str, gpus: int) -> list[dict[str, str]]:
    values = {
        # The kubelet expands $(NAME) and $$ in values, and a template can contain them.
        "EDGETUNE_REQUEST": request.replace("$", "\\u0024"),
        "EDGETUNE_WORK_DIR": WORK_DIR,
        # For the manifest: a container cannot look up its own image.
        "EDGETUNE_IMAGE": profile.image.reference,
        # The root file system is read-only: libraries must write to the work folder.
        "HOME": WORK_DIR,
        "TMPDIR": WORK_DIR,
        # Spinning OpenMP threads lose five times their work on shared or throttled cores.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    if gpus:
        values["EDGETUNE_GPUS"] = str(gpus)
    if profile.store.credentials_secret:
        values["EDGETUNE_CREDENTIALS_DIR"] = CREDENTIALS_DIR
    if profile.ca_bundle_config_map:
        values |= dict.fromkeys(CA_VARIABLES, f"{CA_BUNDLE_DIR}/{_CA_KEY}")
    values |= profile.env
    return [{"name": name, "value": value} for name, value in values.items()]


def _volumes(profile: Profile, work_size: str) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [{"name": "work", "emptyDir": {"sizeLimit": work_size}}]
    if profile.store.credentials_secret:
        secret = {"secretName": profile.store.credentials_secret, "defaultMode": 0o440}
        volumes.append({"name": "s3-credentials", "secret": secret})
    if profile.ca_bundle_config_map:
        bundle = {"name": profile.ca_bundle_config_map, "items": [{"key": _CA_KEY, "path": _CA_KEY}]}
        volumes.append({"name": "ca-bundle", "configMap": bundle})
    return volumes
