"""Pods that should have ended on nodes that no longer report: the object is stalled after a bound, and recovers."""

from datetime import timedelta
from typing import Any

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator.decisions.causes.diagnosis import STUCK_AFTER
from support.builders import lora_fine_tune
from support.scenario import Scenario

Metadata = dict[str, Any]


@pytest.fixture
def training() -> Scenario:
    """An object whose training runs."""
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    scenario.end_pod(lambda pod: pod.running())
    scenario.reconcile()
    return scenario


def newest_pod(scenario: Scenario) -> Metadata:
    """The newest Pod of the live Job, on a node."""
    pod = scenario.cluster.pods[scenario.cluster.pods_of(scenario.live_job)[-1]]
    pod["spec"] = {"nodeName": "gpu-7"}
    return pod


def lose_node(scenario: Scenario) -> str:
    """The taint manager deletes the newest Pod, and no kubelet confirms it; returns by when it should be gone."""
    scenario.end_pod(lambda pod: pod.running().disrupted("DeletionByTaintManager"))
    metadata = newest_pod(scenario)["metadata"]
    metadata["deletionTimestamp"] = scenario.cluster.timestamp()
    return str(metadata["deletionTimestamp"])


def stalled(scenario: Scenario) -> tuple[str, str, str] | None:
    """The Stalled condition after a pass."""
    scenario.reconcile()
    return scenario.condition("Stalled")


def message(pod: str, since: str) -> str:
    return (
        f"train: Pod {pod} should have ended by {since}, and its node gpu-7 has not confirmed it: if the node does not "
        "come back, shut it down and run `kubectl delete node gpu-7`; the stage then continues by itself"
    )


def test_a_node_that_does_not_come_back_stalls_the_object_after_some_minutes(training: Scenario) -> None:
    since = lose_node(training)
    assert stalled(training) is None
    look_again = training.reconcile().plan.look_again
    assert look_again is not None
    assert timedelta(0) < look_again <= STUCK_AFTER

    training.cluster.now += STUCK_AFTER
    pod = newest_pod(training)["metadata"]["name"]

    assert stalled(training) == ("True", "NodeUnresponsive", message(pod, since))
    assert training.condition("Ready") == ("False", "NodeUnresponsive", message(pod, since))
    assert len(training.cluster.live_jobs()) == 1, "the Job stays: it replaces the Pod when the node is gone"


def test_the_stage_continues_when_the_node_is_back_or_deleted(training: Scenario) -> None:
    lose_node(training)
    training.cluster.now += STUCK_AFTER
    assert stalled(training) is not None
    training.evict()

    assert stalled(training) is None
    training.finish_all()
    assert training.condition("Ready") is not None
    assert training.status.phase == "Succeeded"


def test_a_pod_in_its_grace_period_writes_its_checkpoint_and_is_not_stuck(training: Scenario) -> None:
    training.end_pod(lambda pod: pod.running().disrupted("EvictionByEvictionAPI"))
    gone_by = training.cluster.now + timedelta(minutes=20)
    newest_pod(training)["metadata"]["deletionTimestamp"] = gone_by.isoformat().replace("+00:00", "Z")
    training.cluster.now += timedelta(minutes=19)

    assert stalled(training) is None


def test_a_job_whose_deleted_pod_never_goes_stalls_the_stage_that_waits_for_it(training: Scenario) -> None:
    """The spec was edited while the node was lost: the next Job waits until the old one is gone."""
    training.cluster.deletes_slowly = True
    since = lose_node(training)
    pod = newest_pod(training)["metadata"]["name"]
    training.change(training.builder.edited("training.epochs", 5))
    training.reconcile()
    training.cluster.now += STUCK_AFTER

    assert stalled(training) == (
        "True",
        "NodeUnresponsive",
        message(pod, since).replace("train: ", "prepare: ", 1),
    )


def test_a_disrupted_pod_that_nobody_deletes_is_stuck_too(training: Scenario) -> None:
    training.end_pod(lambda pod: pod.running().disrupted("TerminationByKubelet"))
    newest_pod(training)
    training.cluster.now += STUCK_AFTER

    found = stalled(training)
    assert found is not None
    assert found[1] == "NodeUnresponsive"


def test_a_pod_that_has_ended_is_never_stuck(training: Scenario) -> None:
    training.end_pod(lambda pod: pod.ended(143).disrupted("EvictionByEvictionAPI"))
    newest_pod(training)["metadata"]["deletionTimestamp"] = training.cluster.timestamp()
    training.cluster.now += 2 * STUCK_AFTER

    assert stalled(training) is None


def test_a_node_that_is_lost_after_the_end_of_the_stage_s_container_stalls_the_object_too(training: Scenario) -> None:
    """The stage's Job is deleted because another container runs on; the next one waits for its Pod."""
    training.cluster.deletes_slowly = True
    pod = newest_pod(training)["metadata"]["name"]
    training.end_pod(lambda pod: pod.ended(14).outlived_by("istio-proxy"))
    training.let_pass(timedelta(seconds=30))
    training.reconcile()
    metadata = training.cluster.pods[pod]["metadata"]
    metadata["deletionTimestamp"] = since = training.cluster.timestamp()
    training.cluster.pods[pod]["spec"] = {"nodeName": "gpu-7"}
    assert stalled(training) is None

    training.cluster.now += STUCK_AFTER

    assert stalled(training) == ("True", "NodeUnresponsive", message(pod, since))
