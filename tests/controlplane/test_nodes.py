"""Trainings on two nodes: real Jobs, a real garbage collector and a real DNS; the kubelet is played."""

from collections.abc import Iterator
from typing import Any

import pytest

from cluster import binaries
from cluster.controlplane import ControlPlane, free_ports
from cluster.dns import DOMAIN, ClusterDns
from cluster.processes import wait_for
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from support.builders import failed_result
from support.kube import LIMIT_SECONDS, pod_ended, pod_running
from support.scenario import request_of
from support.stage_player import OBJECT, PROFILES, STORE, Operator, StagePlayer

WITH_NODES = {**PROFILES, "nodes": {"store": STORE, "resources": {"train": {"limits": {"cpu": 1}, "nodes": 2}}}}
NOT_READY = [{"type": "Ready", "status": "False"}]


@pytest.fixture
def training(player: StagePlayer, operator: Operator) -> StagePlayer:
    """An object whose training has a Job on two nodes."""
    operator.ensure(WITH_NODES)
    player.apply(profile="nodes")
    player.finish(Stage.PREPARE)
    assert wait_for(lambda: bool(player.jobs(Stage.TRAIN)), LIMIT_SECONDS), player.object.get("status")
    return player


def pods_on(player: StagePlayer, *without: str) -> dict[int, dict[str, Any]]:
    """The pending Pods of the training by node, once both are there; those with these names are ignored."""
    found: dict[int, dict[str, Any]] = {}

    def are_there() -> bool:
        for pod in player.kube.list("v1", "Pod", player.namespace, f"{names.STAGE_LABEL}={Stage.TRAIN}"):
            if pod["status"]["phase"] == "Pending" and pod["metadata"]["name"] not in without:
                found[int(pod["metadata"]["labels"][names.INDEX_LABEL])] = pod
        return len(found) == 2

    assert wait_for(are_there, LIMIT_SECONDS), f"no two Pods: {sorted(found)}; {player.object.get('status')}"
    return found


def job_of(player: StagePlayer) -> dict[str, Any]:
    return player.jobs(Stage.TRAIN)[-1]


def service_of(player: StagePlayer, job: str) -> dict[str, Any]:
    return player.kube.wait("v1", "Service", player.namespace, job, lambda _: True, "the Job has its Service")


def end(player: StagePlayer, pod: dict[str, Any], code: ExitCode, message: str, step: int | None = None) -> None:
    """A Pod of the training ends with this code and message."""
    digest = request_of(job_of(player)).digest
    result = failed_result(Stage.TRAIN, digest, code, code.reason, message, step)
    player.end_pod(pod, pod_ended(code, result.encode().decode()))


def wait_for_job(player: StagePlayer, **status: int) -> None:
    """Wait until the Job controller has these counts in the Job's status."""
    job = job_of(player)["metadata"]["name"]
    player.kube.wait(
        "batch/v1",
        "Job",
        player.namespace,
        job,
        lambda found: all((found.get("status") or {}).get(name, 0) == count for name, count in status.items()),
        f"the Job counts {status}",
    )


def test_a_training_on_two_nodes_is_one_indexed_job_whose_service_is_collected_with_it(training: StagePlayer) -> None:
    pods, job = pods_on(training), job_of(training)
    name = job["metadata"]["name"]
    service = service_of(training, name)

    assert job["spec"]["completionMode"] == "Indexed"
    assert {pod["spec"]["hostname"] for pod in pods.values()} == {f"{name}-0", f"{name}-1"}
    assert {pod["spec"]["subdomain"] for pod in pods.values()} == {name}
    assert service["spec"]["clusterIP"] == "None"
    assert [owner["uid"] for owner in service["metadata"]["ownerReferences"]] == [job["metadata"]["uid"]]

    for pod in pods.values():
        training.finish_pod(job, pod)
    training.finish_from(Stage.MERGE)
    training.wait_for_phase("Succeeded")
    training.kube.delete(*OBJECT, training.namespace, "sensor-faults")

    assert wait_for(lambda: training.kube.get("v1", "Service", training.namespace, name) is None, LIMIT_SECONDS)


def test_a_service_that_somebody_deletes_is_created_again(training: StagePlayer) -> None:
    name = job_of(training)["metadata"]["name"]
    before = service_of(training, name)["metadata"]["uid"]
    training.kube.delete("v1", "Service", training.namespace, name)

    training.kube.wait(
        "v1", "Service", training.namespace, name, lambda found: found["metadata"]["uid"] != before, "a new Service", 60
    )


def test_one_incident_counts_once_and_says_which_pod_failed(training: StagePlayer) -> None:
    pods = pods_on(training)
    end(training, pods[0], ExitCode.PEER_LOST, "node 1 is gone")
    end(training, pods[1], ExitCode.TRANSIENT, "the store does not answer")
    following = pods_on(training, *(pod["metadata"]["name"] for pod in pods.values()))
    wait_for_job(training, failed=1, active=2)
    training.wait(lambda _: training.row(Stage.TRAIN)["attempts"] == 2, "the second attempt is counted")
    row = training.row(Stage.TRAIN)

    for pod in following.values():
        training.finish_pod(job_of(training), pod)
    training.wait(lambda _: training.row(Stage.TRAIN)["state"] == "Succeeded", "the training has succeeded")

    assert (row["attempts"], row.get("preemptions", 0)) == (2, 0)
    assert row["message"] == "an attempt failed and is retried: TransientError: the store does not answer"
    assert training.row(Stage.TRAIN)["attempts"] == 2


