"""GPU time: every ended attempt counts once, whatever ended it."""

from dataclasses import replace
from datetime import timedelta

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.profiles.resources import Resources
from support.builders import PodBuilder, lora_fine_tune
from support.scenario import PROFILE, TICK, Scenario

TWO_GPUS = Resources(requests={"nvidia.com/gpu": 2}, limits={"nvidia.com/gpu": 2})


@pytest.fixture
def training() -> Scenario:
    """An object whose training runs on two GPUs; the deletion of its Jobs takes time."""
    scenario = Scenario(lora_fine_tune(), PROFILE.model_copy(update={"resources": {Stage.TRAIN: TWO_GPUS}}))
    scenario.cluster.deletes_slowly = True
    scenario.advance_to(Stage.TRAIN)
    return scenario


def gpu_time(scenario: Scenario) -> tuple[float | None, int]:
    """GPU seconds and preemptions of the training."""
    row = scenario.row(Stage.TRAIN)
    return row.gpu_seconds, row.preemptions


def evict(scenario: Scenario, after_seconds: int) -> None:
    """The newest attempt is evicted after a time; another one starts."""
    scenario.let_pass(timedelta(seconds=after_seconds))
    scenario.end_pod(lambda pod: pod.ended(137).disrupted())
    scenario.reconcile()
    scenario.cluster.start_pod(scenario.live_job)


def stop(scenario: Scenario, path: str, value: object, exit_code: int = ExitCode.INTERRUPTED) -> None:
    """An edit stops the training, whose container ends 90 seconds after it."""
    job = scenario.live_job
    name = scenario.cluster.pods_of(job)[-1]
    scenario.change(scenario.builder.edited(path, value))
    scenario.reconcile()
    scenario.let_pass(timedelta(seconds=90))
    created = scenario.cluster.pods[name]["metadata"]["creationTimestamp"]
    ended = PodBuilder(job, name, created, now=scenario.cluster.timestamp()).ended(exit_code)
    scenario.cluster.pods[name] = ended.build()
    scenario.reconcile()


def finish_deletions(scenario: Scenario) -> None:
    """The Jobs that are being deleted are gone."""
    jobs = scenario.cluster.jobs
    for name in [name for name, job in jobs.items() if job["metadata"].get("deletionTimestamp")]:
        scenario.cluster.remove_job(name)


def test_gpu_time_is_the_duration_of_all_attempts_times_their_gpus(training: Scenario) -> None:
    evict(training, after_seconds=0)
    training.cluster.pods.pop(training.cluster.pods_of(training.live_job)[0])
    training.let_pass(timedelta(seconds=100))
    training.finish()

    training.reconcile()

    # The first attempt ended when it started; the second started at the end of a pass.
    assert gpu_time(training) == (2 * 100, 1)
    assert training.row(Stage.PREPARE).gpu_seconds is None


@pytest.mark.parametrize("exit_code", [ExitCode.INTERRUPTED, ExitCode.DONE, 137])
def test_gpu_time_of_a_stopped_training_counts(training: Scenario, exit_code: int) -> None:
    stop(training, "suspend", True, exit_code)

    assert gpu_time(training) == (2 * 100, 0)
    assert training.reconcile().wrote_status is False
    finish_deletions(training)
    training.reconcile()
    assert gpu_time(training) == (2 * 100, 0)


def test_a_training_resumed_after_a_suspension_adds_to_its_gpu_time(training: Scenario) -> None:
    stop(training, "suspend", True)
    finish_deletions(training)
    training.change(training.builder.edited("suspend", False))
    training.reconcile()
    training.let_pass(timedelta(seconds=50))
    training.finish()

    training.reconcile()

    assert gpu_time(training) == (2 * (100 + 50), 0)


def test_attempts_counted_before_a_stop_are_not_counted_again(training: Scenario) -> None:
    evict(training, after_seconds=30)
    training.let_pass(timedelta(seconds=40))
    training.end_pod(lambda pod: pod.failed(Stage.TRAIN, "d" * 64, ExitCode.TRANSIENT, "the store did not answer"))
    training.cluster.start_pod(training.live_job)

    stop(training, "suspend", True)

    assert gpu_time(training) == (2 * (30 + 40 + 100), 1)


