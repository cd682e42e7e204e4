"""A Pod that outlives its stage: another container runs on, so the Job never ends. The stage's container decides."""

from datetime import timedelta

import pytest

from edgetune_contract.request import Result
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.plans import Outcome
from support.builders import PodBuilder, lora_fine_tune
from support.scenario import Scenario, created, deleted

_LATER = timedelta(seconds=30)
MESH = [("istio-proxy", False), ("linkerd-proxy", True)]
WITH_MESH = pytest.mark.parametrize(("container", "native"), MESH, ids=["sidecar", "native sidecar"])


def succeed(scenario: Scenario, container: str, *, native: bool = False, result: Result | None = None) -> None:
    """The live Job's stage succeeds, and its Pod lives on."""
    done = result or scenario.simulated_result(scenario.request)
    scenario.end_pod(lambda pod: pod.succeeded(done).outlived_by(container, native=native))


def fail(scenario: Scenario, code: int, container: str = "istio-proxy", *, native: bool = False) -> None:
    """The live Job's stage fails, and its Pod lives on."""
    request = scenario.request

    def ending(pod: PodBuilder) -> PodBuilder:
        return pod.failed(request.stage, request.digest, code, "the bucket is away").outlived_by(
            container, native=native
        )

    scenario.end_pod(ending)


@WITH_MESH
def test_a_stage_that_is_done_continues_the_run_and_its_job_goes(container: str, native: bool) -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    train = scenario.live_job
    succeed(scenario, container, native=native)

    at_once = scenario.reconcile()
    scenario.let_pass(_LATER)
    later = scenario.reconcile()

    assert (created(at_once), deleted(at_once)) == ([Stage.MERGE], [])
    assert at_once.plan.look_again is not None
    assert at_once.plan.look_again <= _LATER
    why = f"its Pod is still running container {container}"
    assert deleted(later) == [(train, why)]
    assert scenario.row(Stage.TRAIN).message == f"done; Job {train} was deleted because {why}"
    assert scenario.row(Stage.TRAIN).state is StageState.SUCCEEDED


def test_the_last_stage_s_job_goes_after_the_run_has_ended() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.PUBLISH)
    publish = scenario.live_job
    succeed(scenario, "istio-proxy")

    ended = scenario.reconcile()
    scenario.let_pass(_LATER)
    later = scenario.reconcile()
    last = scenario.reconcile()

    assert (ended.plan.view.outcome, later.plan.view.outcome) == (Outcome.PUBLISHED, Outcome.PUBLISHED)
    assert ended.plan.look_again is not None
    assert [name for name, _ in deleted(later)] == [publish]
    assert scenario.cluster.live_jobs() == []
    assert (last.wrote_status, last.plan.look_again) == (False, None)


@WITH_MESH
@pytest.mark.parametrize("code", [ExitCode.INVALID, ExitCode.DENIED, ExitCode.DIVERGED])
def test_a_permanent_failure_is_final_and_the_job_goes(code: ExitCode, container: str, native: bool) -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    train = scenario.live_job
    fail(scenario, code, container, native=native)

    before = scenario.reconcile()
    message_before = scenario.row(Stage.TRAIN).message
    scenario.let_pass(_LATER)
    later = scenario.reconcile()

    assert before.plan.view.outcome is Outcome.RUNNING
    assert "retried" not in message_before
    assert scenario.held_up == ("True", code.reason, "train: the bucket is away")
    assert [name for name, _ in deleted(later)] == [train]


@pytest.mark.parametrize("code", [1, ExitCode.OUT_OF_GPU_MEMORY, ExitCode.TRANSIENT])
def test_a_failure_is_retried_by_another_job_with_the_retries_that_are_left(code: int) -> None:
    scenario = Scenario(lora_fine_tune().with_spec("retryLimit", 1))
    scenario.advance_to(Stage.TRAIN)
    train = scenario.live_job
    fail(scenario, code)
    scenario.let_pass(_LATER)

    replaced = scenario.reconcile()
    condition = scenario.condition("Reconciling")
    again = scenario.reconcile()
    limit = scenario.cluster.jobs[train]["spec"]["backoffLimit"]
    attempts = scenario.row(Stage.TRAIN).attempts
    fail(scenario, code)
    scenario.let_pass(_LATER)
    scenario.reconcile()

    assert [name for name, _ in deleted(replaced)] == [train]
    assert condition is not None
    assert condition[1] == "PodOutlivedStage"
    assert condition[2].startswith("train: an attempt failed and is retried by another Job, because its Pod is still ")
    assert "running container istio-proxy: " in condition[2]
    assert condition[2].endswith(": the bucket is away")
    assert (created(again), limit, attempts) == ([Stage.TRAIN], 0, 2)
    stalled = scenario.held_up
    assert stalled is not None
    assert stalled[2] == "train: the bucket is away (attempt 2, spec.retryLimit was 1)"


