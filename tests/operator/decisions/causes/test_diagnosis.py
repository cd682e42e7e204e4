"""Why a stage waits, was interrupted or failed: the reason and message of each cause."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.profiles.resources import Resources
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.causes.diagnosis import silent_wait
from edgetune_operator.decisions.observe import observe
from support.builders import PodBuilder, lora_fine_tune
from support.scenario import PROFILE, Scenario

SECRET_EVENT = 'MountVolume.SetUp failed for volume "s3-credentials" : secret "edgetune-s3" not found'
NO_SECRET = "Secret edgetune-s3 not found in namespace team-a; create it, and the stage continues by itself"
CHECKPOINT = "resumes from its newest checkpoint"


@pytest.fixture
def training() -> Scenario:
    """An object whose training has a Pod, with memory that the profile fixes."""
    fixed = Resources(limits={"memory": "32Gi"})
    scenario = Scenario(lora_fine_tune(), PROFILE.model_copy(update={"resources": {Stage.TRAIN: fixed}}))
    scenario.advance_to(Stage.TRAIN)
    return scenario


def stuck(scenario: Scenario) -> str:
    """The Pod waits without a stated reason; returns its UID."""
    scenario.end_pod(lambda pod: pod.waiting("ContainerCreating"))
    return f"uid-of-{scenario.cluster.pods_of(scenario.live_job)[-1]}"


def without_pod(scenario: Scenario) -> str:
    """The Job has no Pod; returns the Job's UID."""
    scenario.cluster.pods.clear()
    return f"uid-of-{scenario.live_job}"


def reconcile_later(scenario: Scenario) -> None:
    """Passes until the Events of a silent wait are due."""
    for _ in range(3):
        scenario.reconcile()


def test_a_missing_secret_stalls_the_object_until_the_secret_exists(
    training: Scenario,
) -> None:
    pod = stuck(training)
    training.post_event(pod, "Normal", "Scheduled", "Successfully assigned team-a/x to edge-node")
    training.post_event(pod, "Warning", "FailedMount", SECRET_EVENT)
    reconcile_later(training)

    assert training.held_up == ("True", "SecretNotFound", f"train: {NO_SECRET}")
    assert training.condition("Ready") == ("False", "SecretNotFound", f"train: {NO_SECRET}")
    assert (training.row(Stage.TRAIN).reason, training.row(Stage.TRAIN).message) == ("SecretNotFound", NO_SECRET)
    assert training.reconcile().wrote_status is False

    training.end_pod(lambda pod: pod.running())
    training.reconcile()

    assert training.held_up is None
    assert training.condition("Reconciling") == ("True", "JobRunning", "train: running")


def test_a_pod_that_has_waited_for_a_few_seconds_is_not_reported(training: Scenario) -> None:
    training.post_event(stuck(training), "Warning", "FailedMount", SECRET_EVENT)
    training.cluster.now -= timedelta(seconds=1)

    training.reconcile()

    assert training.held_up is None


def test_a_warning_about_a_pod_is_resolved_once_its_volumes_are_mounted(training: Scenario) -> None:
    """Its image may be pulled for many minutes after that, and the Event stays for an hour."""
    training.post_event(stuck(training), "Warning", "FailedMount", SECRET_EVENT)
    reconcile_later(training)
    assert training.held_up == ("True", "SecretNotFound", f"train: {NO_SECRET}")

    training.end_pod(lambda pod: pod.waiting("ContainerCreating").set_up())
    training.reconcile()

    assert training.held_up is None
    message = "train: its volumes are mounted; its node is pulling the image or creating the container"
    assert training.condition("Reconciling") == ("True", "ContainerCreating", message)


def test_a_sidecar_that_does_not_get_ready_is_named_with_its_probe(training: Scenario) -> None:
    def ending(pod: PodBuilder) -> PodBuilder:
        return replace(pod.waiting("PodInitializing").set_up().outlived_by("istio-proxy", native=True), phase="Pending")

    training.end_pod(ending)
    pod = f"uid-of-{training.cluster.pods_of(training.live_job)[-1]}"
    training.post_event(pod, "Warning", "Unhealthy", "Startup probe failed: 503")
    reconcile_later(training)

    message = (
        "train: its volumes are mounted; its node is pulling the image or creating the container, or waits for "
        "istio-proxy: Startup probe failed: 503"
    )
    assert training.condition("Reconciling") == ("True", "ContainerCreating", message)


