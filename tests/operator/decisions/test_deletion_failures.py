"""Deletions that fail: the object is still released within a time limit and reports what is left where."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from edgetune_contract.clean_up import CleanUpResult
from edgetune_contract.request import Failure
from edgetune_contract.stages import Stage
from edgetune_operator.api.names import Key
from edgetune_operator.decisions.deletion import CreateCleanUp
from edgetune_operator.decisions.reporting.events import EventDraft
from edgetune_operator.reconcile import JobRefused, report_failure
from support.builders import lora_fine_tune
from support.deletion import JOB, LEFT, LIMIT, STORE, Deletion, complete, published_with_delete, succeeded, with_delete
from support.scenario import TICK

MAX_EVENT_MESSAGE = 1024  # limit of the API server


@pytest.fixture
def deletion() -> Deletion:
    """A published object that will be deleted."""
    return published_with_delete()


def test_a_failed_clean_up_releases_the_object_with_a_warning_about_what_is_left_where(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    failure = Failure.brief(14, "TransientError", f"the store cannot be reached for {STORE}/uses/")
    deletion.end_clean_up(
        lambda pod: pod.ended(14, CleanUpResult(failure=failure).encode().decode()),
        lambda job: job.failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"),
    )

    why = f"TransientError: the store cannot be reached for {STORE}/uses/"
    assert deletion.step().plan.final_event == EventDraft(
        "Warning", "CleanUpFailed", f"{LEFT}. The clean-up failed: {why}"
    )
    assert deletion.cluster.gone


def test_a_clean_up_whose_pod_never_started_reports_why_it_waited(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    waiting = f"Job {JOB} is removing the artifacts; its Pod is waiting: ImagePullBackOff: no such image"
    deletion.end_clean_up(lambda pod: pod.waiting("ImagePullBackOff", "no such image"), lambda job: job)
    assert deletion.step().plan.message == waiting

    deletion.end_clean_up(
        lambda pod: pod.waiting("ImagePullBackOff", "no such image"),
        lambda job: job.failed("DeadlineExceeded", "Job was active longer than specified deadline"),
    )
    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert final_event.message == (
        f"{LEFT}. The clean-up failed: Job was active longer than specified deadline; "
        "its Pod is waiting: ImagePullBackOff: no such image"
    )


def test_a_clean_up_that_times_out_is_stopped_and_the_object_released(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    start = deletion.cluster.now
    deletion.cluster.now = start + LIMIT - TICK
    assert deletion.step().plan.final_event is None

    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert (final_event.type, final_event.reason) == ("Warning", "CleanUpFailed")
    assert final_event.message == (
        f"{LEFT}. The clean-up failed: it timed out after 780 s: Job {JOB} is removing the artifacts"
    )
    assert JOB not in deletion.cluster.jobs
    assert deletion.cluster.gone


def test_the_time_limit_starts_at_the_first_pass_not_at_a_deletion_while_the_operator_was_down(
    deletion: Deletion,
) -> None:
    deletion.delete()
    deletion.cluster.now += timedelta(days=3)

    assert deletion.step().plan.final_event is None
    assert JOB in deletion.cluster.jobs


def test_stages_that_never_end_also_time_out() -> None:
    deletion = Deletion(with_delete())
    deletion.advance_to(Stage.TRAIN)
    deletion.cluster.deletes_slowly = True
    deletion.delete()
    deletion.step()
    deletion.cluster.now += LIMIT

    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert "it timed out after 780 s: waiting until the stages' Jobs are gone: " in final_event.message


def test_a_deletion_whose_passes_all_fail_says_why_and_times_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    deletion = Deletion(with_delete())
    deletion.advance_to(Stage.TRAIN)
    deletion.delete()

    async def refuse(*_: Any) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(deletion.cluster, "delete_job", refuse)
    key, error = Key("team-a", "sensor-faults"), "TimeoutError: no answer"
    with pytest.raises(TimeoutError):
        deletion.step()
    reported = [asyncio.run(report_failure(deletion.cluster, key, error, deletion.cluster.now)) for _ in range(2)]
    condition = deletion.condition("CleanedUp")
    deletion.cluster.now += LIMIT
    final_event = deletion.step().plan.final_event

    message = f"the operator cannot reconcile this object, and keeps trying: {error}"
    assert reported == [True, False]
    assert condition == ("False", "InternalError", message)
    assert final_event is not None
    assert final_event.message.endswith(f"it timed out after 780 s: {message}")
    assert deletion.cluster.gone


def test_a_deletion_that_only_others_finalizers_hold_has_no_time_limit_to_report() -> None:
    deletion = Deletion(lora_fine_tune().with_metadata(finalizers=["backup.example.com/copy"]))
    deletion.delete()

    key = Key("team-a", "sensor-faults")
    assert not asyncio.run(report_failure(deletion.cluster, key, "TimeoutError", deletion.cluster.now))
    assert deletion.cluster.status_writes == 0


def refusing(deletion: Deletion, monkeypatch: pytest.MonkeyPatch, reason: str, message: str) -> None:
    async def refuse(_: Any) -> None:
        raise JobRefused(reason, message)

    monkeypatch.setattr(deletion.cluster, "create_job", refuse)


def test_a_refused_clean_up_is_retried_until_it_times_out(deletion: Deletion, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(deletion, monkeypatch, "JobRefused", "the cluster refuses the Job: exceeded quota: none")
    deletion.delete()

    assert deletion.step().plan.reason == "JobRefused"
    assert deletion.condition("CleanedUp") == (
        "False",
        "JobRefused",
        "the cluster refuses the Job: exceeded quota: none",
    )
    deletion.cluster.now += LIMIT
    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert final_event.message.endswith("it timed out after 780 s: the cluster refuses the Job: exceeded quota: none")
    assert deletion.cluster.gone


def test_an_object_in_a_terminating_namespace_is_released_at_once(deletion: Deletion) -> None:
    deletion.cluster.namespace_terminating = True
    deletion.delete()

    assert deletion.step().plan.final_event == EventDraft(
        "Warning",
        "CleanUpSkipped",
        f"{LEFT}. Nothing was removed: its namespace is being deleted and accepts no new Jobs",
    )
    assert deletion.cluster.gone


def test_a_clean_up_interrupted_by_its_namespace_is_reported_as_failed_not_skipped(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.cluster.namespace_terminating = True

    assert deletion.step().plan.final_event == EventDraft(
        "Warning",
        "CleanUpFailed",
        f"{LEFT}. The clean-up failed: its namespace is being deleted, and the clean-up Job with it",
    )


def test_a_clean_up_completed_before_its_namespace_was_deleted_is_reported(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(succeeded(removed_objects=2, removed_bytes=10), complete)
    deletion.cluster.namespace_terminating = True

    assert deletion.step().plan.final_event == EventDraft("Normal", "CleanedUp", "removed 2 objects (10 bytes)")


def test_an_object_in_a_terminating_namespace_does_not_wait_for_its_stages() -> None:
    """The operator's Role is deleted with the namespace, so deleting the Jobs may be forbidden."""
    deletion = Deletion(with_delete())
    deletion.reconcile()
    (running,) = deletion.cluster.live_jobs()
    deletion.cluster.namespace_terminating = True
    deletion.delete()

    assert deletion.step().plan.actions == ()
    assert deletion.cluster.gone
    assert deletion.cluster.live_jobs() == [running]