def test_another_job_has_what_is_left_of_the_deadline() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("activeDeadlineSeconds", 600))
    scenario.advance_to(Stage.TRAIN)
    scenario.let_pass(timedelta(seconds=80))
    fail(scenario, ExitCode.TRANSIENT)
    scenario.let_pass(_LATER)
    scenario.reconcile()
    scenario.reconcile()

    (container,) = scenario.cluster.jobs[scenario.live_job]["spec"]["template"]["spec"]["containers"]
    assert scenario.row(Stage.TRAIN).active_seconds == 80
    assert {"name": "EDGETUNE_DEADLINE_SECONDS", "value": "520"} in container["env"]


def test_a_stopped_training_is_resumed_by_another_job_without_counting() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("retryLimit", 0))
    scenario.advance_to(Stage.TRAIN)
    fail(scenario, ExitCode.INTERRUPTED)
    scenario.let_pass(_LATER)

    scenario.reconcile()
    again = scenario.reconcile()

    assert created(again) == [Stage.TRAIN]
    assert (scenario.row(Stage.TRAIN).preemptions, scenario.row(Stage.TRAIN).attempts) == (1, 1)


def test_a_lost_result_is_fetched_by_another_job() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    scenario.end_pod(lambda pod: pod.ended(0, "no result").outlived_by("istio-proxy"))
    scenario.let_pass(_LATER)

    replaced = scenario.reconcile()
    reason = scenario.row(Stage.TRAIN).reason
    again = scenario.reconcile()

    assert len(deleted(replaced)) == 1
    assert reason == "ResultLost"
    assert created(again) == [Stage.TRAIN]


def test_a_retry_that_a_failed_sidecar_causes_after_the_stage_is_stopped() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    train = scenario.live_job
    done = scenario.simulated_result(scenario.request)
    scenario.end_pod(lambda pod: pod.succeeded(done).failed_by_kubelet(""))
    scenario.cluster.start_pod(train)
    look_again = scenario.reconcile().plan.look_again
    assert look_again is not None
    assert look_again <= _LATER

    scenario.let_pass(_LATER)
    later = scenario.reconcile()

    assert [name for name, _ in deleted(later)] == [train]
    assert scenario.row(Stage.TRAIN).state is StageState.SUCCEEDED


def test_an_end_that_a_clock_puts_an_hour_ahead_does_not_delay_the_decision() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    scenario.let_pass(timedelta(hours=1))
    fail(scenario, ExitCode.INVALID)
    scenario.let_pass(-timedelta(hours=1))

    scenario.reconcile()

    assert scenario.row(Stage.TRAIN).state is StageState.FAILED


def test_a_pod_that_is_already_being_deleted_is_waited_for() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    fail(scenario, ExitCode.TRANSIENT)
    for pod in scenario.cluster.pods.values():
        pod["metadata"]["deletionTimestamp"] = scenario.cluster.timestamp()
    scenario.let_pass(_LATER)

    assert deleted(scenario.reconcile()) == []


def test_an_injected_init_container_that_cannot_start_is_named() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.reconcile()
    scenario.end_pod(lambda pod: pod.waiting("PodInitializing"))
    (pod,) = scenario.cluster.pods.values()
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
    pod["status"]["initContainerStatuses"] = [{"name": "istio-init", "state": state}]

    scenario.reconcile()

    assert scenario.held_up == (
        "True",
        "ImagePullBackOff",
        "prepare: container istio-init: Back-off pulling image",
    )


def test_an_injected_init_container_that_fails_is_named() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.reconcile()
    scenario.end_pod(lambda pod: pod.failed_by_kubelet(""))
    (pod,) = scenario.cluster.pods.values()
    state = {"terminated": {"exitCode": 2, "reason": "Error", "message": "iptables: denied"}}
    pod["status"]["initContainerStatuses"] = [{"name": "istio-init", "state": state}]
    scenario.end_job(lambda job: job.failed("BackoffLimitExceeded", at=scenario.cluster.timestamp()))

    scenario.reconcile()

    assert scenario.held_up == (
        "True",
        "JobFailed",
        "prepare: container istio-init ended with exit code 2: iptables: denied",
    )


@WITH_MESH
def test_an_edit_while_prepare_runs_lets_it_look_again_although_its_pod_lives_on(container: str, native: bool) -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.reconcile()
    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.reconcile()
    succeed(scenario, container, native=native)

    first, second = scenario.reconcile(), scenario.reconcile()
    scenario.finish()

    assert ([why for _, why in deleted(first)], created(second)) == (["the stage runs again"], [Stage.PREPARE])
    assert created(scenario.reconcile()) == [Stage.TRAIN]
