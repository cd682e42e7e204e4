"""The object's GPU time: it only grows, says what was wasted and what was estimated, and has a price."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_contract.values.times import timestamp
from edgetune_operator.api import names
from edgetune_operator.api.profiles.gpu_use import MAX_GPU_ROWS, GpuStatus, GpuUse, Prices, StageGpuUse
from edgetune_operator.api.profiles.resources import Resources
from edgetune_operator.api.status.object_status import HistoryEntry
from edgetune_operator.api.status.stage_status import ProgressStatus
from support.builders import PodBuilder, lora_fine_tune
from support.scenario import PROFILE, TICK, Scenario

TWO_GPUS = Resources(requests={"nvidia.com/gpu": 2}, limits={"nvidia.com/gpu": 2})
PRICED = PROFILE.model_copy(update={"resources": {Stage.TRAIN: TWO_GPUS}, "prices": Prices(currency="EUR", gpu_hour=9)})


@pytest.fixture
def training() -> Scenario:
    """An object whose training runs on two GPUs, at 9 EUR for a GPU and an hour; a pass has seen it run."""
    scenario = Scenario(lora_fine_tune(), PRICED)
    scenario.advance_to(Stage.TRAIN)
    scenario.reconcile()
    return scenario


def total(scenario: Scenario) -> GpuUse:
    """GPU time of the object."""
    assert scenario.status.gpu is not None
    return scenario.status.gpu.total


def newest_entry(scenario: Scenario) -> HistoryEntry:
    """The last finished run."""
    return scenario.status.history[0]


def end(scenario: Scenario, after_seconds: int, ending: Any) -> None:
    """The attempt ends this long after the fixture's began; another one, ten seconds earlier."""
    scenario.let_pass(timedelta(seconds=after_seconds) - TICK)
    scenario.end_pod(ending)
    scenario.reconcile()


def disappear(scenario: Scenario) -> None:
    """The running Pod is gone, and no watch saw its end."""
    del scenario.cluster.pods[scenario.cluster.pods_of(scenario.live_job)[-1]]


def test_an_edit_of_the_spec_forgets_no_gpu_time(training: Scenario) -> None:
    end(training, 100, lambda pod: pod.ended(137).disrupted())
    training.change(training.builder.edited("lora.rank", 8))
    training.reconcile()

    assert training.row(Stage.TRAIN).gpu_seconds is None
    assert total(training).seconds == 200


def test_the_gpu_time_of_a_run_is_in_its_history_and_the_next_run_begins_at_zero(training: Scenario) -> None:
    training.let_pass(timedelta(seconds=40))
    training.finish_all()
    first = total(training).seconds
    training.change(training.builder.edited("lora.rank", 8))
    training.advance_to(Stage.TRAIN)
    training.let_pass(timedelta(seconds=20))
    training.finish_all()

    runs = [entry.gpu.seconds for entry in training.status.history if entry.gpu is not None]
    assert (first, runs) == (2 * 60, [2 * 30, 2 * 60])
    assert training.status.gpu is not None
    assert (training.status.gpu.run.seconds, training.status.gpu.total.seconds) == (2 * 30, 2 * 90)


def test_an_attempt_of_an_older_spec_that_ends_while_the_operator_is_away_counts(training: Scenario) -> None:
    training.let_pass(timedelta(seconds=90))
    training.fail(ExitCode.DIVERGED, "the loss is not finite", reason="PodFailurePolicy")
    training.change(training.builder.edited("lora.rank", 8))
    training.reconcile()

    assert (total(training).seconds, total(training).failed_seconds) == (200, 200)
    training.reconcile()
    assert total(training).seconds == 200


def test_failed_attempts_are_waste_and_interrupted_ones_are_not(training: Scenario) -> None:
    end(training, 30, lambda pod: pod.ended(137).disrupted())
    training.cluster.start_pod(training.live_job)
    end(training, 50, lambda pod: pod.failed(Stage.TRAIN, "d" * 64, ExitCode.TRANSIENT, "the store did not answer"))

    assert (total(training).seconds, total(training).failed_seconds) == (2 * 70, 2 * 40)


def report(scenario: Scenario, step: int, resumed_from: int, eta_seconds: float, after_seconds: int) -> None:
    """The running training reports a step; its first step began some seconds after its container."""
    pod = scenario.cluster.pods_of(scenario.live_job)[-1]
    created = scenario.cluster.pods[pod]["metadata"]["creationTimestamp"]
    began = f"{created[:-3]}{int(created[-3:-1]) + after_seconds:02}Z"
    scenario.cluster.progress = ProgressStatus(
        stage=Stage.TRAIN,
        step=step,
        total_steps=200,
        pod=pod,
        resumed_from=resumed_from,
        eta_seconds=eta_seconds,
        started_at=began,
    )
    scenario.reconcile()
    scenario.cluster.progress = None


