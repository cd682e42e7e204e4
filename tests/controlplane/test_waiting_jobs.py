"""Jobs that wait for admission, on a real API server without Kueue: `requireQueue` suspends them."""

from datetime import UTC, datetime
from typing import Any

import pytest

from cluster.processes import wait_for
from edgetune_contract.stages import Stage
from edgetune_contract.values.times import timestamp
from edgetune_operator.api import names
from support.kube import Kube, condition
from support.queue_player import QUEUE
from support.scenario import request_of
from support.stage_player import STORE, Operator, StagePlayer

pytestmark = pytest.mark.slow

MULTIKUEUE = "kueue.x-k8s.io/multikueue"
GPU = {"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 1}}
PROFILES = {
    "default": {
        "store": STORE,
        "resources": {"train": GPU},
        "queue": {"name": QUEUE, "priorities": ["high"]},
        "requireQueue": True,
    }
}


@pytest.fixture
def waiting(player: StagePlayer, operator: Operator) -> StagePlayer:
    """An object whose training waits in a queue."""
    operator.ensure(PROFILES)
    player.apply(priority="high")
    player.finish(Stage.PREPARE)
    player.wait_for_phase("Queued")
    return player


def refuse_changes(kube: Kube, namespace: str, *, of: str) -> str:
    """A policy that refuses every change of a field of the Jobs' spec in a namespace; returns its name."""
    name = f"fixed-{namespace}"
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["jobs"]}
    matched = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    api = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    check = {"expression": f"object.spec.{of} == oldObject.spec.{of}", "message": f"{of} is fixed here"}
    spec = {"matchConstraints": {"resourceRules": [rule], "namespaceSelector": matched}, "validations": [check]}
    kube.apply({**api, "kind": "ValidatingAdmissionPolicy", "spec": spec})
    binding = {"policyName": name, "validationActions": ["Deny"]}
    kube.apply({**api, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding})
    return name


def is_refused(player: StagePlayer) -> bool:
    """Whether the policy is in force."""
    name = player.jobs(Stage.TRAIN)[-1]["metadata"]["name"]
    path = f"{player.kube.path('batch/v1', 'Job', player.namespace, name)}?dryRun=All"
    patch = {"spec": {"backoffLimit": 9}}
    return not player.kube.request("PATCH", path, patch, "application/merge-patch+json").accepted


def is_changed(document: dict[str, Any]) -> bool:
    """Whether no change of the Job is refused any more."""
    return (condition(document, "Ready") or {}).get("reason") != "JobRefused"


def test_a_refused_change_of_a_waiting_job_holds_the_object_up_until_it_is_accepted(waiting: StagePlayer) -> None:
    policy = refuse_changes(waiting.kube, waiting.namespace, of="backoffLimit")
    assert wait_for(lambda: is_refused(waiting), 30)
    before = waiting.jobs(Stage.TRAIN)[-1]

    waiting.apply(priority="high", retryLimit=7)
    held_up = waiting.wait_for_condition("Reconciling", "JobRefused")
    waiting.kube.delete("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding", None, policy)
    assert wait_for(lambda: not is_refused(waiting), 30)
    waiting.apply(priority="high", retryLimit=8)
    waiting.wait(is_changed, "the Job is changed")
    after = waiting.jobs(Stage.TRAIN)[-1]

    assert held_up["message"].startswith("train: the Job is suspended until queue gpu admits it")
    assert "the cluster refuses to change the waiting Job: " in held_up["message"]
    assert held_up["message"].endswith("backoffLimit is fixed here; it keeps its place and its settings")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"]["backoffLimit"] == 8


def hand_over(player: StagePlayer, job: dict[str, Any]) -> None:
    """Create a waiting Job again as one that MultiKueue runs, which its webhook decides when a Job is created."""
    name, spec = job["metadata"]["name"], job["spec"]
    player.kube.delete("batch/v1", "Job", player.namespace, name)
    player.kube.wait_until_gone("batch/v1", "Job", player.namespace, f"{names.STAGE_LABEL}={Stage.TRAIN}")
    kept = ("name", "namespace", "labels", "annotations", "ownerReferences")
    labels = spec["template"]["metadata"]["labels"]
    own = {key: value for key, value in labels.items() if key in job["metadata"]["labels"]}
    template = {**spec["template"], "metadata": {"labels": own}}
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {key: job["metadata"][key] for key in kept},
        "spec": {**spec, "template": template, "managedBy": MULTIKUEUE, "selector": None},
    }
    reply = player.kube.request("POST", player.kube.path("batch/v1", "Job", player.namespace), manifest)
    assert reply.accepted, reply.message


def mirror(player: StagePlayer, job: str, **status: Any) -> None:
    """Write the status of a Job in another cluster into the local one, as MultiKueue does."""
    player.kube.set_status("batch/v1", "Job", player.namespace, job, {"uncountedTerminatedPods": {}, **status})


def test_a_training_that_multikueue_runs_in_another_cluster_is_changed_followed_and_recorded(
    waiting: StagePlayer, operator: Operator
) -> None:
    operator.stop()
    job = waiting.jobs(Stage.TRAIN)[-1]
    name = job["metadata"]["name"]
    hand_over(waiting, job)
    operator.start(PROFILES)

    waiting.apply(priority="high", retryLimit=7)
    changed = waiting.kube.wait("batch/v1", "Job", waiting.namespace, name, is_raised, "the Job is changed")
    waiting.kube.merge("batch/v1", "Job", waiting.namespace, name, {"spec": {"suspend": False}})
    began = now()
    mirror(waiting, name, startTime=began, active=1)
    waiting.wait_for_phase("Training")
    waiting.stages.simulated_result(request_of(job))  # the stage writes its manifest
    ended = now()
    ends = [
        {"type": each, "status": "True", "lastTransitionTime": ended} for each in ("SuccessCriteriaMet", "Complete")
    ]
    mirror(waiting, name, startTime=began, completionTime=ended, active=0, succeeded=1, conditions=ends)
    waiting.finish(Stage.PREPARE)
    waiting.live_pod(Stage.MERGE)

    assert changed["spec"]["managedBy"] == MULTIKUEUE
    assert wait_for(lambda: waiting.row(Stage.TRAIN)["state"] == "Succeeded", 30), waiting.row(Stage.TRAIN)
    assert waiting.row(Stage.TRAIN)["reason"] == "Cached"
    assert [each["metadata"]["name"] for each in waiting.jobs(Stage.TRAIN)] == [name]


def is_raised(job: dict[str, Any]) -> bool:
    """Whether the Job has the new retry limit."""
    return bool(job["spec"]["backoffLimit"] == 7)


def now() -> str:
    return timestamp(datetime.now(UTC))


def test_a_cluster_without_kueue_is_named_and_not_the_priority_class(waiting: StagePlayer) -> None:
    held_up = waiting.wait_for_condition("Reconciling", "KueueNotFound")

    assert held_up["message"] == (
        "train: the Job is suspended until queue gpu admits it, and the API server does not serve "
        "kueue.x-k8s.io/v1beta2: install Kueue, or remove queue and requireQueue from the profile"
    )
