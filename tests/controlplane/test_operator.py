"""The operator process on a real control plane: Jobs by the real Job controller, Pods whose kubelet the tests play."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import ControlPlane, running_control_plane
from edgetune_contract.request import Result
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator import names
from edgetune_operator.crd import custom_resource_definition
from support.apiserver import BINARIES, BINARIES_VARIABLE, binaries_are_there
from support.builders import lora_fine_tune
from support.kube import Kube, condition, pod_ended
from support.operator_process import running_operator
from support.scenario import Scenario, request_of

pytestmark = pytest.mark.slow

_KIND = (names.API_VERSION, names.KIND)
_PROFILES = {"default": {"store": {"uri": "s3://artifacts/edgetune"}}}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class StagePlayer:
    """Plays kubelet and stages for one object: ends the Pods of its Jobs with the results that stages would give."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.stages = Scenario(lora_fine_tune())

    @property
    def object(self) -> dict[str, Any]:
        found = self.kube.get(*_KIND, self.namespace, "sensor-faults")
        assert found is not None
        return found

    def apply(self, **spec: Any) -> None:
        document = lora_fine_tune().build()
        document["spec"] |= spec
        self.kube.apply(
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "metadata": {"name": "sensor-faults", "namespace": self.namespace},
                "spec": document["spec"],
            }
        )

    def wait(self, holds: Any, what: str) -> dict[str, Any]:
        return self.kube.wait(*_KIND, self.namespace, "sensor-faults", holds, what)

    def wait_for_phase(self, phase: str) -> dict[str, Any]:
        return self.wait(lambda found: (found.get("status") or {}).get("phase") == phase, f"phase {phase}")

    def live_pod(self, stage: Stage) -> tuple[dict[str, Any], dict[str, Any]]:
        """The Job of a stage and its Pod that has not ended, once both are there."""
        deadline = time.monotonic() + 60
        selector = f"{names.STAGE_LABEL}={stage}"
        while time.monotonic() < deadline:
            pods = self.kube.list("v1", "Pod", self.namespace, selector)
            pods = [pod for pod in pods if pod["status"].get("phase") == "Pending" and not _deleting(pod)]
            jobs = {job["metadata"]["name"]: job for job in self.kube.list("batch/v1", "Job", self.namespace, selector)}
            owners = [pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] for pod in pods]
            if owners and owners[-1] in jobs:
                return jobs[owners[-1]], pods[-1]
            time.sleep(0.1)
        raise TimeoutError(f"no Pod of stage {stage} within 60 s; status: {self.object.get('status')}")

    def end_pod(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        self.kube.set_status("v1", "Pod", self.namespace, pod["metadata"]["name"], status)

    def remove_pod(self, pod: dict[str, Any]) -> None:
        """A Pod that is being deleted is gone: no kubelet is here to confirm that its container has ended."""
        path = f"{self.kube.path('v1', 'Pod', self.namespace, pod['metadata']['name'])}?gracePeriodSeconds=0"
        self.kube.request("DELETE", path)

    def finish(self, stage: Stage) -> None:
        job, pod = self.live_pod(stage)
        result = self.stages.simulated_result(request_of(job))
        self.end_pod(pod, pod_ended(0, result.encode().decode()))

    def finish_from(self, first: Stage) -> None:
        for stage in list(Stage)[list(Stage).index(first) :]:
            self.finish(stage)

    def row(self, stage: Stage) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.object["status"]["stages"]
        return next(row for row in rows if row["name"] == stage)


def _deleting(item: dict[str, Any]) -> bool:
    return item["metadata"].get("deletionTimestamp") is not None


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    if not binaries_are_there():
        pytest.skip(f"no {' and '.join(BINARIES)} in ${BINARIES_VARIABLE} or the cache: the operator is not tried")
    with running_control_plane(tmp_path_factory.mktemp("controlplane")) as plane:
        kube = Kube.from_kubeconfig(plane.kubeconfig())
        crd = custom_resource_definition()
        kube.apply(crd)
        kube.wait(
            crd["apiVersion"],
            crd["kind"],
            None,
            crd["metadata"]["name"],
            lambda found: (condition(found, "Established") or {}).get("status") == "True",
            "the CRD is established",
        )
        yield plane


class Operator:
    """The operator process, which tests stop and start."""

    def __init__(self, folder: Path, plane: ControlPlane) -> None:
        self._folder = folder
        self._plane = plane
        self._stack = ExitStack()

    def start(self) -> None:
        ports = ("--health-port", str(_free_port()), "--metrics-port", str(_free_port()))
        self._stack.enter_context(running_operator(self._folder, self._plane.kubeconfig(), _PROFILES, *ports))

    def stop(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def operator(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    operator = Operator(tmp_path_factory.mktemp("operator"), control_plane)
    operator.start()
    yield operator
    operator.stop()


@pytest.fixture
def player(control_plane: ControlPlane, operator: Operator, request: pytest.FixtureRequest) -> StagePlayer:  # noqa: ARG001
    kube = Kube.from_kubeconfig(control_plane.kubeconfig())
    namespace = f"team-{abs(hash(request.node.name)) % 10**8}"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    kube.wait("v1", "ServiceAccount", namespace, "default", lambda _: True, "the namespace's service account is there")
    return StagePlayer(kube, namespace)


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
    reasons = {event["reason"] for event in player.kube.list("v1", "Event", player.namespace)}
    assert {"PrepareStarted", "TrainSucceeded", "Published"} <= reasons


def test_an_evicted_training_goes_on_in_a_new_pod_and_counts_one_preemption(player: StagePlayer) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    job, pod = player.live_pod(Stage.TRAIN)
    digest = request_of(job).digest
    stopped = Result.failed(Stage.TRAIN, digest, ExitCode.INTERRUPTED, "Interrupted", "stopped by SIGTERM", step=40)
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


def test_a_stage_that_ends_while_the_operator_is_down_is_recorded_when_it_is_back(
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


def test_invalid_data_fails_at_once_and_a_corrected_object_goes_on(player: StagePlayer) -> None:
    player.apply()
    job, pod = player.live_pod(Stage.PREPARE)
    failed = Result.failed(
        Stage.PREPARE, request_of(job).digest, ExitCode.INVALID, "InvalidInput", "line 7: no response"
    )
    player.end_pod(pod, pod_ended(ExitCode.INVALID, failed.encode().decode()))

    player.wait_for_phase("Failed")
    stalled = condition(player.object, "Stalled")
    assert stalled is not None
    assert (stalled["reason"], stalled["message"]) == ("InvalidInput", "prepare: line 7: no response")

    player.apply(dataset={"train": {"uri": "s3://datasets/mended.jsonl"}})
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")
    assert condition(player.object, "Stalled") is None


def test_suspending_deletes_the_running_job_and_resuming_creates_it_anew(player: StagePlayer) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    _, pod = player.live_pod(Stage.TRAIN)
    player.apply(suspend=True)
    player.wait_for_phase("Suspended")
    # No kubelet is here to confirm that the container has ended.
    player.kube.request(
        "DELETE", f"/api/v1/namespaces/{player.namespace}/pods/{pod['metadata']['name']}?gracePeriodSeconds=0"
    )

    player.apply(suspend=False)
    player.finish_from(Stage.TRAIN)
    player.wait_for_phase("Succeeded")


def test_a_quota_that_refuses_the_job_stalls_the_object_and_it_recovers_when_the_quota_is_gone(
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
    player.apply()

    found = player.wait(lambda found: condition(found, "Stalled") is not None, "it is stalled")
    stalled = condition(found, "Stalled")
    assert stalled is not None
    assert stalled["reason"] == "JobRefused"
    assert "exceeded quota: none" in stalled["message"]

    player.kube.delete("v1", "ResourceQuota", player.namespace, "none")
    player.apply(retryLimit=2)
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")


def test_a_deleted_object_takes_its_jobs_along_without_a_finalizer(player: StagePlayer) -> None:
    player.apply()
    _, pod = player.live_pod(Stage.PREPARE)
    assert "finalizers" not in player.object["metadata"]
    player.kube.delete(*_KIND, player.namespace, "sensor-faults")
    player.kube.request(
        "DELETE", f"/api/v1/namespaces/{player.namespace}/pods/{pod['metadata']['name']}?gracePeriodSeconds=0"
    )

    deadline = time.monotonic() + 60
    while player.kube.list("batch/v1", "Job", player.namespace):
        assert time.monotonic() < deadline, "the Job is still there"
        time.sleep(0.1)