@pytest.mark.parametrize("has_failed", [False, True])
def test_steps_that_were_repeated_and_the_loading_of_the_model_are_waste(training: Scenario, has_failed: bool) -> None:
    report(training, step=100, resumed_from=0, eta_seconds=300, after_seconds=4)
    training.end_pod(lambda pod: pod.ended(1) if has_failed else pod.ended(137).disrupted())
    training.reconcile()
    training.cluster.start_pod(training.live_job)
    report(training, step=91, resumed_from=90, eta_seconds=330, after_seconds=4)

    # Ten steps of three seconds each. All time of a failed attempt counts as such.
    assert total(training).repeated_seconds == (0 if has_failed else 2 * 10 * 3)
    assert total(training).loading_seconds == (0 if has_failed else 2 * 4)


def test_a_finished_training_was_loading_outside_its_steps(training: Scenario) -> None:
    training.let_pass(timedelta(seconds=90))
    result = training.simulated_result(training.request)
    training.finish(result.model_copy(update={"metrics": {"trainSeconds": 77.0}}))
    training.reconcile()

    assert (total(training).seconds, total(training).loading_seconds) == (200, 2 * (100 - 77))


def test_the_time_of_a_pod_before_its_container_is_waiting_with_a_gpu(training: Scenario) -> None:
    job = training.live_job
    name = training.cluster.pods_of(job)[-1]
    scheduled = training.cluster.timestamp()
    training.let_pass(timedelta(seconds=25))
    started = training.cluster.timestamp()
    training.let_pass(timedelta(seconds=60))
    ended = PodBuilder(job, name, started, now=training.cluster.timestamp()).ended(137).disrupted()
    training.cluster.pods[name] = ended.scheduled(scheduled).build()
    training.reconcile()

    assert (total(training).seconds, total(training).waiting_seconds) == (2 * 60, 2 * 25)


def test_an_attempt_that_disappears_is_estimated_until_the_next_pod_of_its_job(training: Scenario) -> None:
    training.let_pass(timedelta(seconds=60))
    disappear(training)
    training.cluster.start_pod(training.live_job)
    training.let_pass(timedelta(seconds=600))
    training.reconcile()

    # It ran for 10 seconds before the pass that saw it. The limit spec.maxGpuSeconds counts it too.
    assert (total(training).seconds, total(training).estimated_seconds) == (2 * 70, 2 * 70)
    assert training.row(Stage.TRAIN).gpu_seconds == 2 * 70
    assert training.row(Stage.TRAIN).active_seconds == 70
    training.finish()
    training.reconcile()
    assert total(training).estimated_seconds == 2 * 70
    assert total(training).seconds == 2 * (70 + 610)


def test_an_attempt_that_disappears_is_estimated_until_its_job_ended(training: Scenario) -> None:
    training.let_pass(timedelta(seconds=60))
    disappear(training)
    training.end_job(lambda job: job.failed("BackoffLimitExceeded", at=training.cluster.timestamp()))
    training.let_pass(timedelta(seconds=600))
    training.reconcile()
    training.reconcile()

    assert (total(training).seconds, total(training).estimated_seconds) == (2 * 70, 2 * 70)


def test_an_attempt_that_disappears_is_estimated_until_its_job_was_suspended(training: Scenario) -> None:
    """As when a queue preempts it: the Job has no start time any longer, and no Pod."""
    job = training.cluster.jobs[training.live_job]
    training.let_pass(timedelta(seconds=60))
    disappear(training)
    suspended = {"type": "Suspended", "status": "True", "lastTransitionTime": training.cluster.timestamp()}
    job["spec"]["suspend"], job["status"] = True, {"conditions": [suspended]}
    training.let_pass(timedelta(seconds=600))
    training.reconcile()

    assert (total(training).seconds, total(training).estimated_seconds) == (2 * 70, 2 * 70)


def with_clock_of_its_node(scenario: Scenario, differs_by: timedelta) -> None:
    """The running attempt's node has another clock than the API server and the operator."""
    name = scenario.cluster.pods_of(scenario.live_job)[-1]
    pod = scenario.cluster.pods[name]
    scheduled = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
    started = timestamp(scheduled + differs_by)
    running = (
        PodBuilder(scenario.live_job, name, started, now=started).scheduled(timestamp(scheduled)).running().build()
    )
    scenario.cluster.pods[name] = {**pod, "status": running["status"]}


