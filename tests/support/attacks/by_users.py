"""Attacks by users, on the rights and the policies that keep Jobs, Pods and results from being forged."""

from typing import Any

from edgetune_operator.api import names
from support.attacks.attack import Attack, Attacker, Document, Existing, RefusedBy, Target
from support.attacks.with_token import stage_job
from support.builders import lora_fine_tune

MARKS = "only the operator sets the labels and annotations edgetune.dev/* and app.kubernetes.io/managed-by=edgetune"
IN_TEMPLATE = "only the operator sets the labels edgetune.dev/* and app.kubernetes.io/managed-by=edgetune in a Job's"
OWNED = "only the operator lets a LoraFineTune own a Job or a Pod"
KEPT = "the spec and the labels of a stage's Job belong to the operator and the queue"


def own_job(**metadata: Any) -> Document:
    """A user's Job, not of a stage."""
    spec = {"restartPolicy": "Never", "containers": [{"name": "stage", "image": "forged:1"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "forged", **metadata},
        "spec": {"template": {"spec": spec}},
    }


def own_pod(**metadata: Any) -> Document:
    """A user's Pod, not of a stage."""
    spec = own_job()["spec"]["template"]["spec"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "forged", **metadata}, "spec": spec}


def _with_template(labels: dict[str, str]) -> Document:
    job = own_job(labels={"team": "a"})  # without labels, it would get those of the template
    job["spec"]["template"]["metadata"] = {"labels": labels}
    return job


_OWNER = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "x", "uid": "u", "controller": True}
_FORGERIES: dict[str, tuple[Document, str]] = {
    "a copy of a stage's Job": (stage_job(), MARKS),
    "a Job with the label of a stage": (own_job(labels={names.STAGE_LABEL: "train"}), MARKS),
    "a Job with the operator's label": (own_job(labels={names.MANAGED_BY_LABEL: names.MANAGER}), MARKS),
    "a Job with a digest": (own_job(annotations={names.DIGEST_ANNOTATION: "0" * 64}), MARKS),
    "a Job that an object owns": (own_job(ownerReferences=[_OWNER]), OWNED),
    "a Job whose Pods have the label of a stage": (_with_template({names.STAGE_LABEL: "train"}), IN_TEMPLATE),
    "a Job whose Pods have the operator's label": (_with_template({names.MANAGED_BY_LABEL: "edgetune"}), IN_TEMPLATE),
    "a Pod with the label of a stage": (own_pod(labels={names.STAGE_LABEL: "train"}), MARKS),
    "a Pod with an object's UID": (own_pod(labels={names.UID_LABEL: "u"}), MARKS),
    "a Pod with the operator's label": (own_pod(labels={names.MANAGED_BY_LABEL: names.MANAGER}), MARKS),
    "an object with the finalizer": (
        lora_fine_tune("forged").with_metadata(finalizers=[names.FINALIZER]).build(),
        "only the operator adds the finalizer edgetune.dev/artifacts; set spec.deletionPolicy to Delete",
    ),
}

_STATUS = {"status": {"phase": "Succeeded"}}
_ENDED = {
    "status": {
        "containerStatuses": [
            {
                "name": "stage",
                "image": "forged:1",
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": {"exitCode": 0, "message": "{}"}},
            }
        ]
    }
}
_ONLY_THE_OPERATORS_STATUS = "only the operator writes the status of a LoraFineTune"


def _attack(target: Target, name: str, document: Document, message: str, **fields: Any) -> Attack:
    return Attack(target, name, RefusedBy.POLICY, message, document, **fields)


def _forbidden(name: str, document: Document, message: str, **fields: Any) -> Attack:
    return Attack(Target.RESULTS, name, RefusedBy.RIGHTS, message, document, **fields)


BY_USERS = (
    *(_attack(Target.IDENTITY, name, document, message) for name, (document, message) in _FORGERIES.items()),
    _attack(
        Target.IDENTITY,
        "a CronJob's Job with the label of a stage",
        own_job(labels={names.STAGE_LABEL: "train"}),
        MARKS,
        attacker=Attacker.CONTROLLER,
    ),
    *(
        _attack(Target.IDENTITY, name, patch, message, existing=Existing.OWN_JOB)
        for name, patch, message in (
            ("their Job gets the label of a stage", {"metadata": {"labels": {names.STAGE_LABEL: "train"}}}, MARKS),
            (
                "the Pods of their waiting Job get the label of a stage",
                {"spec": {"template": {"metadata": {"labels": {names.STAGE_LABEL: "train"}}}}},
                IN_TEMPLATE,
            ),
            ("an object owns their Job", {"metadata": {"ownerReferences": [_OWNER]}}, OWNED),
        )
    ),
    *(
        _attack(Target.IDENTITY, f"a stage's Job {name}", patch, message, existing=Existing.STAGE_JOB)
        for name, patch, message in (
            ("leaves its queue", {"spec": {"suspend": True}}, KEPT),
            ("gets more retries", {"spec": {"backoffLimit": 100}}, KEPT),
            ("gets more time", {"spec": {"activeDeadlineSeconds": 10**6}}, KEPT),
            ("changes its queue", {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "express"}}}, KEPT),
            ("loses its queue", {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": None}}}, KEPT),
            ("gets a priority", {"metadata": {"labels": {"kueue.x-k8s.io/priority-class": "high"}}}, KEPT),
            ("loses the label of its stage", {"metadata": {"labels": {names.STAGE_LABEL: None}}}, MARKS),
            ("gets another manager", {"metadata": {"labels": {names.MANAGED_BY_LABEL: "me"}}}, MARKS),
            ("loses its owner", {"metadata": {"ownerReferences": None}}, OWNED),
        )
    ),
    _attack(
        Target.RESULTS,
        "a stage's Job gets the digest of another",
        {"metadata": {"annotations": {names.DIGEST_ANNOTATION: "0" * 64}}},
        MARKS,
        existing=Existing.STAGE_JOB,
    ),
    _attack(
        Target.RESULTS,
        "an owner of the namespace writes the status",
        _STATUS,
        _ONLY_THE_OPERATORS_STATUS,
        attacker=Attacker.OWNER,
        existing=Existing.OBJECT,
        subresource="status",
    ),
    _attack(
        Target.RESULTS,
        "an owner of the namespace ends a stage's container with a result",
        _ENDED,
        "only the node of a stage's Pod says how its container ended",
        attacker=Attacker.OWNER,
        existing=Existing.STAGE_POD,
        subresource="status",
    ),
    _forbidden(
        "a user writes the status of an object",
        _STATUS,
        'cannot patch resource "lorafinetunes/status"',
        existing=Existing.OBJECT,
        subresource="status",
    ),
    _forbidden(
        "a user completes a stage's Job",
        {"status": {"succeeded": 1}},
        'cannot patch resource "jobs/status"',
        existing=Existing.STAGE_JOB,
        subresource="status",
    ),
)
