"""Changes by users during a run: edits, suspending and resuming."""

from typing import Any

import pytest

from edgetune_contract.digest import sha256_of
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.plans import Outcome
from edgetune_operator.reconcile import JobRefused
from support.builders import lora_fine_tune
from support.scenario import PROFILE, Scenario, created, deleted, request_of, run_again

NOT_PART = "it is not part of the current run"
RUNS_AGAIN = "the stage runs again"


@pytest.fixture
def scenario() -> Scenario:
    """The smallest object, before its first pass."""
    return Scenario(lora_fine_tune())


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("dataset.template", "ChatTemplate", list(Stage)),
        ("lora.rank", 8, [Stage.PREPARE, Stage.TRAIN, Stage.MERGE, Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH]),
        ("merge.base", "Original", [Stage.PREPARE, Stage.MERGE, Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH]),
        ("merge.keep", False, [Stage.PREPARE, Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH]),
        ("quantization.outlierThreshold", 5.0, [Stage.PREPARE, Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH]),
        ("evaluation.maxNewTokens", 64, [Stage.PREPARE, Stage.EVALUATE, Stage.PUBLISH]),
        ("evaluation.gates.minScore", 0.5, [Stage.PUBLISH]),
        ("retryLimit", 9, []),
        ("activeDeadlineSeconds", 600, []),
        ("training.checkpoint.keep", 9, []),
    ],
)
def test_an_edit_reruns_only_the_stages_that_it_can_change(
    scenario: Scenario, path: str, value: Any, expected: list[Stage]
) -> None:
    scenario.finish_all()

    scenario.change(scenario.builder.edited(path, value))

    assert run_again(scenario) == expected
    assert scenario.status.phase == "Succeeded"
    assert scenario.status.observed_generation == 2


def test_an_edit_that_changes_the_running_stage_deletes_its_job_and_creates_nothing_in_that_pass(
    scenario: Scenario,
) -> None:
    scenario.advance_to(Stage.TRAIN)
    stale = scenario.live_job
    scenario.change(scenario.builder.edited("lora.rank", 8))

    first = scenario.reconcile()
    waiting = scenario.condition("Reconciling")
    second = scenario.reconcile()

    assert (sorted(deleted(first))[-1], created(first)) == ((stale, NOT_PART), [])
    assert waiting == ("True", "Pending", "prepare: waiting until an older Job of this object is gone")
    assert (deleted(second), created(second)) == ([], [Stage.PREPARE])
    assert scenario.live_job != stale