def test_attempts_after_one_that_disappeared_count_if_its_node_is_ahead() -> None:
    training = Scenario(lora_fine_tune(), PRICED)
    training.advance_to(Stage.TRAIN)
    with_clock_of_its_node(training, timedelta(minutes=5))
    training.reconcile()
    disappear(training)
    training.cluster.start_pod(training.live_job)
    training.reconcile()
    end(training, 100, lambda pod: pod.ended(137).disrupted())

    assert (total(training).seconds, training.row(Stage.TRAIN).preemptions) == (2 * 100, 1)


def test_an_attempt_that_disappeared_counts_once_if_its_node_is_behind() -> None:
    training = Scenario(lora_fine_tune(), PRICED)
    training.advance_to(Stage.TRAIN)
    with_clock_of_its_node(training, -timedelta(minutes=5))
    training.reconcile()
    disappear(training)
    training.end_job(lambda job: job.failed("BackoffLimitExceeded", at=training.cluster.timestamp()))
    training.let_pass(timedelta(seconds=600))
    training.reconcile()
    once = total(training).seconds
    training.reconcile()

    assert (once, total(training).seconds) == (2 * 310, 2 * 310)


def test_an_attempt_whose_job_is_gone_too_uses_no_limit_while_the_operator_was_away() -> None:
    """It may have ended long ago, and its output may be in the store: only another attempt can say."""
    training = Scenario(lora_fine_tune().edited("maxGpuSeconds", 3600), PRICED)
    training.advance_to(Stage.TRAIN)
    training.reconcile()
    training.cluster.remove_job(training.live_job)
    training.let_pass(timedelta(days=10))
    training.reconcile()
    training.reconcile()

    # The deadline of a stage is a day.
    assert total(training).estimated_seconds == 2 * 86_400
    assert (training.row(Stage.TRAIN).state, training.row(Stage.TRAIN).gpu_seconds) == ("Running", None)


def test_a_job_of_which_no_pod_was_ever_seen_is_estimated_by_its_duration() -> None:
    training = Scenario(lora_fine_tune(), PRICED)
    training.advance_to(Stage.TRAIN)
    training.let_pass(timedelta(seconds=60))
    disappear(training)
    training.end_job(lambda job: job.failed("BackoffLimitExceeded", at=training.cluster.timestamp()))
    training.let_pass(timedelta(seconds=600))
    training.reconcile()
    training.reconcile()

    assert (total(training).seconds, total(training).estimated_seconds) == (2 * 60, 2 * 60)


def test_gpu_time_counts_while_the_spec_is_invalid(training: Scenario) -> None:
    training.change(training.builder.edited("lora.rank", -1))
    end(training, 100, lambda pod: pod.ended(137).disrupted())

    assert (training.status.phase, total(training).seconds) == ("Stalled", 200)


def test_gpu_time_costs_what_the_profile_said_when_its_job_was_created(training: Scenario) -> None:
    dearer = PRICED.model_copy(update={"prices": Prices(currency="EUR", gpu_hour=1000)})
    training.profiles = {"default": dearer, "other": PRICED}
    training.change(training.builder.edited("profile", "other"))
    end(training, 200, lambda pod: pod.ended(137).disrupted())

    assert total(training).cost == {"EUR": 1.0}
    assert training.status.gpu is not None
    assert [(row.profile, row.stage, row.seconds) for row in training.status.gpu.stages] == [("default", "train", 400)]


def test_changed_prices_replace_no_waiting_job() -> None:
    scenario = Scenario(lora_fine_tune(), PRICED)
    scenario.reconcile()
    disappear(scenario)
    scenario.cluster.jobs[scenario.live_job]["status"] = {}
    scenario.profiles = {"default": PRICED.model_copy(update={"prices": None})}
    scenario.reconcile()

    assert len(scenario.cluster.created) == 1
    assert scenario.row(Stage.PREPARE).reason != "Replaced"


def test_an_edited_price_of_a_job_counts_nothing(training: Scenario) -> None:
    training.cluster.jobs[training.live_job]["metadata"]["annotations"][names.PRICES_ANNOTATION] = "{"
    end(training, 100, lambda pod: pod.ended(137).disrupted())

    assert (total(training).seconds, total(training).cost) == (200, {})


def test_a_run_without_a_gpu_has_no_gpu_time() -> None:
    scenario = Scenario(lora_fine_tune(), PROFILE.model_copy(update={"resources": {Stage.TRAIN: Resources()}}))
    scenario.finish_all()

    assert scenario.status.gpu is None
    assert newest_entry(scenario).gpu is None


def test_the_rows_of_many_profiles_are_bounded() -> None:
    used = [StageGpuUse(profile=f"p{n}", stage=Stage.TRAIN, seconds=1.0) for n in range(2 * MAX_GPU_ROWS)]

    status = GpuStatus().plus(used)

    assert len(status.stages) <= MAX_GPU_ROWS
    assert status.total.seconds == sum(row.seconds for row in status.stages) == 2 * MAX_GPU_ROWS