def test_a_warning_about_a_job_from_before_its_last_pod_is_resolved(training: Scenario) -> None:
    """A quota refused the first attempt; the second one ran, failed and is retried."""
    training.post_event(f"uid-of-{training.live_job}", "Warning", "FailedCreate", "exceeded quota: gpus")
    training.cluster.now += timedelta(minutes=5)
    training.end_pod(lambda pod: pod.failed(Stage.TRAIN, "d" * 64, ExitCode.TRANSIENT, "the store did not answer"))

    reconcile_later(training)

    assert training.held_up is None
    message = "train: an attempt failed and is retried: TransientError: the store did not answer"
    assert training.condition("Reconciling") == ("True", "AttemptFailed", message)


@pytest.mark.parametrize(
    ("reason", "event", "expected"),
    [
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "tuning" : configmap "tuning" not found',
            (
                "ConfigMapNotFound",
                "ConfigMap tuning not found in namespace team-a; create it, and the stage continues by itself",
            ),
        ),
        (
            "FailedMount",
            "MountVolume.SetUp failed for volume x: no space left",
            ("FailedMount", "MountVolume.SetUp failed for volume x: no space left"),
        ),
        (
            "FailedCreatePodSandBox",
            "no runtime for nvidia",
            ("FailedCreatePodSandBox", "no runtime for nvidia"),
        ),
    ],
)
def test_what_the_kubelet_cannot_set_up_is_reported(
    training: Scenario, reason: str, event: str, expected: tuple[str, str]
) -> None:
    training.post_event(stuck(training), "Warning", reason, event)

    reconcile_later(training)

    assert training.held_up == ("True", expected[0], f"train: {expected[1]}")


def test_the_missing_secret_is_named_even_if_the_newest_event_is_a_timeout(training: Scenario) -> None:
    pod = stuck(training)
    training.post_event(pod, "Warning", "FailedMount", SECRET_EVENT)
    training.post_event(pod, "Warning", "FailedMount", "Unable to attach or mount volumes: timed out waiting")

    reconcile_later(training)

    assert training.held_up == ("True", "SecretNotFound", f"train: {NO_SECRET}")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            'Error creating: pods "x-train-0a1b-abcde" is forbidden: exceeded quota: gpus, requested: '
            "requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4",
            (
                "QuotaExceeded",
                "the cluster refuses the stage's Pod: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, "
                "used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4; the Job retries by itself",
            ),
        ),
        (
            '(combined from similar events): Error creating: pods "x-train-0a1b-fghij" is forbidden: error looking up '
            'service account team-a/trainer: serviceaccount "trainer" not found',
            (
                "PodsRefused",
                "the cluster refuses the stage's Pod: error looking up service account team-a/trainer: serviceaccount "
                '"trainer" not found; the Job retries by itself',
            ),
        ),
        (
            'Error creating: admission webhook "policy.example" denied the request: no GPUs on Sundays',
            (
                "PodsRefused",
                'the cluster refuses the stage\'s Pod: admission webhook "policy.example" denied the request: no GPUs '
                "on Sundays; the Job retries by itself",
            ),
        ),
    ],
)
def test_refused_pods_stall_the_object_until_one_is_accepted(
    training: Scenario, event: str, expected: tuple[str, str]
) -> None:
    job = training.live_job
    training.post_event(without_pod(training), "Warning", "FailedCreate", event)
    reconcile_later(training)

    assert (training.held_up or training.condition("Reconciling")) == ("True", expected[0], f"train: {expected[1]}")
    assert training.reconcile().wrote_status is False

    training.cluster.start_pod(job)
    training.reconcile()

    assert training.held_up is None


