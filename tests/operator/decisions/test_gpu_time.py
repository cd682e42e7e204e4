"""GPU time: of every attempt that has ended, once, whatever ended it."""

from dataclasses import replace
from datetime import timedelta

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.profiles import Resources
from support.builders import PodBuilder, lora_fine_tune
from support.scenario import PROFILE, TICK, Scenario

TWO_GPUS = Resources(requests={"nvidia.com/gpu": 2}, limits={"nvidia.com/gpu": 2})


@pytest.fixture
def training() -> Scenario:
    """An object whose training runs on two GPUs; its Jobs take their time to go."""
    scenario = Scenario(lora_fine_tune(), PROFILE.model_copy(update={"resources": {Stage.TRAIN: TWO_GPUS}}))
    scenario.cluster.deletes_slowly = True
    scenario.advance_to(Stage.TRAIN)
    return scenario


def told(scenario: Scenario) -> tuple[float | None, int]:
    """The training's GPU time, and how often it was stopped from outside."""
    row = scenario.row(Stage.TRAIN)
    return row.gpu_seconds, row.preemptions


def evict(scenario: Scenario, after_seconds: int) -> None:
    """The newest attempt is evicted after a time; another one starts in its place."""
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


def let_go(scenario: Scenario) -> None:
    """The Jobs that are being deleted are gone."""
    jobs = scenario.cluster.jobs
    for name in [name for name, job in jobs.items() if job["metadata"].get("deletionTimestamp")]:
        scenario.cluster.remove_job(name)


def test_it_is_that_of_all_attempts_times_their_gpus(training: Scenario) -> None:
    evict(training, after_seconds=0)
    training.cluster.pods.pop(training.cluster.pods_of(training.live_job)[0])
    training.let_pass(timedelta(seconds=100))
    training.finish()

    training.reconcile()

    # The first attempt ended when it began; the second began with the end of a pass.
    assert told(training) == (2 * 100, 1)
    assert training.row(Stage.PREPARE).gpu_seconds is None


@pytest.mark.parametrize("exit_code", [ExitCode.INTERRUPTED, ExitCode.DONE, 137])
@pytest.mark.parametrize(("path", "value"), [("suspend", True), ("lora.rank", 8)], ids=["suspended", "edited"])
def test_a_training_that_somebody_stops_has_had_its_gpus_too(
    training: Scenario, path: str, value: object, exit_code: int
) -> None:
    stop(training, path, value, exit_code)

    assert told(training) == (2 * 100, 0)
    assert training.reconcile().wrote_status is False
    let_go(training)
    training.reconcile()
    assert told(training) == (2 * 100, 0)


def test_a_training_that_goes_on_after_a_suspension_adds_to_what_it_had(training: Scenario) -> None:
    stop(training, "suspend", True)
    let_go(training)
    training.change(training.builder.edited("suspend", False))
    training.reconcile()
    training.let_pass(timedelta(seconds=50))
    training.finish()

    training.reconcile()

    assert told(training) == (2 * (100 + 50), 0)


def test_attempts_that_were_counted_before_the_stop_are_not_counted_again(training: Scenario) -> None:
    evict(training, after_seconds=30)
    training.let_pass(timedelta(seconds=40))
    training.end_pod(lambda pod: pod.failed(Stage.TRAIN, "d" * 64, ExitCode.TRANSIENT, "the store did not answer"))
    training.cluster.start_pod(training.live_job)

    stop(training, "suspend", True)

    assert told(training) == (2 * (30 + 40 + 100), 1)


def test_a_container_whose_end_its_node_never_told_has_had_its_gpus_until_the_node_was_given_up(
    training: Scenario,
) -> None:
    training.let_pass(timedelta(seconds=100))
    training.end_pod(lambda pod: replace(pod.running(), phase="Failed").disrupted("DeletionByPodGC"))
    training.reconcile()

    assert told(training) == (2 * 100, 1)


def test_attempts_of_one_second_count_once_each(training: Scenario) -> None:
    """Such as one that its node refuses at once: the one in its place may run for hours."""
    training.end_pod(lambda pod: pod.told_by_kubelet("UnexpectedAdmissionError").disrupted())
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
    assert told(training) == (2 * 110, 2)


def test_what_an_older_spec_had_by_its_stop_is_not_counted_for_the_new_one(training: Scenario) -> None:
    evict(training, after_seconds=30)

    stop(training, "lora.rank", 8)

    assert told(training) == (2 * 100, 0)


@pytest.mark.parametrize("gpus", [0, 8])
def test_a_profile_that_changes_while_a_training_runs_changes_not_what_it_has(training: Scenario, gpus: int) -> None:
    evict(training, after_seconds=30)
    resources = Resources(limits={"nvidia.com/gpu": gpus})
    training.profiles = {"default": PROFILE.model_copy(update={"resources": {Stage.TRAIN: resources}})}
    training.let_pass(timedelta(seconds=100))
    training.finish()

    training.reconcile()

    assert told(training) == (2 * (30 + 100), 1)


def test_a_failed_training_that_is_tried_again_begins_at_nothing(training: Scenario) -> None:
    training.let_pass(timedelta(seconds=30))
    training.fail(ExitCode.DIVERGED, "the loss is not finite", reason="PodFailurePolicy")
    training.reconcile()
    failed = told(training)

    training.change(training.builder.with_retry_requested("again"))
    training.reconcile()
    training.reconcile()

    assert (failed, told(training)) == ((2 * 30, 0), (None, 0))


@pytest.mark.parametrize(
    ("resource", "gpus"),
    [("nvidia.com/gpu", 2), ("nvidia.com/mig-1g.10gb", 2), ("amd.com/gpu", 2), ("gpu.intel.com/i915", 2), ("cpu", 0)],
)
def test_gpus_of_every_make_count(resource: str, gpus: int) -> None:
    assert Resources(requests={resource: 2, "memory": "1Gi"}, limits={resource: 2}).gpus == gpus
    assert Resources(limits={resource: 2}).gpus == gpus
