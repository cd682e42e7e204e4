"""Requested retries: when a token is handled, and which stages run again."""

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.spec import MAX_RETRY_TOKEN
from edgetune_operator.api.status.object_status import MAX_RETRIES, Phase
from edgetune_operator.api.status.stage_status import StageState
from support.builders import lora_fine_tune
from support.scenario import Scenario, created, deleted, run_again

NOT_PART = "it is not part of the current run"
RUNS_AGAIN = "the stage runs again"


@pytest.fixture
def scenario() -> Scenario:
    """The smallest object, before its first pass."""
    return Scenario(lora_fine_tune())


def test_a_retry_after_a_failure_checks_the_inputs_and_reruns_the_failed_stage(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.fail(ExitCode.DIVERGED, "the loss is not finite at step 7", reason="PodFailurePolicy")
    scenario.reconcile()

    scenario.change(scenario.builder.with_retry_requested("again"))
    first = scenario.reconcile()
    ran = run_again(scenario)

    assert sorted(reason for _, reason in deleted(first)) == [RUNS_AGAIN, RUNS_AGAIN]
    assert scenario.status.last_handled_retry == "again"
    assert ran == list(Stage)
    assert scenario.status.phase == "Succeeded"


def test_a_retry_works_if_the_failed_job_is_already_gone(scenario: Scenario) -> None:
    scenario.reconcile()
    scenario.fail(ExitCode.DENIED, "access denied")
    scenario.reconcile()
    scenario.cluster.remove_job(scenario.row(Stage.PREPARE).job)

    scenario.change(scenario.builder.with_retry_requested("again"))

    assert created(scenario.reconcile()) == [Stage.PREPARE]


def test_a_retry_of_a_finished_object_checks_the_inputs_and_runs_nothing_else(scenario: Scenario) -> None:
    scenario.finish_all()

    scenario.change(scenario.builder.with_retry_requested("check"))

    assert run_again(scenario) == [Stage.PREPARE]
    assert scenario.status.phase == "Succeeded"
    artifacts = [artifact.name for artifact in scenario.status.artifacts]
    assert sorted(artifacts) == ["adapter", "edge-bnb-int8", "merged", "prepared"]


def test_a_retry_detects_data_that_changed_at_the_same_uri(scenario: Scenario) -> None:
    scenario.finish_all()
    before = scenario.status.resolved
    scenario.data = "second version of the data"

    scenario.change(scenario.builder.with_retry_requested("new data"))
    scenario.reconcile()

    assert run_again(scenario) == list(Stage)
    assert scenario.status.resolved != before


def test_a_retry_while_a_stage_runs_is_handled_when_the_stage_has_ended(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)

    scenario.change(scenario.builder.with_retry_requested("impatient"))
    deferred = scenario.reconcile()
    ready, again = scenario.condition("Ready"), scenario.reconcile()
    handled_before = scenario.status.last_handled_retry
    scenario.finish()
    ended = scenario.reconcile()
    state, handled = scenario.row(Stage.TRAIN).state, scenario.status.last_handled_retry

    assert (deferred.plan.actions, again.plan.actions, again.wrote_status) == ((), (), False)
    message = "train: running; the requested retry starts when this stage has ended"
    assert (ready, handled_before) == (("False", "JobRunning", message), "")
    assert (state, handled) == (StageState.SUCCEEDED, "impatient")
    assert (created(ended), [reason for _, reason in deleted(ended)]) == ([], [RUNS_AGAIN])
    assert run_again(scenario) == [Stage.PREPARE, Stage.MERGE, Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH]


def test_a_retry_while_a_stage_runs_is_handled_when_the_stage_has_failed(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.change(scenario.builder.with_retry_requested("impatient"))
    scenario.reconcile()

    scenario.fail(ExitCode.DIVERGED, "the loss is not finite", reason="PodFailurePolicy")
    scenario.reconcile()

    assert scenario.status.last_handled_retry == "impatient"
    assert run_again(scenario) == list(Stage)


def test_no_stage_starts_while_a_retry_waits_for_a_job_whose_container_has_ended(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.change(scenario.builder.with_retry_requested("impatient"))
    result = scenario.simulated_result(scenario.request)
    scenario.end_pod(lambda pod: pod.succeeded(result))

    deferred = scenario.reconcile()
    scenario.end_job(lambda job: job.complete(scenario.cluster.timestamp()))
    scenario.reconcile()

    assert (deferred.plan.actions, scenario.row(Stage.TRAIN).state) == ((), StageState.SUCCEEDED)
    assert created(scenario.reconcile()) == [Stage.PREPARE]


def test_an_object_is_not_ready_while_a_retry_waits_for_the_job_of_publish(scenario: Scenario) -> None:
    scenario.advance_to(Stage.PUBLISH)
    scenario.change(scenario.builder.with_retry_requested("impatient"))
    result = scenario.simulated_result(scenario.request)
    scenario.end_pod(lambda pod: pod.succeeded(result))

    scenario.reconcile()
    message = "publish: done; the requested retry starts when this stage has ended"
    waiting = scenario.condition("Ready"), scenario.condition("Reconciling"), scenario.status.phase
    scenario.end_job(lambda job: job.complete(scenario.cluster.timestamp()))
    scenario.reconcile()
    scenario.finish_all()

    assert waiting == (("False", "Pending", message), ("True", "Pending", message), Phase.PUBLISHING)
    assert (scenario.status.phase, scenario.status.last_handled_retry) == (Phase.SUCCEEDED, "impatient")


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN])
def test_a_retry_replaces_a_job_that_has_not_started(scenario: Scenario, stage: Stage) -> None:
    scenario.advance_to(stage)
    scenario.end_pod(lambda pod: pod.waiting("ImagePullBackOff"))
    blocked = scenario.live_job

    scenario.change(scenario.builder.with_retry_requested("now"))
    first = scenario.reconcile()
    second = scenario.reconcile()

    assert blocked in [name for name, _ in deleted(first)]
    assert scenario.status.last_handled_retry == "now"
    assert (created(second), scenario.row(stage).state) == (
        [Stage.PREPARE],
        StageState.RUNNING if stage is Stage.PREPARE else StageState.PENDING,
    )
    assert scenario.reconcile().wrote_status is False


def test_a_retry_is_handled_once(scenario: Scenario) -> None:
    scenario.reconcile()
    scenario.fail(ExitCode.INVALID, "bad data")
    scenario.change(scenario.builder.with_retry_requested("once"))
    run_again(scenario)
    run_again(scenario)
    scenario.cluster.remove_ended_jobs()

    assert scenario.status.phase == "Succeeded"
    assert run_again(scenario) == []


def test_removing_the_annotation_requests_nothing(scenario: Scenario) -> None:
    scenario.change(scenario.builder.with_retry_requested("first"))
    scenario.finish_all()

    scenario.change(scenario.builder.with_metadata(annotations={}))

    assert run_again(scenario) == []
    assert scenario.status.last_handled_retry == "first"


def test_a_retry_whose_status_could_not_be_written_is_not_run_twice(scenario: Scenario) -> None:
    scenario.reconcile()
    scenario.fail(ExitCode.TRANSIENT, "the store did not answer")
    scenario.reconcile()
    unhandled = scenario.cluster.document["status"]
    scenario.change(scenario.builder.with_retry_requested("again"))
    scenario.reconcile()
    scenario.reconcile()
    scenario.finish()
    scenario.cluster.document["status"] = unhandled

    done = scenario.reconcile()

    assert created(done) == [Stage.TRAIN]
    assert deleted(done) == []


def test_a_retry_while_suspended_takes_effect_when_the_run_resumes(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.fail(ExitCode.DIVERGED, "the loss is not finite")
    scenario.reconcile()
    scenario.change(scenario.builder.edited("suspend", True).with_retry_requested("later"))
    scenario.reconcile()
    scenario.reconcile()
    suspended = scenario.status.phase

    scenario.change(scenario.builder.edited("suspend", False))

    assert suspended == "Suspended"
    assert created(scenario.reconcile()) == [Stage.PREPARE]
    scenario.finish()
    assert created(scenario.reconcile()) == [Stage.TRAIN]


def test_a_token_too_long_for_the_status_is_handled(scenario: Scenario) -> None:
    scenario.change(scenario.builder.with_retry_requested("x" * 5000))

    scenario.finish_all()

    assert len(scenario.status.last_handled_retry) == MAX_RETRY_TOKEN
    assert run_again(scenario) == []


def test_a_retry_reruns_stages_whose_output_is_no_longer_in_the_store() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.finish_all()
    scenario.manifests.clear()

    scenario.change(scenario.builder.with_retry_requested("check again"))
    scenario.reconcile()  # deletes prepare's ended Job
    scenario.finish_all()  # prepare finds nothing in the store; deletes the other ended Jobs
    scenario.finish_all()

    assert scenario.status.phase == "Succeeded"
    assert {result.stage for result in scenario.manifests.values()} == set(Stage) - {Stage.PREPARE}


def test_a_token_in_the_spec_is_handled_once_and_is_in_no_digest(scenario: Scenario) -> None:
    scenario.finish_all()
    digests = [row.digest for row in scenario.status.stages]

    scenario.change(scenario.builder.edited("retry", "2026-11-28"))
    ran = run_again(scenario)
    scenario.change(scenario.builder.edited("retryLimit", 5))

    assert ran == [Stage.PREPARE]
    assert [row.digest for row in scenario.status.stages] == digests
    assert scenario.status.last_handled_retry == "2026-11-28"
    assert run_again(scenario) == []


def test_a_token_in_the_spec_retries_what_failed(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.fail(ExitCode.DIVERGED, "the loss is not finite", reason="PodFailurePolicy")
    scenario.reconcile()

    scenario.change(scenario.builder.edited("retry", "again"))

    assert run_again(scenario) == list(Stage)
    assert scenario.status.phase == "Succeeded"


def test_tokens_in_spec_and_annotation_are_both_handled_once(scenario: Scenario) -> None:
    scenario.finish_all()
    scenario.change(scenario.builder.edited("retry", "from Git").with_retry_requested("by hand"))
    first = run_again(scenario)
    scenario.change(scenario.builder.with_retry_requested("by hand again"))
    second = run_again(scenario)
    scenario.change(scenario.builder.with_retry_requested("by hand"))

    assert (first, second, run_again(scenario)) == ([Stage.PREPARE], [Stage.PREPARE], [])
    assert scenario.status.handled_retries == ("by hand again", "by hand", "from Git")


def test_a_token_that_stays_in_the_spec_is_handled_once_whatever_annotations_follow(scenario: Scenario) -> None:
    scenario.change(scenario.builder.edited("retry", "from Git"))
    scenario.finish_all()

    for number in range(MAX_RETRIES + 1):
        scenario.change(scenario.builder.with_retry_requested(f"by hand {number}"))
        assert run_again(scenario) == [Stage.PREPARE]
        assert scenario.status.handled_retries[0] == f"by hand {number}"
    assert len(scenario.status.handled_retries) == MAX_RETRIES


def test_a_token_whose_annotation_is_removed_while_it_waits_is_still_handled(scenario: Scenario) -> None:
    """Flux removes annotations that are not in Git."""
    scenario.advance_to(Stage.TRAIN)
    scenario.change(scenario.builder.with_retry_requested("by hand"))
    scenario.reconcile()
    scenario.change(scenario.builder.with_metadata(annotations={}))
    scenario.reconcile()
    waiting, ready = scenario.status.pending_retries, scenario.condition("Ready")
    scenario.finish()

    ran = run_again(scenario)

    assert waiting == ("by hand",)
    assert ready is not None
    assert ready[0] == "False"
    assert ran[0] is Stage.PREPARE
    assert (scenario.status.last_handled_retry, scenario.status.pending_retries) == ("by hand", ())


def test_a_handled_token_that_returns_repeats_nothing(scenario: Scenario) -> None:
    scenario.finish_all()
    for token in ("one", "two"):
        scenario.change(scenario.builder.with_retry_requested(token))
        run_again(scenario)

    for annotations in ({}, {"edgetune.dev/retry-requested": "one"}, {"edgetune.dev/retry-requested": "two"}):
        scenario.change(scenario.builder.with_metadata(annotations=annotations))
        assert run_again(scenario) == []


def test_a_token_seen_while_the_profile_is_missing_is_handled_when_it_exists(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.fail(ExitCode.DIVERGED, "the loss is not finite", reason="PodFailurePolicy")
    scenario.reconcile()
    profiles, scenario.profiles = scenario.profiles, {}
    scenario.change(scenario.builder.with_retry_requested("again"))
    scenario.reconcile()
    scenario.change(scenario.builder.with_metadata(annotations={}))
    scenario.reconcile()
    waiting = scenario.status.pending_retries
    scenario.profiles = profiles

    assert waiting == ("again",)
    assert run_again(scenario) == list(Stage)
    assert scenario.status.last_handled_retry == "again"