def test_nothing_is_created_while_the_old_job_is_being_deleted(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.cluster.deletes_slowly = True
    scenario.change(scenario.builder.edited("lora.rank", 8))

    passes = [scenario.reconcile() for _ in range(3)]

    assert [len(deleted(each)) for each in passes] == [2, 0, 0]
    assert [created(each) for each in passes] == [[], [], []]


def test_an_edit_that_does_not_change_the_running_stage_keeps_its_job(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    job = scenario.live_job

    scenario.change(scenario.builder.edited("evaluation.maxExamples", 10))
    done = scenario.reconcile()

    assert done.plan.actions == ()
    assert scenario.live_job == job


@pytest.mark.parametrize("jobs_are_gone", [False, True])
def test_a_reverted_edit_publishes_the_earlier_version_without_a_gpu(scenario: Scenario, jobs_are_gone: bool) -> None:
    scenario.finish_all()
    version = scenario.pointer
    scenario.change(scenario.builder.edited("lora.rank", 8))
    run_again(scenario)
    if jobs_are_gone:
        scenario.cluster.remove_ended_jobs()

    scenario.change(scenario.builder.edited("lora.rank", 16))

    assert run_again(scenario) == ([Stage.PREPARE, Stage.PUBLISH] if jobs_are_gone else [Stage.PUBLISH])
    assert scenario.row(Stage.TRAIN).cached is jobs_are_gone
    assert scenario.pointer == version
    assert scenario.status.publication is not None
    assert scenario.status.publication.version == version


def test_a_recipe_that_another_object_has_trained_needs_no_gpu(scenario: Scenario) -> None:
    scenario.finish_all()
    scenario.change(scenario.builder.edited("lora.rank", 8))
    run_again(scenario)

    scenario.recreate()
    scenario.change(scenario.builder.edited("lora.rank", 16))

    assert run_again(scenario) == [Stage.PREPARE, Stage.PUBLISH]


def test_prepare_looks_once_for_an_edited_spec(scenario: Scenario) -> None:
    scenario.finish_all()
    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.advance_to(Stage.TRAIN)

    scenario.cluster.remove_job(scenario.live_job)

    assert created(scenario.reconcile()) == [Stage.TRAIN]
    scenario.change(scenario.builder.edited("suspend", True))
    scenario.reconcile()
    scenario.change(scenario.builder.edited("suspend", False))
    assert created(scenario.reconcile()) == [Stage.TRAIN]


def test_an_edit_during_the_look_is_looked_for_too(scenario: Scenario) -> None:
    scenario.finish_all()
    version = scenario.pointer
    scenario.cluster.remove_ended_jobs()
    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.advance_to(Stage.PREPARE)
    looking = scenario.request
    scenario.change(scenario.builder.edited("lora.rank", 16))

    assert run_again(scenario) == [Stage.PREPARE], "the pointer has not moved: publish is done too"
    assert looking.parameters.lora.rank == 8
    assert scenario.pointer == version


def test_a_running_training_is_not_stopped_to_look_for_an_edit_of_later_stages(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.change(scenario.builder.edited("evaluation.maxExamples", 10))
    scenario.reconcile()

    assert scenario.request.stage is Stage.TRAIN
    assert run_again(scenario) == [Stage.PREPARE, Stage.MERGE, Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH]


def test_a_bot_that_edits_a_pin_of_the_data_three_times_during_a_training_gets_only_the_last_one_trained(
    scenario: Scenario,
) -> None:
    scenario.finish_all()
    live = scenario.pointer
    scenario.change(scenario.builder.edited("dataset.train.revision", "0" * 64))
    scenario.data = "data 0"
    scenario.advance_to(Stage.TRAIN)
    for digit in "123":
        scenario.change(scenario.builder.edited("dataset.train.revision", digit * 64))
        scenario.data = f"data {digit}"
        scenario.reconcile()
    published, stopped = scenario.status.live, scenario.cluster.live_jobs()

    ran = run_again(scenario)

    assert published is not None
    assert (published.version, stopped) == (live, [])
    assert ran == list(Stage)
    requests = [request_of(job) for job in scenario.cluster.created]
    trained = [each.resolved for each in requests if each.stage is Stage.TRAIN]
    assert [each.train for each in trained if each is not None][-1] == sha256_of("data 3")
    assert len(trained) == 3, "the first version, the training that the bot stopped, and the last one"


def test_results_of_an_older_spec_are_not_shown_for_the_new_one(scenario: Scenario) -> None:
    scenario.finish_all()

    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.advance_to(Stage.TRAIN)

    assert [artifact.name for artifact in scenario.status.artifacts] == ["prepared"]
    assert scenario.status.scores is None
    assert scenario.status.publication is None
    assert scenario.status.sizes is not None
    assert scenario.status.sizes.edge_bytes is None


def test_suspending_deletes_the_running_job_and_keeps_finished_stages(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    job = scenario.live_job
    scenario.change(scenario.builder.edited("suspend", True))

    first, second = scenario.reconcile(), scenario.reconcile()

    message = "spec.suspend is true; set it to false to continue with train"
    assert deleted(first) == [(job, NOT_PART)]
    assert second.plan.actions == ()
    assert scenario.status.phase == "Suspended"
    assert scenario.condition("Ready") == ("False", "Suspended", message)
    assert scenario.condition("Reconciling") is None
    assert scenario.held_up is None
    assert scenario.row(Stage.PREPARE).state is StageState.SUCCEEDED
    assert scenario.row(Stage.TRAIN).state is StageState.PENDING


def test_resuming_waits_until_the_suspended_job_is_gone(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    job = scenario.live_job
    scenario.cluster.deletes_slowly = True
    scenario.change(scenario.builder.edited("suspend", True))
    scenario.reconcile()

    scenario.change(scenario.builder.edited("suspend", False))
    waiting = scenario.reconcile()
    state, condition = scenario.row(Stage.TRAIN).state, scenario.condition("Reconciling")
    scenario.cluster.remove_job(job)
    done = scenario.reconcile()

    assert waiting.plan.actions == ()
    assert state is StageState.PENDING
    assert condition == ("True", "Pending", "train: waiting until an older Job of this object is gone")
    assert created(done) == [Stage.TRAIN]


def test_resuming_creates_the_same_job_again(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    job = scenario.live_job
    scenario.change(scenario.builder.edited("suspend", True))
    scenario.reconcile()

    scenario.change(scenario.builder.edited("suspend", False))
    done = scenario.reconcile()

    assert created(done) == [Stage.TRAIN]
    assert scenario.live_job == job


def test_an_object_created_suspended_runs_nothing() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("suspend", True))

    assert scenario.reconcile().plan.actions == ()
    assert scenario.status.phase == "Suspended"


def test_suspending_a_finished_object_changes_nothing(scenario: Scenario) -> None:
    scenario.finish_all()

    scenario.change(scenario.builder.edited("suspend", True))
    scenario.reconcile()

    assert scenario.status.phase == "Succeeded"


def fail_the_training(scenario: Scenario) -> None:
    """The training fails and uses up its retries."""
    scenario.advance_to(Stage.TRAIN)
    scenario.fail(ExitCode.TRANSIENT, "the store did not answer", attempts=4)
    assert scenario.reconcile().plan.view.outcome is Outcome.FAILED


def test_an_edit_after_a_failure_retries(scenario: Scenario) -> None:
    fail_the_training(scenario)

    scenario.change(scenario.builder.edited("retryLimit", 10))
    scenario.reconcile()
    done = scenario.reconcile()

    assert created(done) == [Stage.TRAIN]
    assert scenario.cluster.jobs[scenario.live_job]["spec"]["backoffLimit"] == 10


def test_an_edit_after_a_failure_retries_even_if_its_profile_is_added_later(scenario: Scenario) -> None:
    fail_the_training(scenario)
    scenario.change(scenario.builder.edited("profile", "large"))
    scenario.reconcile()
    stalled = scenario.held_up
    scenario.reconcile()

    scenario.profiles["large"] = PROFILE
    scenario.reconcile()

    assert (stalled or ())[:2] == ("True", "ProfileNotFound")
    assert created(scenario.reconcile()) == [Stage.TRAIN]


def test_an_edit_after_a_failure_retries_even_if_only_a_later_operator_accepts_it(scenario: Scenario) -> None:
    fail_the_training(scenario)
    scenario.change(scenario.builder.edited("retryLimit", -1))
    scenario.reconcile()
    stalled = scenario.held_up

    scenario.change(scenario.builder.with_spec("retryLimit", 10))
    scenario.reconcile()

    assert (stalled or ())[:2] == ("True", "InvalidSpec")
    assert created(scenario.reconcile()) == [Stage.TRAIN]


def test_a_profile_that_was_missing_for_a_while_does_not_retry_a_failed_training(scenario: Scenario) -> None:
    fail_the_training(scenario)
    profiles, scenario.profiles = scenario.profiles, {}
    scenario.reconcile()
    stalled = scenario.held_up

    scenario.profiles = profiles
    scenario.reconcile()

    assert (stalled or ())[:2] == ("True", "ProfileNotFound")
    assert (created(scenario.reconcile()), scenario.status.phase) == ([], "Failed")


def test_a_run_that_fails_while_its_profile_is_missing_is_in_the_history_and_not_retried(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    profiles, scenario.profiles = scenario.profiles, {}
    scenario.reconcile()
    stalled_at = scenario.status.finished_at
    scenario.fail(ExitCode.TRANSIENT, "the store did not answer", attempts=4)
    scenario.profiles = profiles
    scenario.reconcile()
    history = scenario.status.history
    scenario.profiles = {}
    scenario.reconcile()
    scenario.profiles = profiles

    assert stalled_at is None
    assert [entry.outcome for entry in history] == ["Failed: TransientError"]
    assert (created(scenario.reconcile()), scenario.status.phase) == ([], "Failed")


def test_what_a_pass_recorded_is_kept_if_the_cluster_refuses_the_next_job(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.fail(ExitCode.TRANSIENT, "the store did not answer", attempts=4)
    scenario.reconcile()
    scenario.cluster.remove_ended_jobs()
    scenario.change(scenario.builder.edited("retryLimit", 10))

    async def refuses(job: Any) -> None:  # noqa: ARG001 - the signature is the cluster's
        raise JobRefused("JobRefused", "exceeded quota: gpus")

    with monkeypatch.context() as patch:
        patch.setattr(scenario.cluster, "create_job", refuses)
        scenario.reconcile()
    stalled, row = scenario.held_up, scenario.row(Stage.TRAIN)
    done = scenario.reconcile()

    assert stalled == ("True", "JobRefused", "train: exceeded quota: gpus")
    assert (row.state, row.reason, row.job) == (StageState.PENDING, "JobRefused", "")
    assert (row.attempts, row.started_at, row.message) == (0, None, "exceeded quota: gpus")
    assert created(done) == [Stage.TRAIN]
    assert scenario.held_up is None
