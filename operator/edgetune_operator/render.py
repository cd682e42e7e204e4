"""Render: the complete Kubernetes Job of one stage, a function of object, profile and request."""

from collections.abc import Mapping
from typing import Any

from edgetune_contract.request import Request
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator import names
from edgetune_operator.api import LoraFineTuneSpec
from edgetune_operator.profiles import Profile

WORK_DIR = "/work"
CREDENTIALS_DIR = "/var/run/secrets/edgetune/s3"
METRICS_PORT = 8080
_USER = 65532

RESTRICTED_POD: Mapping[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "fsGroup": _USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESTRICTED_CONTAINER: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def render_job(
    owner: Mapping[str, Any], spec: LoraFineTuneSpec, profile: Profile, request: Request, retry: str
) -> dict[str, Any]:
    """Job manifest of one stage.

    Args:
        owner: the object's metadata; the Job goes with it.
        spec: retry limit and deadline are the user's.
        profile: images, resources, node selection, credentials and queue are the platform team's.
        request: what the stage is asked to do.
        retry: retry token that is current now.
    """
    labels = {
        names.STAGE_LABEL: request.stage.value,
        names.OWNER_LABEL: names.label_value(request.name),
        names.UID_LABEL: owner["uid"],
        names.MANAGED_BY_LABEL: names.MANAGER,
    }
    queue = {"kueue.x-k8s.io/queue-name": profile.queue} if profile.queue else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": names.job_name(request.name, request.stage, request.digest),
            "namespace": request.namespace,
            "labels": labels | queue,
            "annotations": {names.DIGEST_ANNOTATION: request.digest, names.RETRY_ANNOTATION: retry},
            "ownerReferences": [_owner_reference(owner)],
        },
        "spec": {
            "backoffLimit": spec.retry_limit,
            "activeDeadlineSeconds": spec.active_deadline_seconds,
            "ttlSecondsAfterFinished": profile.ttl_seconds_after_finished,
            # Two Pods of one Job never run together: the first writes its checkpoint before the second reads it.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": pod_failure_rules()},
            "template": {"metadata": {"labels": labels}, "spec": _pod_spec(profile, request)},
        },
    }


def pod_failure_rules() -> list[dict[str, Any]]:
    """Rules of podFailurePolicy from the exit codes. The disruption rule comes first: the first match decides."""
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


def _pod_spec(profile: Profile, request: Request) -> dict[str, Any]:
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
        "securityContext": dict(RESTRICTED_POD),
        "containers": [_container(profile, request)],
        "volumes": _volumes(profile),
    } | {key: value for key, value in optional.items() if value}


def _container(profile: Profile, request: Request) -> dict[str, Any]:
    resources = profile.resources_for(request.stage)
    mounts: list[dict[str, Any]] = [{"name": "work", "mountPath": WORK_DIR}]
    if profile.store.credentials_secret:
        mounts.append({"name": "s3-credentials", "mountPath": CREDENTIALS_DIR, "readOnly": True})
    container: dict[str, Any] = {
        "name": names.CONTAINER,
        "image": profile.image.reference,
        "imagePullPolicy": profile.image.pull_policy,
        # Exec form: Python is the container's first process, so that SIGTERM arrives.
        "command": ["python", "-m", "edgetune_jobs"],
        "env": _environment(profile, request),
        "resources": resources.model_dump(exclude_defaults=True),
        "securityContext": dict(RESTRICTED_CONTAINER),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    if request.stage is Stage.TRAIN:
        container["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    return container


def _environment(profile: Profile, request: Request) -> list[dict[str, str]]:
    fetches_from_hub = request.stage is Stage.PREPARE and request.parameters.base_model.uri.startswith("hf://")
    values = {
        # The kubelet expands $(NAME) and $$ in values: a template may hold them.
        "EDGETUNE_REQUEST": request.encode().replace("$", "\\u0024"),
        "EDGETUNE_WORK_DIR": WORK_DIR,
        # For the manifest: a container cannot ask for its own image.
        "EDGETUNE_IMAGE": profile.image.reference,
        # The root file system is read-only: whatever a library writes goes to the work folder.
        "HOME": WORK_DIR,
        "TMPDIR": WORK_DIR,
        # Spinning OpenMP threads lose five times their work on shared or throttled cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "0" if fetches_from_hub else "1",
    }
    if profile.store.credentials_secret:
        values["EDGETUNE_CREDENTIALS_DIR"] = CREDENTIALS_DIR
    return [{"name": name, "value": value} for name, value in values.items()]


def _volumes(profile: Profile) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [{"name": "work", "emptyDir": {"sizeLimit": profile.work_volume_size}}]
    if profile.store.credentials_secret:
        secret = {"secretName": profile.store.credentials_secret, "defaultMode": 0o440}
        volumes.append({"name": "s3-credentials", "secret": secret})
    return volumes