def test_gpu_time_of_a_container_on_a_lost_node_counts_until_the_pod_is_garbage_collected(
    training: Scenario,
) -> None:
    training.let_pass(timedelta(seconds=100))
    training.end_pod(lambda pod: replace(pod.running(), phase="Failed").disrupted("DeletionByPodGC"))
    training.reconcile()

    assert gpu_time(training) == (2 * 100, 1)


def test_attempts_created_in_the_same_second_count_once_each(training: Scenario) -> None:
    """A Pod that its node refuses at once is replaced within the same second."""
    training.end_pod(lambda pod: pod.failed_by_kubelet("UnexpectedAdmissionError").disrupted())
    training.reconcile()
    training.cluster.now -= TICK
    training.cluster.start_pod(training.live_job)
    names = training.cluster.pods_of(training.live_job)
    created = {training.cluster.pods[name]["metadata"]["creationTimestamp"] for name in names}
    training.let_pass(TICK + timedelta(seconds=100))
    training.end_pod(lambda pod: pod.ended(137).disrupted())
    training.reconcile()
    training.reconcile()

    assert len(created) == 1
    assert gpu_time(training) == (2 * 110, 2)


@pytest.mark.parametrize("exit_code", [ExitCode.INTERRUPTED, ExitCode.DONE, 137])
def test_time_of_an_older_spec_counts_only_in_the_account(training: Scenario, exit_code: int) -> None:
    """The limits of the new training are its own."""
    evict(training, after_seconds=30)

    stop(training, "lora.rank", 8, exit_code)
    finish_deletions(training)
    training.reconcile()

    assert gpu_time(training) == (None, 0)
    assert training.row(Stage.TRAIN).active_seconds is None
    assert training.status.gpu is not None
    assert training.status.gpu.total.seconds == 2 * (30 + 100)


def test_an_edited_training_may_run_until_its_own_deadline() -> None:
    scenario = Scenario(lora_fine_tune().edited("activeDeadlineSeconds", 1000), PROFILE)
    scenario.cluster.deletes_slowly = True
    scenario.advance_to(Stage.TRAIN)
    scenario.let_pass(timedelta(seconds=900))
    stop(scenario, "lora.rank", 8)
    finish_deletions(scenario)
    scenario.advance_to(Stage.TRAIN)
    scenario.let_pass(timedelta(seconds=500))
    scenario.reconcile()

    assert (scenario.row(Stage.TRAIN).state, scenario.status.phase) == ("Running", "Training")


@pytest.mark.parametrize("gpus", [0, 8])
def test_a_profile_change_does_not_change_the_gpus_of_a_running_training(training: Scenario, gpus: int) -> None:
    evict(training, after_seconds=30)
    resources = Resources(limits={"nvidia.com/gpu": gpus})
    training.profiles = {"default": PROFILE.model_copy(update={"resources": {Stage.TRAIN: resources}})}
    training.let_pass(timedelta(seconds=100))
    training.finish()

    training.reconcile()

    assert gpu_time(training) == (2 * (30 + 100), 1)


def test_a_retried_training_starts_at_zero(training: Scenario) -> None:
    training.let_pass(timedelta(seconds=30))
    training.fail(ExitCode.DIVERGED, "the loss is not finite", reason="PodFailurePolicy")
    training.reconcile()
    failed = gpu_time(training)

    training.change(training.builder.with_retry_requested("again"))
    training.reconcile()
    training.reconcile()

    assert (failed, gpu_time(training)) == ((2 * 30, 0), (None, 0))


@pytest.mark.parametrize(
    ("resource", "gpus"),
    [("nvidia.com/gpu", 2), ("nvidia.com/mig-1g.10gb", 2), ("amd.com/gpu", 2), ("gpu.intel.com/i915", 2), ("cpu", 0)],
)
def test_gpus_of_every_vendor_count(resource: str, gpus: int) -> None:
    assert Resources(requests={resource: 2, "memory": "1Gi"}, limits={resource: 2}).gpus == gpus
    assert Resources(limits={resource: 2}).gpus == gpus
