"""Deletions that cannot go as they should: the object goes all the same, in bounded time, and says what stays where."""

from datetime import timedelta
from typing import Any

import pytest

from edgetune_contract.clean_up import CleanUpResult
from edgetune_contract.request import Failure
from edgetune_contract.stages import Stage
from edgetune_operator.decisions.events import EventDraft
from edgetune_operator.reconcile import JobRefused
from support.deletion import JOB, LEFT, LIMIT, STORE, Deletion, complete, published_with_delete, succeeded, with_delete
from support.scenario import TICK

MAX_EVENT_MESSAGE = 1024  # as the API server has it


@pytest.fixture
def deletion() -> Deletion:
    """A published object that is going to be deleted."""
    return published_with_delete()


def test_a_clean_up_that_fails_lets_the_object_go_with_a_warning_of_what_stays_where(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    failure = Failure.brief(14, "TransientError", f"the store cannot be reached for {STORE}/uses/")
    deletion.end_clean_up(
        lambda pod: pod.ended(14, CleanUpResult(failure=failure).encode().decode()),
        lambda job: job.failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"),
    )

    why = f"TransientError: the store cannot be reached for {STORE}/uses/"
    assert deletion.step().plan.final_event == EventDraft(
        "Warning", "CleanUpFailed", f"{LEFT}. The clean-up was given up: {why}"
    )
    assert deletion.cluster.gone


def test_a_clean_up_whose_pod_never_started_says_what_it_waited_for(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    waiting = f"Job {JOB} removes the artifacts; its Pod waits: ImagePullBackOff: no such image"
    deletion.end_clean_up(lambda pod: pod.waiting("ImagePullBackOff", "no such image"), lambda job: job)
    assert deletion.step().plan.message == waiting

    deletion.end_clean_up(
        lambda pod: pod.waiting("ImagePullBackOff", "no such image"),
        lambda job: job.failed("DeadlineExceeded", "Job was active longer than specified deadline"),
    )
    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert final_event.message == (
        f"{LEFT}. The clean-up was given up: Job was active longer than specified deadline; "
        "its Pod waits: ImagePullBackOff: no such image"
    )


def test_a_clean_up_that_takes_too_long_is_stopped_and_the_object_goes(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    began = deletion.cluster.now
    deletion.cluster.now = began + LIMIT - TICK
    assert deletion.step().plan.final_event is None

    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert (final_event.type, final_event.reason) == ("Warning", "CleanUpFailed")
    assert final_event.message == (
        f"{LEFT}. The clean-up was given up: not done after 780 s: Job {JOB} removes the artifacts"
    )
    assert JOB not in deletion.cluster.jobs
    assert deletion.cluster.gone


def test_the_time_counts_from_when_the_operator_began_not_from_a_deletion_while_it_was_down(deletion: Deletion) -> None:
    deletion.delete()
    deletion.cluster.now += timedelta(days=3)

    assert deletion.step().plan.final_event is None
    assert JOB in deletion.cluster.jobs


def test_stages_that_never_end_are_bounded_as_well() -> None:
    deletion = Deletion(with_delete())
    deletion.advance_to(Stage.TRAIN)
    deletion.cluster.deletes_slowly = True
    deletion.delete()
    deletion.step()
    deletion.cluster.now += LIMIT

    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert "not done after 780 s: waits until the stages' Jobs are gone: " in final_event.message


def refusing(deletion: Deletion, monkeypatch: pytest.MonkeyPatch, reason: str, message: str) -> None:
    async def refuse(_: Any) -> None:
        raise JobRefused(reason, message)

    monkeypatch.setattr(deletion.cluster, "create_job", refuse)


def test_a_clean_up_that_the_cluster_refuses_is_tried_again_until_the_time_is_over(
    deletion: Deletion, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert final_event.message.endswith("not done after 780 s: the cluster refuses the Job: exceeded quota: none")
    assert deletion.cluster.gone


def test_an_object_in_a_namespace_that_is_deleted_goes_at_once(deletion: Deletion) -> None:
    deletion.cluster.namespace_goes = True
    deletion.delete()

    assert deletion.step().plan.final_event == EventDraft(
        "Warning",
        "CleanUpSkipped",
        f"{LEFT}. Nothing was removed: its namespace is being deleted, and takes no Job any more",
    )
    assert deletion.cluster.gone


def test_a_clean_up_that_its_namespace_cuts_off_is_not_told_as_one_that_removed_nothing(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.cluster.namespace_goes = True

    assert deletion.step().plan.final_event == EventDraft(
        "Warning",
        "CleanUpFailed",
        f"{LEFT}. The clean-up was given up: its namespace is being deleted, and with it the Job that was at it",
    )


def test_a_clean_up_that_was_complete_before_its_namespace_went_is_told(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(succeeded(removed_objects=2, removed_bytes=10), complete)
    deletion.cluster.namespace_goes = True

    assert deletion.step().plan.final_event == EventDraft("Normal", "CleanedUp", "removed 2 objects (10 bytes)")


def test_an_object_in_a_namespace_that_is_deleted_does_not_wait_for_its_stages() -> None:
    """The operator's Role goes with the namespace: it may not even be allowed to delete their Jobs."""
    deletion = Deletion(with_delete())
    deletion.reconcile()
    (running,) = deletion.cluster.live_jobs()
    deletion.cluster.namespace_goes = True
    deletion.delete()

    assert deletion.step().plan.actions == ()
    assert deletion.cluster.gone
    assert deletion.cluster.live_jobs() == [running]


def test_a_profile_that_is_gone_lets_the_object_go_at_once_and_the_status_tells_where_the_artifacts_are(
    deletion: Deletion,
) -> None:
    deletion.profiles.clear()
    deletion.delete()

    assert deletion.step().plan.final_event == EventDraft(
        "Warning",
        "CleanUpSkipped",
        f"{LEFT}. Nothing was removed: spec.profile: there is no profile 'default'",
    )
    assert deletion.cluster.gone


def test_an_invalid_spec_lets_the_object_go_at_once() -> None:
    deletion = Deletion(with_delete())
    deletion.reconcile()
    deletion.change(deletion.builder.edited("lora.rank", 0))
    deletion.delete()

    final_event = deletion.step().plan.final_event

    assert final_event is not None
    assert final_event.reason == "CleanUpSkipped"
    assert final_event.message.startswith(
        "as far as the status tells, no artifacts were made. Nothing was removed: the spec is invalid: spec.lora.rank: "
    )


def test_what_stays_where_is_not_cut_from_a_long_event(deletion: Deletion) -> None:
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
