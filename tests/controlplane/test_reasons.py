"""Why a stage waits or failed, with a real API server and Job controller; the kubelet is played."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edgetune_contract.stages import ExitCode, Stage
from support.builders import failed_result
from support.kube import condition, pod_ended, pod_running, pod_waiting
from support.scenario import request_of
from support.stage_player import PROFILES, STORE, Operator, StagePlayer

pytestmark = pytest.mark.slow

# A silent wait is reported after 10 s; the Job controller retries after 1, 2, 4, 8, 16, 32 s.
_LIMIT_SECONDS = 90


def disrupted(reason: str, age: timedelta = timedelta(0)) -> dict[str, Any]:
    """The condition of a Pod that is stopped from outside."""
    time = (datetime.now(UTC) - age).isoformat(timespec="seconds")
    return {
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": time}]
    }


def post_event(player: StagePlayer, pod: dict[str, Any], reason: str, message: str) -> None:
    """The kubelet posts an Event of a Pod."""
    time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    metadata = pod["metadata"]
    involved = {"apiVersion": "v1", "kind": "Pod", **{key: metadata[key] for key in ("name", "namespace", "uid")}}
    event = {
        "metadata": {"generateName": f"{metadata['name']}.", "namespace": player.namespace},
        "involvedObject": involved,
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": time,
        "count": 1,
    }
    reply = player.kube.request("POST", player.kube.path("v1", "Event", player.namespace), event)
    assert reply.accepted, reply.message


def another(player: StagePlayer, namespace: str) -> StagePlayer:
    """A player in another namespace."""
    player.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    player.kube.wait("v1", "ServiceAccount", namespace, "default", lambda _: True, "Pods have a service account")
    return StagePlayer(player.kube, namespace)


def test_a_silent_wait_is_reported_from_events_until_it_is_resolved(player: StagePlayer) -> None:
    """A missing Secret, Pods refused by a limit range and by a quota: in parallel, since each takes 10 s."""
    limited, spent = another(player, f"{player.namespace}-limited"), another(player, f"{player.namespace}-spent")
    limits = {"limits": [{"type": "Container", "max": {"memory": "1Mi"}}]}
    limit_range = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "tiny", "namespace": limited.namespace},
    }
    player.kube.apply({**limit_range, "spec": limits})
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": spent.namespace}}
    player.kube.apply({**quota, "spec": {"hard": {"pods": "1"}}})
    used_up = {"hard": {"pods": "1"}, "used": {"pods": "1"}}
    player.kube.set_status("v1", "ResourceQuota", spent.namespace, "none", used_up)
    for each in (player, limited, spent):
        each.apply()
    _, pod = player.live_pod(Stage.PREPARE)
    player.end_pod(pod, pod_waiting("ContainerCreating"))
    post_event(
        player, pod, "FailedMount", 'MountVolume.SetUp failed for volume "s3-credentials" : secret "s3" not found'
    )

    missing = player.wait_for_condition("Reconciling", "SecretNotFound", _LIMIT_SECONDS)
    refused = limited.wait_for_condition("Reconciling", "PodsRefused", _LIMIT_SECONDS)
    exceeded = spent.wait_for_condition("Reconciling", "QuotaExceeded", _LIMIT_SECONDS)

    assert missing["message"] == (
        f"prepare: Secret s3 not found in namespace {player.namespace}; create it, and the stage continues by itself"
    )
    assert player.object["status"]["display"]["progress"] == "SecretNotFound"
    assert refused["message"] == (
        "prepare: the cluster refuses the stage's Pod: maximum memory usage per Container is 1Mi, but limit is 4Gi; "
        "the Job retries by itself"
    )
    assert exceeded["message"] == (
        "prepare: the cluster refuses the stage's Pod: exceeded quota: none, requested: pods=1, used: pods=1, limited: "
        "pods=1; the Job retries by itself"
    )

    player.end_pod(pod, pod_running())
    player.wait_for_condition("Reconciling", "JobRunning")
    player.kube.delete("v1", "LimitRange", limited.namespace, "tiny")
    player.kube.delete("v1", "ResourceQuota", spent.namespace, "none")
    for each in (limited, spent):
        each.wait_for_condition("Reconciling", "JobRunning", _LIMIT_SECONDS)


@pytest.mark.parametrize(
    ("reason", "message", "kind", "phase"),
    [
        ("ImagePullBackOff", 'Back-off pulling image "ghcr.io/edgetune/jobs:0.1.0"', "Reconciling", "Preparing"),
        ("InvalidImageName", 'couldn\'t parse image name "GHCR.io/Jobs"', "Stalled", "Stalled"),
        ("CreateContainerConfigError", 'secret "edgetune-s3" not found', "Reconciling", "Preparing"),
    ],
)
def test_a_container_that_cannot_start_holds_the_object_up_until_it_runs(
    player: StagePlayer, reason: str, message: str, kind: str, phase: str
) -> None:
    player.apply()
    _, pod = player.live_pod(Stage.PREPARE)

    player.end_pod(pod, pod_waiting(reason, message))
    held_up = player.wait_for_condition(kind, reason)
    shown = player.object["status"]["phase"]
    player.end_pod(pod, pod_running())
    player.wait_for_condition("Reconciling", "JobRunning")

    assert (held_up["message"], shown) == (f"prepare: {message}", phase)
    assert player.object["status"]["phase"] == "Preparing"


def test_an_image_fixed_in_the_profile_reaches_the_job_that_waits_for_it(
    player: StagePlayer, operator: Operator
) -> None:
    player.apply()
    job, pod = player.live_pod(Stage.PREPARE)
    player.end_pod(pod, pod_waiting("ImagePullBackOff", 'Back-off pulling image "ghcr.io/edgetune/jbos:0.1.0"'))
    player.wait_for_condition("Reconciling", "ImagePullBackOff")

    operator.stop()
    operator.start({"default": {"store": STORE, "image": {"reference": "ghcr.io/edgetune/jobs:fixed"}}})
    uid = job["metadata"]["uid"]
    player.wait(lambda _: (player.jobs(Stage.PREPARE) or [job])[-1]["metadata"]["uid"] != uid, "it is replaced")
    replacement, _ = player.live_pod(Stage.PREPARE)
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")
    operator.stop()
    operator.start()

    (container,) = replacement["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "ghcr.io/edgetune/jobs:fixed"
    assert replacement["metadata"]["name"] == job["metadata"]["name"]
    assert replacement["metadata"]["uid"] != job["metadata"]["uid"]
    events = player.kube.list("v1", "Event", player.namespace)
    assert any(event["reason"] == "PrepareReplaced" and "the profile" in event["message"] for event in events)


def test_an_unschedulable_pod_is_reported_with_the_schedulers_message_until_a_node_fits(player: StagePlayer) -> None:
    player.apply()
    _, pod = player.live_pod(Stage.PREPARE)
    message = "0/3 nodes are available: 3 Insufficient memory."
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}

    player.end_pod(pod, {"phase": "Pending", "conditions": [unscheduled]})
    waiting = player.wait_for_condition("Reconciling", "Unschedulable")
    player.end_pod(pod, {**pod_running(), "conditions": [{"type": "PodScheduled", "status": "True"}]})
    player.wait_for_condition("Reconciling", "JobRunning")

    assert waiting["message"] == f"prepare: {message}"


def test_an_object_whose_profile_is_missing_continues_when_the_profile_exists(
    player: StagePlayer, operator: Operator
) -> None:
    player.apply(profile="late")
    late = player.wait_for_condition("Reconciling", "ProfileNotFound")
    phase = player.object["status"]["phase"]

    operator.stop()
    operator.start({**PROFILES, "late": {"store": STORE}})
    player.finish_from(Stage.PREPARE)
    done = player.wait_for_phase("Succeeded")
    operator.stop()
    operator.start()

    assert late["message"] == (f"spec.profile: profile 'late' not found; namespace {player.namespace} may use default")
    assert phase == "Pending"
    assert condition(done, "Stalled") is None


@pytest.mark.parametrize(
    ("disruption", "kubelet", "reason"),
    [
        ("EvictionByEvictionAPI", {}, "Evicted"),
        ("PreemptionByScheduler", {}, "Preempted"),
        ("DeletionByTaintManager", {}, "NodeLost"),
        ("DeletionByPodGC", {}, "NodeLost"),
        (
            "TerminationByKubelet",
            {"reason": "Evicted", "message": "The node was low on resource: memory."},
            "NodePressure",
        ),
        (
            "TerminationByKubelet",
            {"reason": "Terminated", "message": "Pod was terminated in response to imminent node shutdown."},
            "NodeShutdown",
        ),
    ],
)
def test_an_attempt_stopped_from_outside_has_its_own_reason_and_is_retried(
    player: StagePlayer, disruption: str, kubelet: dict[str, str], reason: str
) -> None:
    player.apply()
    _, pod = player.live_pod(Stage.PREPARE)

    player.end_pod(pod, {**pod_ended(137), **disrupted(disruption), **kubelet})
    interrupted = player.wait_for_condition("Reconciling", reason)
    assert kubelet.get("message", "") in interrupted["message"]
    player.remove_pod(pod)
    player.finish_from(Stage.PREPARE)

    player.wait_for_phase("Succeeded")
    row = player.row(Stage.PREPARE)
    assert (row["preemptions"], row["attempts"], row["message"]) == (1, 1, "1 preemption")


def test_a_node_that_stays_lost_stalls_the_object_until_it_is_deleted(player: StagePlayer) -> None:
    player.apply()
    _, pod = player.live_pod(Stage.PREPARE)
    binding = {"metadata": {"name": pod["metadata"]["name"]}, "target": {"kind": "Node", "name": "gpu-7"}}
    path = f"{player.kube.path('v1', 'Pod', player.namespace)}/{pod['metadata']['name']}/binding"
    assert player.kube.request("POST", path, {"apiVersion": "v1", "kind": "Binding", **binding}).accepted

    player.end_pod(pod, {**pod_running(), **disrupted("DeletionByTaintManager", timedelta(minutes=6))})
    stalled = player.wait_for_condition("Stalled", "NodeUnresponsive")
    # As the garbage collector of Pods does after `kubectl delete node`.
    player.end_pod(pod, {**pod_ended(137), **disrupted("DeletionByTaintManager", timedelta(minutes=6))})
    player.remove_pod(pod)
    player.finish_from(Stage.PREPARE)
    done = player.wait_for_phase("Succeeded")

    assert "its node gpu-7 has not confirmed it" in stalled["message"]
    assert "`kubectl delete node gpu-7`" in stalled["message"]
    assert condition(done, "Stalled") is None


def test_an_evicted_training_reports_its_lost_steps(player: StagePlayer) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    job, pod = player.live_pod(Stage.TRAIN)
    digest = request_of(job).digest
    stopped = failed_result(Stage.TRAIN, digest, ExitCode.INTERRUPTED, "Interrupted", "stopped by SIGTERM", step=40)
    ended = pod_ended(ExitCode.INTERRUPTED, stopped.encode().decode())
    player.end_pod(pod, {**ended, **disrupted("EvictionByEvictionAPI")})

    evicted = player.wait_for_condition("Reconciling", "Evicted")

    assert evicted["message"] == (
        "train: evicted from its node, for example by a drain; resumes from the checkpoint of step 40"
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [(ExitCode.INVALID, "InvalidInput"), (ExitCode.DENIED, "AccessDenied"), (ExitCode.DIVERGED, "TrainingDiverged")],
)
def test_a_permanent_failure_is_not_retried(player: StagePlayer, code: ExitCode, reason: str) -> None:
    player.apply()

    player.fail(Stage.PREPARE, code, "the stage's message")

    stalled = player.wait_for_condition("Stalled", reason)
    assert stalled["message"] == "prepare: the stage's message"
    assert player.object["status"]["phase"] == "Failed"


@pytest.mark.parametrize(
    ("code", "reason"), [(ExitCode.OUT_OF_GPU_MEMORY, "OutOfGpuMemory"), (ExitCode.TRANSIENT, "TransientError")]
)
def test_a_retryable_failure_is_final_when_the_retries_are_used_up(
    player: StagePlayer, code: ExitCode, reason: str
) -> None:
    player.apply(retryLimit=1)
    player.finish(Stage.PREPARE)

    player.fail(Stage.TRAIN, code, "the stage's message")
    retried = player.wait_for_condition("Reconciling", "AttemptFailed")
    player.fail(Stage.TRAIN, code, "the stage's last message")
    stalled = player.wait_for_condition("Stalled", reason)

    assert retried["message"] == f"train: an attempt failed and is retried: {reason}: the stage's message"
    assert stalled["message"] == "train: the stage's last message (attempt 2, spec.retryLimit was 1)"
    row = player.row(Stage.TRAIN)
    assert (row["state"], row["attempts"], player.object["status"]["phase"]) == ("Failed", 2, "Failed")


def test_an_attempt_that_is_killed_at_its_memory_limit_is_repeated_with_twice_the_memory(player: StagePlayer) -> None:
    player.apply(retryLimit=2)
    player.finish(Stage.PREPARE)
    job, pod = player.live_pod(Stage.TRAIN)

    def has_twice_the_memory(found: dict[str, Any]) -> bool:
        return str(resources_of(found)["limits"]["memory"]) == "64Gi"

    player.end_pod(pod, pod_ended(137, reason="OOMKilled"))
    name = job["metadata"]["name"]
    again = player.kube.wait("batch/v1", "Job", player.namespace, name, has_twice_the_memory, "Twice the memory")
    player.finish_from(Stage.TRAIN)
    player.wait_for_phase("Succeeded")

    assert resources_of(job)["limits"]["memory"] == "32Gi"
    assert again["spec"]["backoffLimit"] == 1
    row = player.row(Stage.TRAIN)
    assert (row["attempts"], row["memoryDoublings"]) == (2, 1)


def resources_of(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    resources: dict[str, Any] = container["resources"]
    return resources


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (
            pod_ended(137, reason="OOMKilled"),
            "OutOfMemory",
            "prepare: the container was killed at its memory limit; raise it in the profile",
        ),
        (pod_ended(1, "KeyError: 'x'"), "InternalError", "prepare: exit code 1: KeyError: 'x'"),
        (
            {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed"},
            "UnexpectedAdmissionError",
            "prepare: Allocate failed",
        ),
        (
            {
                **pod_ended(137),
                "reason": "Evicted",
                "message": 'Usage of EmptyDir volume "work" exceeds the limit "64Gi". ',
            },
            "EphemeralStorageExceeded",
            'prepare: Usage of EmptyDir volume "work" exceeds the limit "64Gi"; raise workVolumeSize, sizing.storage '
            "or the stage's ephemeral-storage in the profile, then retry",
        ),
    ],
)
def test_a_failure_without_a_result_is_reported_with_the_kubelets_message(
    player: StagePlayer, status: dict[str, Any], reason: str, message: str
) -> None:
    player.apply(retryLimit=0)
    _, pod = player.live_pod(Stage.PREPARE)

    player.end_pod(pod, status)

    assert player.wait_for_condition("Stalled", reason)["message"] == message