def test_a_job_that_waits_between_two_attempts_is_not_stalled(training: Scenario) -> None:
    training.post_event(f"uid-of-{training.live_job}", "Normal", "SuccessfulCreate", "Created pod: x-train-0a1b-abcde")
    training.end_pod(lambda pod: pod.failed(Stage.TRAIN, "d" * 64, ExitCode.TRANSIENT, "the store did not answer"))

    reconcile_later(training)

    assert training.held_up is None
    message = "train: an attempt failed and is retried: TransientError: the store did not answer"
    assert training.condition("Reconciling") == ("True", "AttemptFailed", message)


def test_a_job_that_waits_for_admission_is_queued(training: Scenario) -> None:
    job = training.live_job
    without_pod(training)
    training.cluster.jobs[job]["spec"]["suspend"] = True

    training.post_event(f"uid-of-{job}", "Warning", "FailedCreate", "from before it was suspended")

    reconcile_later(training)

    message = "train: the Job is suspended until a queue admits it"
    assert silent_wait(training.reconcile().snapshot) is None
    assert training.condition("Reconciling") == ("True", "Queued", message)


def test_events_of_a_silent_wait_are_read_less_and_less_often(training: Scenario) -> None:
    stuck(training)
    cluster = training.cluster
    snapshot = observe(cluster.document, list(cluster.jobs.values()), list(cluster.pods.values()), None)
    wait = silent_wait(snapshot)
    assert wait is not None

    delays = [wait.next_look(wait.since + timedelta(seconds=age)).total_seconds() for age in (0, 7, 10, 40, 3600)]

    assert delays == [10, 3, 10, 40, 120]
    assert not wait.is_due(wait.since + timedelta(seconds=9))


@pytest.mark.parametrize(
    "reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"]
)
def test_a_container_that_cannot_be_created_stalls_the_object(training: Scenario, reason: str) -> None:
    training.end_pod(lambda pod: pod.waiting(reason, "the kubelet's message"))

    training.reconcile()

    assert training.held_up == ("True", reason, "train: the kubelet's message")


Ending = Callable[[PodBuilder], PodBuilder]

LOW = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 61Mi."
FULL = 'Usage of EmptyDir volume "work" exceeds the limit "64Gi".'
OUTSIDE: dict[str, tuple[Ending, str, str]] = {
    "evicted through the API": (
        lambda pod: pod.ended(143).disrupted("EvictionByEvictionAPI"),
        "Evicted",
        f"evicted from its node, for example by a drain; {CHECKPOINT}",
    ),
    "preempted by the scheduler": (
        lambda pod: pod.ended(143).disrupted("PreemptionByScheduler"),
        "Preempted",
        f"preempted by a Pod of higher priority; {CHECKPOINT}",
    ),
    "preempted by the kubelet": (
        lambda pod: pod.failed_by_kubelet("Preempting").disrupted("TerminationByKubelet"),
        "Preempted",
        f"preempted by a critical Pod; {CHECKPOINT}",
    ),
    "evicted under node pressure": (
        lambda pod: pod.ended(137).failed_by_kubelet("Evicted", LOW).disrupted("TerminationByKubelet"),
        "NodePressure",
        f"its node ran short of a resource: {LOW}; {CHECKPOINT}",
    ),
    "node shutdown": (
        lambda pod: pod.ended(143).failed_by_kubelet("Terminated").disrupted("TerminationByKubelet"),
        "NodeShutdown",
        f"its node is shutting down; {CHECKPOINT}",
    ),
    "node tainted or unreachable": (
        lambda pod: pod.ended(143).disrupted("DeletionByTaintManager"),
        "NodeLost",
        f"its node is unreachable or was tainted NoExecute; {CHECKPOINT}",
    ),
    "node gone": (
        lambda pod: pod.failed_by_kubelet("").disrupted("DeletionByPodGC"),
        "NodeLost",
        f"its node is gone; {CHECKPOINT}",
    ),
    "stopped without a disruption": (
        lambda pod: pod.ended(ExitCode.INTERRUPTED),
        "Interrupted",
        f"stopped from outside; {CHECKPOINT}",
    ),
}


@pytest.mark.parametrize(("ending", "reason", "message"), OUTSIDE.values(), ids=OUTSIDE)
def test_an_attempt_stopped_from_outside_has_its_own_reason_and_does_not_count(
    training: Scenario, ending: Ending, reason: str, message: str
) -> None:
    training.end_pod(ending)

    training.reconcile()

    row = training.row(Stage.TRAIN)
    assert (row.reason, row.message) == (reason, message)
    assert (row.state, row.attempts, row.preemptions) == (StageState.RUNNING, 1, 1)


