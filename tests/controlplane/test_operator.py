"""The operator process on a real control plane: Jobs by the real Job controller, Pods whose kubelet the tests play."""

import time
from typing import Any

import pytest

from cluster.processes import wait_for
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from support.builders import failed_result
from support.kube import condition, pod_ended
from support.scenario import request_of
from support.stage_player import OBJECT, Operator, StagePlayer

pytestmark = pytest.mark.slow


def reasons_of_events(player: StagePlayer) -> set[str]:
    """Reasons of all Events in the namespace."""
    return {event["reason"] for event in player.kube.list("v1", "Event", player.namespace)}


def test_an_applied_object_runs_through_all_stages_to_succeeded(player: StagePlayer) -> None:
    player.apply()
    player.finish_from(Stage.PREPARE)

    status = player.wait_for_phase("Succeeded")["status"]
    assert status["observedGeneration"] == 1
    assert status["scores"]["edge"] == 0.94
    assert status["display"]["edge"] == "94.0%"
    assert condition(player.object, "Ready") is not None
    assert condition(player.object, "Reconciling") is None
    jobs = player.kube.list("batch/v1", "Job", player.namespace)
    assert sorted(job["metadata"]["labels"][names.STAGE_LABEL] for job in jobs) == sorted(Stage)
    # Events are posted after the status write.
    assert wait_for(lambda: {"PrepareStarted", "TrainSucceeded", "Published"} <= reasons_of_events(player), 30)


def test_an_evicted_training_resumes_in_a_new_pod_and_counts_one_preemption(player: StagePlayer) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    job, pod = player.live_pod(Stage.TRAIN)
    digest = request_of(job).digest
    stopped = failed_result(Stage.TRAIN, digest, ExitCode.INTERRUPTED, "Interrupted", "stopped by SIGTERM", step=40)
    disruption = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    ended = pod_ended(ExitCode.INTERRUPTED, stopped.encode().decode())
    player.end_pod(pod, {**ended, "conditions": [disruption]})
    player.kube.delete("v1", "Pod", player.namespace, pod["metadata"]["name"])

    _, second = player.live_pod(Stage.TRAIN)
    player.finish_from(Stage.TRAIN)

    player.wait_for_phase("Succeeded")
    assert second["metadata"]["name"] != pod["metadata"]["name"]
    assert player.row(Stage.TRAIN)["preemptions"] == 1
    assert player.row(Stage.TRAIN)["attempts"] == 1


def test_a_stage_that_ends_while_the_operator_is_down_is_recorded_after_its_start(
    player: StagePlayer, operator: Operator
) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    player.live_pod(Stage.TRAIN)
    operator.stop()
    player.finish(Stage.TRAIN)
    operator.start()
    player.finish_from(Stage.MERGE)

    player.wait_for_phase("Succeeded")
    trained = player.kube.list("batch/v1", "Job", player.namespace, f"{names.STAGE_LABEL}=train")
    assert len(trained) == 1


def test_invalid_data_fails_at_once_and_a_corrected_object_continues(player: StagePlayer) -> None:
    player.apply()
    job, pod = player.live_pod(Stage.PREPARE)
    failed = failed_result(
        Stage.PREPARE, request_of(job).digest, ExitCode.INVALID, "InvalidInput", "line 7: no response"
    )
    player.end_pod(pod, pod_ended(ExitCode.INVALID, failed.encode().decode()))

    player.wait_for_phase("Failed")
    stalled = condition(player.object, "Stalled")
    assert stalled is not None
    assert (stalled["reason"], stalled["message"]) == ("InvalidInput", "prepare: line 7: no response")

    player.apply(dataset={"train": {"uri": "s3://datasets/fixed.jsonl"}})
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")
    assert condition(player.object, "Stalled") is None