def test_pods_that_fail_at_the_same_time_are_one_attempt_and_the_limit_of_retries_counts_attempts(
    player: StagePlayer, operator: Operator
) -> None:
    operator.ensure(WITH_NODES)
    player.apply(profile="nodes", retryLimit=1)
    player.finish(Stage.PREPARE)
    first = pods_on(player)
    for pod in first.values():
        end(player, pod, ExitCode.TRANSIENT, "the store does not answer")
    second = pods_on(player, *(pod["metadata"]["name"] for pod in first.values()))
    wait_for_job(player, failed=2, active=2)
    player.wait(lambda _: player.row(Stage.TRAIN)["attempts"] == 2, "the second attempt is counted")
    between = player.row(Stage.TRAIN)["state"]
    end(player, second[1], ExitCode.TRANSIENT, "the store does not answer")
    end(player, second[0], ExitCode.TRANSIENT, "the store does not answer")

    status = player.wait_for_phase("Failed")["status"]

    failed = next(each for each in status["stages"] if each["name"] == "train")
    assert between == "Running"
    assert (failed["reason"], failed["attempts"]) == ("TransientError", 2)
    assert failed["message"] == "the store does not answer (attempt 2, spec.retryLimit was 1)"


def test_a_failure_that_cannot_pass_ends_the_job_on_all_nodes(training: StagePlayer) -> None:
    pods = pods_on(training)
    for pod in pods.values():
        training.bind(pod)
        training.end_pod(pod, pod_running())
    end(training, pods[1], ExitCode.DIVERGED, "the loss is not finite")
    first = pods[0]["metadata"]["name"]
    training.kube.wait("v1", "Pod", training.namespace, first, _is_deleted, "the other Pod is stopped")
    end(training, pods[0], ExitCode.INTERRUPTED, "stopped by SIGTERM")
    training.remove_pod(pods[0])

    status = training.wait_for_phase("Failed")["status"]

    row = next(row for row in status["stages"] if row["name"] == "train")
    assert (row["reason"], row["message"]) == ("TrainingDiverged", "the loss is not finite")


def test_an_evicted_pod_is_one_preemption_of_all_and_no_attempt(training: StagePlayer) -> None:
    pods = pods_on(training)
    for pod in pods.values():
        training.bind(pod)
        training.end_pod(pod, pod_running())
    training.wait_for_phase("Training")
    evicted = pods[1]["metadata"]["name"]
    training.kube.evict(training.namespace, evicted)
    training.kube.wait("v1", "Pod", training.namespace, evicted, _is_deleted, "it is stopped")
    disrupted = training.kube.get("v1", "Pod", training.namespace, evicted)
    assert disrupted is not None
    conditions = {"conditions": disrupted["status"]["conditions"]}
    digest = request_of(job_of(training)).digest
    stopped = failed_result(Stage.TRAIN, digest, ExitCode.INTERRUPTED, "Interrupted", "stopped by SIGTERM", step=40)
    training.end_pod(pods[1], pod_ended(ExitCode.INTERRUPTED, stopped.encode().decode()) | conditions)
    end(training, pods[0], ExitCode.PEER_LOST, "node 1 was stopped", step=40)
    training.remove_pod(pods[1])
    pods_on(training, *(pod["metadata"]["name"] for pod in pods.values()))
    wait_for_job(training, active=2)
    training.wait(lambda _: training.row(Stage.TRAIN).get("preemptions") == 1, "the preemption is counted")

    row = training.row(Stage.TRAIN)
    assert (row["attempts"], row["reason"]) == (1, "Evicted")
    assert row["message"] == "evicted from its node, for example by a drain; resumes from the checkpoint of step 40"
    assert job_of(training)["status"].get("failed", 0) == 0


@pytest.fixture
def dns(control_plane: ControlPlane) -> Iterator[ClusterDns]:
    """The cluster's DNS."""
    if binaries.find("coredns") is None:
        pytest.skip("no coredns in the cache: run `make programs`")
    (port,) = free_ports(1)
    server = ClusterDns(control_plane, "127.0.0.1", port)
    server.start()
    yield server
    server.stop()


def test_the_pods_have_the_host_names_at_which_they_look_for_each_other_before_they_are_ready(
    training: StagePlayer, dns: ClusterDns
) -> None:
    name = job_of(training)["metadata"]["name"]
    service_of(training, name)
    pods = pods_on(training)
    for node, pod in pods.items():
        training.bind(pod)
        address = f"10.244.0.{10 + node}"
        running = pod_running() | {"podIP": address, "podIPs": [{"ip": address}], "conditions": NOT_READY}
        training.end_pod(pod, running)
    (container,) = pods[0]["spec"]["containers"]
    rendezvous = next(each["value"] for each in container["env"] if each["name"] == "EDGETUNE_RENDEZVOUS")
    host = f"{rendezvous.removesuffix(':29500')}.{training.namespace}.svc.{DOMAIN}"
    other = host.replace("-0.", "-1.", 1)

    assert wait_for(lambda: dns.resolve(host) == ["10.244.0.10"], 60), dns.resolve(host)
    assert wait_for(lambda: dns.resolve(other) == ["10.244.0.11"], 60), dns.resolve(other)


def _is_deleted(item: dict[str, Any]) -> bool:
    return item["metadata"].get("deletionTimestamp") is not None