def test_a_pod_on_an_unreachable_node_is_reported_before_it_has_ended(training: Scenario) -> None:
    training.end_pod(lambda pod: pod.running().disrupted("DeletionByTaintManager"))

    training.reconcile()

    row = training.row(Stage.TRAIN)
    message = "its node is unreachable or was tainted NoExecute; the next attempt starts when this one has ended"
    assert (row.reason, row.message, row.preemptions) == ("NodeLost", message, 0)


BY_ITSELF: dict[str, tuple[Ending, str, str]] = {
    "killed at its memory limit": (
        lambda pod: pod.ended(137, reason="OOMKilled"),
        "OutOfMemory",
        "the container was killed at its memory limit; raise it in the profile",
    ),
    "killed": (
        lambda pod: pod.ended(137),
        "Killed",
        "killed without notice: the node ran out of memory or the grace period expired",
    ),
    "refused by its node": (
        lambda pod: pod.failed_by_kubelet("UnexpectedAdmissionError", "Allocate failed: no healthy nvidia.com/gpu"),
        "UnexpectedAdmissionError",
        "Allocate failed: no healthy nvidia.com/gpu",
    ),
    "wrong image": (
        lambda pod: pod.ended(128, 'exec: "python": executable file not found in $PATH', "StartError"),
        "StartError",
        "the container does not start; the profile's image is not an image of the stages: "
        'exec: "python": executable file not found in $PATH',
    ),
    "a bug": (lambda pod: pod.ended(1, "KeyError: 'x'"), "InternalError", "exit code 1: KeyError: 'x'"),
    "ended by a library that is out of GPU memory": (
        lambda pod: pod.ended(1, "loading the base model\nError out of memory at line 83 in file /src/csrc/compat.cuh"),
        "OutOfGpuMemory",
        "a library ended the stage when the GPU ran out of memory; use a profile with a larger GPU or, for a training, "
        "lower spec.training.microBatchSize or maxLength: loading the base model\nError out of memory at line 83 in "
        "file /src/csrc/compat.cuh",
    ),
    "out of GPU memory": (
        lambda pod: pod.failed(Stage.TRAIN, "d" * 64, ExitCode.OUT_OF_GPU_MEMORY, "the micro-batch does not fit"),
        "OutOfGpuMemory",
        "the micro-batch does not fit",
    ),
}


@pytest.mark.parametrize(("ending", "reason", "message"), BY_ITSELF.values(), ids=BY_ITSELF)
def test_a_failed_attempt_is_reported_while_it_is_retried_and_at_the_end(
    training: Scenario, ending: Ending, reason: str, message: str
) -> None:
    training.end_pod(ending)
    training.reconcile()
    retried = training.row(Stage.TRAIN)

    training.end_job(lambda job: job.failed("BackoffLimitExceeded"))
    training.reconcile()

    why_retried = f"an attempt failed and is retried: {reason}: {message}"
    assert (retried.state, retried.reason, retried.message) == (StageState.RUNNING, "AttemptFailed", why_retried)
    assert training.held_up == ("True", reason, f"train: {message}")
    assert training.row(Stage.TRAIN).preemptions == 0


@pytest.mark.parametrize("exit_code", [137, ExitCode.INTERRUPTED])
def test_a_stage_that_fills_its_disk_is_not_retried(training: Scenario, exit_code: int) -> None:
    job = training.live_job
    training.end_pod(lambda pod: pod.ended(exit_code).failed_by_kubelet("Evicted", FULL))

    done = training.reconcile()

    message = (
        f"{FULL.rstrip('.')}; raise workVolumeSize, sizing.storage or the stage's ephemeral-storage in the profile, "
        "then retry"
    )
    assert training.held_up == ("True", "EphemeralStorageExceeded", f"train: {message}")
    assert training.row(Stage.TRAIN).preemptions == 0
    assert [action.name for action in done.plan.actions if hasattr(action, "name")] == [job]
