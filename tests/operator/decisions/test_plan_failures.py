"""How stages end without success, and what the status says."""

from datetime import timedelta

import pytest

from edgetune_contract.request import Result
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.accounting.limits import MAX_INTERRUPTIONS
from edgetune_operator.decisions.plans import Outcome
from support.builders import PodBuilder, failed_result, lora_fine_tune
from support.scenario import Scenario, created, deleted

A_MINUTE = timedelta(minutes=1)
LOST_RESULT = "the stage ended without a readable result"
LOST = f"{LOST_RESULT}; running it again finds its manifest in the store"


@pytest.fixture
def training() -> Scenario:
    """An object whose training runs."""
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    return scenario


def lose_result(scenario: Scenario, message: str = "") -> None:
    """The live Job succeeds, but its result is lost."""
    scenario.end_pod(lambda pod: pod.ended(0, message))
    scenario.end_job(lambda job: job.complete(scenario.cluster.timestamp()))


@pytest.mark.parametrize("code", [code for code in ExitCode if code is not ExitCode.DONE])
def test_a_failed_stage_fails_the_run_with_its_own_message(training: Scenario, code: ExitCode) -> None:
    training.fail(code, "line 7 of train.jsonl is not JSON; fix it")

    done = training.reconcile()

    message = "train: line 7 of train.jsonl is not JSON; fix it"
    assert done.plan.view.outcome is Outcome.FAILED
    assert done.plan.actions == ()
    assert training.status.phase == "Failed"
    assert training.held_up == ("True", code.reason, message)
    assert training.condition("Ready") == ("False", code.reason, message)
    assert training.condition("Trained") == ("False", code.reason, "line 7 of train.jsonl is not JSON; fix it")
    assert training.row(Stage.TRAIN).state is StageState.FAILED
    assert training.row(Stage.MERGE).state is StageState.PENDING
    assert training.reconcile().wrote_status is False


def test_a_failure_after_several_attempts_names_their_number_and_the_limit(training: Scenario) -> None:
    training.fail(ExitCode.TRANSIENT, "the store did not answer", attempts=4)

    training.reconcile()

    message = "the store did not answer (attempt 4, spec.retryLimit was 3)"
    assert training.row(Stage.TRAIN).message == message
    assert training.row(Stage.TRAIN).attempts == 4


def test_a_crash_shows_the_end_of_its_log(training: Scenario) -> None:
    training.end_pod(lambda pod: pod.ended(1, "Traceback (most recent call last):\nKeyError: 'x'"))
    training.end_job(lambda job: job.failed("BackoffLimitExceeded"))

    training.reconcile()

    row = training.row(Stage.TRAIN)
    assert (row.reason, row.message) == (
        "InternalError",
        "exit code 1: Traceback (most recent call last):\nKeyError: 'x'",
    )


def test_a_stage_killed_at_its_memory_limit_names_the_limit(training: Scenario) -> None:
    training.end_pod(lambda pod: pod.ended(137, reason="OOMKilled"))
    training.end_job(lambda job: job.failed("BackoffLimitExceeded", attempts=4))

    training.let_pass(A_MINUTE)
    training.reconcile()

    row = training.row(Stage.TRAIN)
    assert row.reason == "OutOfMemory"
    assert row.message == (
        "the container was killed at its memory limit; raise it in the profile (attempt 4, spec.retryLimit was 3)"
    )


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_job_whose_end_is_observed_before_its_pods_end_is_judged_by_its_pod(
    training: Scenario, ends_well: bool
) -> None:
    job, result = training.live_job, training.simulated_result(training.request)
    at = training.cluster.timestamp()
    training.end_job(lambda job: job.complete(at) if ends_well else job.failed("PodFailurePolicy", at=at))
    early = training.reconcile()
    row = training.row(Stage.TRAIN)

    pod = training.cluster.pods_of(job)[-1]
    ending = PodBuilder(job, pod, now=at)
    ended = ending.succeeded(result) if ends_well else ending.failed(Stage.TRAIN, "d" * 64, 13, "loss is nan")
    training.cluster.pods[pod] = ended.build()
    training.reconcile()

    assert (early.plan.look_again, early.plan.actions) == (timedelta(seconds=5), ())
    assert (row.state, row.reason) == (StageState.RUNNING, "JobRunning")
    assert training.row(Stage.TRAIN).reason == ("Succeeded" if ends_well else "TrainingDiverged")


def test_a_job_whose_pods_end_is_never_observed_has_a_lost_result_after_a_while(training: Scenario) -> None:
    training.end_job(lambda job: job.complete(training.cluster.timestamp()))
    training.reconcile()
    training.let_pass(A_MINUTE)

    done = training.reconcile()

    assert done.plan.look_again == timedelta(seconds=2)
    assert training.row(Stage.TRAIN).reason == "ResultLost"