def test_suspending_deletes_the_running_job_and_resuming_creates_it_again(player: StagePlayer) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    _, pod = player.live_pod(Stage.TRAIN)
    # As a kubelet does during the grace period: the Pod exists until its container has ended.
    path = player.kube.path("v1", "Pod", player.namespace, pod["metadata"]["name"])
    held = {"metadata": {"finalizers": ["test/still-writing"]}}
    assert player.kube.request("PATCH", path, held, "application/merge-patch+json").accepted
    player.apply(suspend=True)
    player.wait_for_phase("Suspended")
    player.end_pod(pod, pod_ended(ExitCode.INTERRUPTED))
    player.wait(lambda _: player.row(Stage.TRAIN).get("gpuSeconds") == 60.0, "the stopped training's GPU time counts")
    released = {"metadata": {"finalizers": None}}
    assert player.kube.request("PATCH", path, released, "application/merge-patch+json").accepted
    player.remove_pod(pod)

    player.apply(suspend=False)
    player.finish_from(Stage.TRAIN)
    player.wait_for_phase("Succeeded")
    row = player.row(Stage.TRAIN)
    assert (row["gpuSeconds"], row.get("preemptions", 0)) == (120.0, 0)


def test_a_quota_that_can_never_be_enough_stalls_the_object_until_it_is_removed(
    player: StagePlayer,
) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": player.namespace}}
    player.kube.apply({**quota, "spec": {"hard": {"count/jobs.batch": "0"}}})
    player.kube.set_status(
        "v1",
        "ResourceQuota",
        player.namespace,
        "none",
        {"hard": {"count/jobs.batch": "0"}, "used": {"count/jobs.batch": "0"}},
    )
    player.wait_for_dry_run(403)
    player.apply()

    found = player.wait(lambda found: condition(found, "Stalled") is not None, "it is stalled")
    stalled = condition(found, "Stalled")
    assert stalled is not None
    assert stalled["reason"] == "QuotaTooSmall"
    assert "exceeded quota: none" in stalled["message"]

    player.kube.delete("v1", "ResourceQuota", player.namespace, "none")
    player.wait_for_dry_run(201)
    player.apply(retryLimit=2)
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")


def webhook_without_server(player: StagePlayer) -> dict[str, Any]:
    """An admission webhook for the namespace's Jobs whose server does not exist."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": player.namespace},
        "webhooks": [
            {
                "name": "policy.example.com",
                "clientConfig": {"url": "https://127.0.0.1:1/"},
                "failurePolicy": "Fail",
                "timeoutSeconds": 1,
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": player.namespace}},
                "rules": [
                    {"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"], "operations": ["CREATE"]}
                ],
            }
        ],
    }


def test_a_webhook_that_does_not_answer_holds_the_object_up_and_finished_stages_are_recorded(
    player: StagePlayer,
) -> None:
    player.apply()
    player.live_pod(Stage.PREPARE)
    webhook = webhook_without_server(player)
    player.kube.apply(webhook)
    player.wait_for_dry_run(500)

    player.finish(Stage.PREPARE)
    held_up = player.wait_for_condition("Reconciling", "JobRefused")
    assert "the cluster refuses the Job: Internal error occurred: failed calling webhook" in held_up["message"]
    assert player.row(Stage.PREPARE)["state"] == "Succeeded"

    player.kube.delete(webhook["apiVersion"], webhook["kind"], None, player.namespace)
    player.wait_for_dry_run(201)
    player.apply(retryLimit=2)
    player.finish_from(Stage.TRAIN)
    player.wait_for_phase("Succeeded")


def test_the_jobs_of_a_deleted_object_are_garbage_collected_without_a_finalizer(player: StagePlayer) -> None:
    player.apply()
    _, pod = player.live_pod(Stage.PREPARE)
    assert "finalizers" not in player.object["metadata"]
    player.kube.delete(*OBJECT, player.namespace, "sensor-faults")
    player.kube.request(
        "DELETE", f"/api/v1/namespaces/{player.namespace}/pods/{pod['metadata']['name']}?gracePeriodSeconds=0"
    )

    deadline = time.monotonic() + 60
    while player.kube.list("batch/v1", "Job", player.namespace):
        assert time.monotonic() < deadline, "the Job is still there"
        time.sleep(0.1)
