"""Render: the complete Kubernetes Job of a stage or of a clean-up, as a function of object, profile and request."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgetune_contract.clean_up import CleanUpRequest
from edgetune_contract.pipeline import BASE, inputs_of
from edgetune_contract.request import Request
from edgetune_contract.stages import ExitCode, Stage
from edgetune_contract.values.quantities import parse_bytes
from edgetune_operator.api import names
from edgetune_operator.api.objects import LoraFineTuneSpec
from edgetune_operator.api.profiles import CA_VARIABLES, Cache, Profile, Resources
from edgetune_operator.decisions.deletion import CLEAN_UP_RETRIES, CLEAN_UP_SECONDS
from edgetune_operator.decisions.manifests.stage_resources import StageResources, settings_digest, stage_resources

WORK_DIR = "/work"
CREDENTIALS_DIR = "/var/run/secrets/edgetune/s3"
CA_BUNDLE_DIR = "/etc/edgetune/ca"
MODEL_CACHE_DIR = "/var/cache/edgetune/models"
METRICS_PORT = 8080
_CA_KEY = "ca.crt"
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
    """
    container = _container(profile, resources.container, request.encode())
    volumes = _volumes(profile, resources.volume)
    if profile.cache is not None and BASE in inputs_of(request.stage, request.parameters):
        _mount_cache(profile.cache, request.namespace, container, volumes)
    container["env"].append({"name": "EDGETUNE_DEADLINE_SECONDS", "value": str(spec.active_deadline_seconds)})
    if request.stage is Stage.PREPARE and profile.gpu_memory is not None:
        container["env"].append({"name": "EDGETUNE_GPU_BYTES", "value": str(parse_bytes(profile.gpu_memory))})
    if request.stage is Stage.TRAIN:
        container["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    metadata = {
        "name": names.job_name(request.name, request.stage, request.digest),
        "namespace": request.namespace,
        "labels": _labels(owner, request.stage),
        "annotations": {
            names.DIGEST_ANNOTATION: request.digest,
            names.RETRY_ANNOTATION: retry,
            names.SETTINGS_ANNOTATION: settings_digest(spec, profile, resources),
        },
        "ownerReferences": [_owner_reference(owner)],
    }
    retries = max(spec.retry_limit - failed_before, 0)
    limits = {"backoffLimit": retries, "activeDeadlineSeconds": spec.active_deadline_seconds}
    return _job(metadata, limits, profile, container, volumes)


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
) -> dict[str, Any]:
    labels: Mapping[str, str] = metadata["labels"]
    queue = {"kueue.x-k8s.io/queue-name": profile.queue} if profile.queue else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**metadata, "labels": {**labels, **queue}},
        "spec": {
            **limits,
            "ttlSecondsAfterFinished": profile.ttl_seconds_after_finished,
            # Two Pods of a Job never run at the same time: the first writes its checkpoint before the second reads it.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": pod_failure_rules()},
            "template": {
                "metadata": _pod_metadata(profile, labels),
                "spec": _pod_spec(profile, container, volumes),
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


def _pod_spec(profile: Profile, container: Mapping[str, Any], volumes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    optional: dict[str, Any] = {
        "nodeSelector": profile.node_selector,
        "tolerations": list(profile.tolerations),
        "affinity": profile.affinity,
        "runtimeClassName": profile.runtime_class_name,
        "priorityClassName": profile.priority_class_name,
        "serviceAccountName": profile.service_account_name,
        "imagePullSecrets": [{"name": name} for name in profile.image.pull_secrets],
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
        "resources": resources.model_dump(exclude_defaults=True),
        "securityContext": dict(RESTRICTED_CONTAINER),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


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