def test_a_stage_that_exceeds_its_deadline_names_it(training: Scenario) -> None:
    training.end_job(lambda job: job.failed("DeadlineExceeded", "Job was active longer than specified deadline"))

    training.reconcile()

    row = training.row(Stage.TRAIN)
    assert row.reason == "DeadlineExceeded"
    assert row.message == "not done after 86400 seconds; raise spec.activeDeadlineSeconds or reduce the work"


def test_a_failed_job_whose_pods_are_gone_has_the_job_controllers_message(training: Scenario) -> None:
    training.cluster.pods.clear()
    training.end_job(lambda job: job.failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"))

    training.let_pass(A_MINUTE)
    training.reconcile()

    row = training.row(Stage.TRAIN)
    assert (row.reason, row.message) == ("BackoffLimitExceeded", "Job has reached the specified backoff limit")


def test_a_failed_job_without_a_reason_and_pods_still_has_a_reason(training: Scenario) -> None:
    training.cluster.pods.clear()
    training.end_job(lambda job: job.failed(""))

    training.let_pass(A_MINUTE)
    training.reconcile()

    row = training.row(Stage.TRAIN)
    assert (row.reason, row.message) == ("JobFailed", "the Job failed and no Pod is left that says why")


def test_a_failed_attempt_that_is_retried_leaves_the_stage_running(training: Scenario) -> None:
    training.end_pod(lambda pod: pod.failed(Stage.TRAIN, training.request.digest, 12, "out of GPU memory"))

    done = training.reconcile()

    assert done.plan.view.outcome is Outcome.RUNNING
    assert done.plan.actions == ()


def test_the_result_of_a_container_that_was_then_killed_is_ignored(training: Scenario) -> None:
    result = training.simulated_result(training.request)
    training.end_pod(lambda pod: pod.ended(137, result.encode().decode()))

    training.reconcile()

    assert training.row(Stage.TRAIN).state is StageState.RUNNING


def test_an_image_that_cannot_be_pulled_is_reported_with_the_kubelets_message(training: Scenario) -> None:
    message = 'Back-off pulling image "ghcr.io/edgetune/jobs:0.1.0"'
    training.end_pod(lambda pod: pod.waiting("ImagePullBackOff", message))

    training.reconcile()

    assert training.held_up == ("True", "ImagePullBackOff", f"train: {message}")
    assert training.status.phase == "Training"


def test_a_blocked_stage_continues_by_itself_when_the_cause_is_removed(training: Scenario) -> None:
    training.end_pod(lambda pod: pod.waiting("CreateContainerConfigError", 'secret "edgetune-s3" not found'))
    training.reconcile()
    training.end_pod(lambda pod: pod.running())

    done = training.reconcile()

    assert done.plan.actions == ()
    assert training.held_up is None
    assert training.condition("Reconciling") == ("True", "JobRunning", "train: running")


def test_an_unschedulable_pod_is_reported_with_the_schedulers_message(training: Scenario) -> None:
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    training.end_pod(lambda pod: pod.unschedulable(message))

    training.reconcile()

    assert training.condition("Reconciling") == ("True", "Unschedulable", f"train: {message}")


def test_an_eviction_counts_as_a_preemption_and_not_as_an_attempt(training: Scenario) -> None:
    training.end_pod(lambda pod: pod.ended(143).disrupted())
    training.cluster.start_pod(training.live_job)

    done = training.reconcile()

    row = training.row(Stage.TRAIN)
    assert (row.state, row.attempts, row.preemptions) == (StageState.RUNNING, 1, 1)
    assert done.plan.actions == ()


def test_a_stage_that_exits_as_interrupted_resumes_and_does_not_count(training: Scenario) -> None:
    digest = training.request.digest
    training.end_pod(lambda pod: pod.failed(Stage.TRAIN, digest, ExitCode.INTERRUPTED, "stopped at step 40"))
    training.cluster.start_pod(training.live_job)

    training.reconcile()

    row = training.row(Stage.TRAIN)
    assert (row.state, row.attempts, row.preemptions) == (StageState.RUNNING, 1, 1)


def test_an_interruption_is_reported_with_the_step_from_which_the_stage_resumes(training: Scenario) -> None:
    digest = training.request.digest
    stopped = failed_result(Stage.TRAIN, digest, ExitCode.INTERRUPTED, "Interrupted", "stopped", step=40)
    training.end_pod(lambda pod: pod.ended(ExitCode.INTERRUPTED, stopped.encode().decode()).disrupted())
    training.cluster.start_pod(training.live_job)

    training.reconcile()

    row = training.row(Stage.TRAIN)
    evicted = "evicted from its node, for example by a drain; resumes from the checkpoint of step 40"
    assert (row.reason, row.message) == ("Evicted", evicted)


def test_each_interruption_is_counted_once_even_after_its_pod_is_gone(
    training: Scenario,
) -> None:
    training.let_pass(timedelta(seconds=1))
    training.end_pod(lambda pod: pod.ended(143).disrupted())
    first = training.cluster.pods_of(training.live_job)[-1]
    training.cluster.start_pod(training.live_job)
    training.reconcile()
    training.reconcile()
    assert training.row(Stage.TRAIN).preemptions == 1

    del training.cluster.pods[first]
    training.end_pod(lambda pod: pod.ended(143).disrupted())
    training.cluster.start_pod(training.live_job)
    training.reconcile()

    assert training.row(Stage.TRAIN).preemptions == 2


def test_a_stage_that_is_interrupted_too_often_fails(training: Scenario) -> None:
    for _ in range(MAX_INTERRUPTIONS + 1):
        training.let_pass(timedelta(seconds=1))
        training.end_pod(lambda pod: pod.ended(ExitCode.INTERRUPTED))
        training.cluster.start_pod(training.live_job)
        training.reconcile()

    row = training.row(Stage.TRAIN)
    assert (row.state, row.reason) == (StageState.FAILED, "InterruptedTooOften")
    assert row.message.startswith(f"stopped from outside {MAX_INTERRUPTIONS + 1} times")


def test_a_failed_job_does_not_have_the_message_of_a_disrupted_pod(training: Scenario) -> None:
    digest = training.request.digest
    training.end_pod(lambda pod: pod.failed(Stage.TRAIN, digest, ExitCode.TRANSIENT, "the store did not answer"))
    training.cluster.start_pod(training.live_job)
    training.end_pod(lambda pod: pod.ended(137, "killed").disrupted())
    training.end_job(lambda job: job.failed("BackoffLimitExceeded"))

    training.reconcile()

    assert training.row(Stage.TRAIN).reason == "TransientError"


def test_an_evicted_pod_that_is_gone_leaves_the_stage_running(training: Scenario) -> None:
    training.evict()

    done = training.reconcile()

    assert done.plan.actions == ()
    assert training.row(Stage.TRAIN).state is StageState.RUNNING


def test_a_job_removed_after_its_result_was_recorded_is_not_created_again(training: Scenario) -> None:
    training.finish()
    training.reconcile()
    training.cluster.remove_ended_jobs()

    done = training.reconcile()

    assert done.plan.actions == ()
    assert training.row(Stage.TRAIN).state is StageState.SUCCEEDED


def test_a_job_removed_before_its_result_was_recorded_runs_again_and_finds_its_manifest(
    training: Scenario,
) -> None:
    training.finish()
    training.cluster.remove_ended_jobs()

    again = training.reconcile()
    training.finish()
    training.reconcile()

    assert created(again) == [Stage.TRAIN]
    assert training.row(Stage.TRAIN).reason == "Cached"


@pytest.mark.parametrize("message", ["", "{", "Killed", '{"stage": "train"}'])
def test_a_result_lost_once_costs_one_short_run(training: Scenario, message: str) -> None:
    job = training.live_job
    training.simulated_result(training.request)
    lose_result(training, message)

    first, lost = training.reconcile(), training.row(Stage.TRAIN)
    second = training.reconcile()
    training.finish()
    training.reconcile()

    assert (deleted(first), created(first)) == ([(job, "the stage runs again")], [])
    assert (lost.state, lost.reason) == (StageState.PENDING, "ResultLost")
    assert lost.message.startswith(LOST_RESULT)
    assert ("(" in lost.message) is bool(message), "what is wrong with the message, unless there is none"
    assert created(second) == [Stage.TRAIN]
    assert training.row(Stage.TRAIN).reason == "Cached"


def test_a_result_lost_twice_fails_the_run(training: Scenario) -> None:
    lose_result(training)
    training.reconcile()
    training.reconcile()
    training.reconcile()
    lose_result(training)

    done = training.reconcile()

    assert done.plan.view.outcome is Outcome.FAILED
    assert training.held_up == ("True", "ResultLost", f"train: {LOST}")


def test_a_result_with_another_digest_counts_as_lost(training: Scenario) -> None:
    training.finish(Result(stage=Stage.TRAIN, digest="e" * 64))

    training.reconcile()

    assert training.row(Stage.TRAIN).reason == "ResultLost"


@pytest.mark.parametrize(
    ("stage", "required"), [(Stage.PREPARE, "resolved"), (Stage.EVALUATE, "scores"), (Stage.PUBLISH, "publication")]
)
def test_a_result_without_the_stages_required_field_counts_as_lost(stage: Stage, required: str) -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(stage)
    result = scenario.simulated_result(scenario.request)

    scenario.finish(result.model_copy(update={required: None}))
    scenario.reconcile()

    assert scenario.row(stage).reason == "ResultLost"


def test_a_failed_attempt_is_reported_at_once_while_it_is_retried(training: Scenario) -> None:
    digest = training.request.digest
    training.end_pod(lambda pod: pod.failed(Stage.TRAIN, digest, ExitCode.TRANSIENT, "the disk is full"))
    training.cluster.start_pod(training.live_job)

    training.reconcile()

    message = "train: an attempt failed and is retried: TransientError: the disk is full"
    assert training.condition("Reconciling") == ("True", "AttemptFailed", message)