def test_a_missing_profile_is_awaited_for_some_minutes_before_the_artifacts_are_kept(deletion: Deletion) -> None:
    deletion.profiles.clear()
    deletion.delete()

    first = deletion.step().plan
    assert (first.final_event, first.reason) == (None, "ProfileNotFound")
    message = (
        "spec.profile: profile 'default' not found; namespace team-a may use none: ask the platform team. The deletion "
        "waits 300 s for the profile; then the artifacts are kept and the object is released"
    )
    assert deletion.condition("CleanedUp") == ("False", "ProfileNotFound", message)
    deletion.cluster.now += timedelta(minutes=5) - 2 * TICK
    assert deletion.step().plan.final_event is None
    assert deletion.finalizers

    assert deletion.step().plan.final_event == EventDraft(
        "Warning",
        "CleanUpSkipped",
        f"{LEFT}. Nothing was removed: spec.profile: profile 'default' not found; namespace team-a may use none: ask "
        "the platform team",
    )
    assert deletion.cluster.gone


def test_a_profile_that_comes_back_in_time_is_used_for_the_clean_up(deletion: Deletion) -> None:
    profiles = dict(deletion.profiles)
    deletion.profiles.clear()
    deletion.delete()
    deletion.step()
    deletion.profiles |= profiles
    deletion.step()

    assert deletion.cluster.live_jobs() == [JOB]


def test_the_stages_are_stopped_while_the_profile_is_awaited() -> None:
    deletion = Deletion(with_delete())
    deletion.advance_to(Stage.TRAIN)
    deletion.profiles.clear()
    deletion.delete()
    deletion.step()

    assert deletion.cluster.live_jobs() == []
    assert deletion.finalizers


def test_an_object_that_has_never_run_does_not_wait_for_its_profile() -> None:
    deletion = Deletion(with_delete(), profile=None)
    deletion.reconcile()
    deletion.delete()
    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert final_event.message.startswith("the status lists no artifacts. Nothing was removed: spec.profile: profile")


def test_a_field_that_the_deletion_does_not_follow_may_be_invalid(deletion: Deletion) -> None:
    deletion.change(deletion.builder.edited("lora.rank", 0))
    deletion.delete()

    assert any(isinstance(action, CreateCleanUp) for action in deletion.step().plan.actions)
    deletion.end_clean_up(succeeded(removed_objects=1), complete)
    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert final_event.reason == "CleanedUp"
    assert deletion.cluster.gone


def test_an_invalid_policy_releases_the_object_at_once() -> None:
    deletion = Deletion(with_delete())
    deletion.reconcile()
    deletion.change(deletion.builder.edited("deletionPolicy", "Shred"))
    deletion.delete()

    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert final_event.reason == "CleanUpSkipped"
    assert final_event.message.startswith(
        "the status lists no artifacts. Nothing was removed: the spec is invalid: spec.deletionPolicy: "
    )


def test_a_long_event_is_not_cut_before_what_is_left_where(deletion: Deletion) -> None:
    failure = Failure.brief(1, "InternalError", "x" * 5000)
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(
        lambda pod: pod.ended(1, CleanUpResult(failure=failure).encode().decode()),
        lambda job: job.failed("BackoffLimitExceeded"),
    )

    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert len(final_event.message) > MAX_EVENT_MESSAGE
    assert LEFT in final_event.message[:MAX_EVENT_MESSAGE]
