"""A node whose kubelet stops during a training: for a moment, and until the cluster evicts the node's Pods."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.choice import AnyCluster
from cluster.controlplane import EVICTION_SECONDS, NODE_GRACE_SECONDS
from cluster.lifecycle import Cluster
from cluster.node import Node
from edgetune_contract.stages import Stage
from support.kube import Kube
from support.live_object import LiveObject
from support.second_node import second_node
from support.tiny_inputs import tiny_fine_tune
from support.versitygw import S3Server

from .conftest import Durations, InstalledOperator

pytestmark = pytest.mark.e2e
EVERY_STEPS = 10


@pytest.fixture(scope="module")
def node(cluster: AnyCluster) -> Node:
    """The node, if tests can stop its kubelet."""
    if not isinstance(cluster, Cluster):
        pytest.skip("kind's node runs its kubelet in a container: these tests cannot stop it")
    return cluster.node


@pytest.fixture(scope="module")
def training(node: Node, kube: Kube, s3: S3Server, namespace: str, operator: InstalledOperator) -> Iterator[LiveObject]:
    """A running training, with enough steps for all outages of the node."""
    del node, operator  # only required to exist
    steps = {"maxSteps": 600, "checkpoint": {"everySteps": EVERY_STEPS}}
    run = LiveObject.apply(kube, tiny_fine_tune(s3, namespace, "on-a-lost-node", training=steps, profile="slow"))
    run.wait_for_step(EVERY_STEPS)
    yield run
    run.delete()


@contextmanager
def stopped_kubelet(node: Node) -> Iterator[None]:
    """Stop the node's kubelet inside the context; its containers continue to run."""
    node.stop_kubelet()
    try:
        yield
    finally:
        node.start_kubelet()


def test_a_short_outage_of_the_kubelet_does_not_stop_a_training(node: Node, training: LiveObject) -> None:
    pod = training.wait_for_pod(Stage.TRAIN)["metadata"]["uid"]
    with stopped_kubelet(node):
        time.sleep(NODE_GRACE_SECONDS / 3)

    training.wait_for_step(training.wait_for_step(1) + EVERY_STEPS)
    assert training.wait_for_pod(Stage.TRAIN)["metadata"]["uid"] == pod
    row = training.row(Stage.TRAIN)
    assert (row["state"], row["attempts"], row["preemptions"]) == ("Running", 1, 0)


def test_a_lost_node_is_a_preemption_and_not_an_attempt(
    node: Node, kube: Kube, training: LiveObject, durations: Durations
) -> None:
    pod = training.wait_for_pod(Stage.TRAIN)["metadata"]["name"]
    with durations.timed("from the loss of a node to the end of the run"):
        with second_node(kube), stopped_kubelet(node):
            kube.wait(
                "v1",
                "Pod",
                training.namespace,
                pod,
                lambda found: "deletionTimestamp" in found["metadata"],
                "the cluster has evicted the Pod",
                3 * (NODE_GRACE_SECONDS + EVICTION_SECONDS),
            )
            assert len(training.pods(Stage.TRAIN)) == 1, "no second Pod while the first can still write"
        second = training.wait_for_pod(Stage.TRAIN, other_than=pod)["metadata"]["name"]
        status = training.wait_for_end()
    assert status["phase"] == "Succeeded", status
    row = training.row(Stage.TRAIN)
    assert (row["preemptions"], row["attempts"]) == (1, 1)
    said = [line["say"] for line in training.lines(second) if "say" in line]
    assert any(sentence.startswith("resuming training from the checkpoint of step ") for sentence in said), said
