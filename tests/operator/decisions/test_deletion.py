"""An object that is deleted with its artifacts, from the finalizer to the last Event. Passes are real `run_once`."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from edgetune_contract.clean_up import CleanUpRequest
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import ProfileStore
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.api.status.object_status import LoraFineTuneStatus, Phase
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.deletion import CLEAN_UP_SECONDS, CreateCleanUp
from edgetune_operator.decisions.manifests.job_manifests import render_clean_up
from edgetune_operator.decisions.plans import DeleteJob
from edgetune_operator.decisions.reporting.events import EventDraft, transitions
from edgetune_operator.reconcile import StaleRead
from support.builders import lora_fine_tune
from support.deletion import JOB, LEFT, STORE, Deletion, complete, published_with_delete, succeeded, with_delete
from support.golden import clean_up_request
from support.scenario import PROFILE, Scenario


@pytest.fixture
def deletion() -> Deletion:
    """A published object that will be deleted."""
    return published_with_delete()


def test_an_object_with_policy_retain_gets_no_finalizer() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.finish_all()

    assert scenario.cluster.finalizer_writes == 0
    assert parse_spec(lora_fine_tune().build()["spec"]).deletion_policy == "Retain"


def test_the_finalizer_is_written_once_before_the_first_job() -> None:
    scenario = Scenario(with_delete())
    scenario.finish_all()

    assert scenario.cluster.document["metadata"]["finalizers"] == ["edgetune.dev/artifacts"]
    assert scenario.cluster.finalizer_writes == 1


def test_a_failed_finalizer_write_ends_the_pass_before_any_action(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = Scenario(with_delete())

    async def changed(*_: Any) -> None:
        raise StaleRead("has changed since it was read")

    monkeypatch.setattr(scenario.cluster, "write_finalizers", changed)
    with pytest.raises(StaleRead):
        scenario.reconcile()

    assert scenario.cluster.jobs == {}
    assert scenario.cluster.status_writes == 0


def test_changing_the_policy_removes_and_adds_the_finalizer_and_reruns_nothing() -> None:
    scenario = Scenario(with_delete())
    scenario.finish_all()
    jobs = len(scenario.cluster.created)

    scenario.change(scenario.builder.with_metadata(finalizers=["other/finalizer", names.FINALIZER]))
    scenario.change(scenario.builder.edited("deletionPolicy", "Retain"))
    scenario.reconcile()
    assert scenario.cluster.document["metadata"]["finalizers"] == ["other/finalizer"]

    scenario.change(scenario.builder.edited("deletionPolicy", "Delete"))
    scenario.reconcile()
    assert scenario.cluster.document["metadata"]["finalizers"] == ["other/finalizer", names.FINALIZER]
    assert len(scenario.cluster.created) == jobs
    assert scenario.status.phase is Phase.SUCCEEDED


def test_an_object_with_an_invalid_spec_keeps_its_finalizer() -> None:
    scenario = Scenario(with_delete())
    scenario.reconcile()
    scenario.change(scenario.builder.edited("lora.rank", 0))

    scenario.reconcile()

    assert scenario.cluster.document["metadata"]["finalizers"] == [names.FINALIZER]


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_an_object_that_others_finalizers_hold_stops_its_stages_and_says_so(policy: str) -> None:
    scenario = Deletion(lora_fine_tune().with_spec("deletionPolicy", policy))
    scenario.advance_to(Stage.TRAIN)
    train = scenario.live_job
    scenario.change(scenario.builder.with_metadata(finalizers=["backup.example.com/copy"]))
    scenario.delete()

    first, counted, last = scenario.step(), scenario.step(), scenario.step()

    assert [action.name for action in first.plan.actions if isinstance(action, DeleteJob)] == [train]
    assert (counted.plan.actions, counted.wrote_status) == ((), True)
    assert scenario.status.gpu is not None
    assert scenario.status.gpu.total.seconds > 0
    assert (last.plan.actions, last.wrote_status) == ((), False)
    message = "deleted; the object is gone when its finalizers are removed: backup.example.com/copy"
    assert scenario.status.phase is Phase.DELETING
    assert scenario.condition("Ready") == ("False", "Deleted", message)
    assert scenario.condition("CleanedUp") is None
    assert scenario.status.progress is None


def test_an_object_that_is_deleted_without_its_jobs_leaves_them() -> None:
    scenario = Deletion(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    scenario.change(scenario.builder.with_metadata(finalizers=["orphan"]))
    scenario.delete()

    assert scenario.step().plan.actions == ()


def test_a_finished_job_that_somebody_made_under_the_clean_up_s_name_is_replaced(deletion: Deletion) -> None:
    deletion.delete()
    owner = deletion.cluster.document["metadata"]
    stranger = render_clean_up(owner, PROFILE, clean_up_request(PROFILE))
    asyncio.run(deletion.cluster.create_job(stranger))
    deletion.end_clean_up(succeeded(removed_objects=1), complete)

    found, created = deletion.step(), deletion.step()

    assert [action for action in found.plan.actions if isinstance(action, DeleteJob)] != []
    assert deletion.finalizers == [names.FINALIZER]
    assert [type(action) for action in created.plan.actions] == [CreateCleanUp]
    deletion.end_clean_up(succeeded(removed_objects=7), complete)
    assert deletion.step().plan.message == "removed 7 objects (0 bytes)"


@pytest.mark.parametrize("native", [False, True])
def test_a_clean_up_whose_pod_lives_on_is_done_and_its_job_goes(deletion: Deletion, native: bool) -> None:
    deletion.delete()
    deletion.step()
    ending = succeeded(removed_objects=7)
    deletion.end_clean_up(lambda pod: ending(pod).outlived_by("istio-proxy", native=native), lambda job: job)

    done = deletion.step()

    assert done.plan.message == "removed 7 objects (0 bytes)"
    assert [action.name for action in done.plan.actions if isinstance(action, DeleteJob)] == [JOB]


def test_a_clean_up_whose_job_fails_by_another_container_is_done(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    ending = succeeded(removed_objects=7)
    deletion.end_clean_up(lambda pod: ending(pod).failed_by_kubelet(""), lambda job: job.failed("BackoffLimitExceeded"))

    done = deletion.step()

    assert done.plan.final_event == EventDraft("Normal", "CleanedUp", "removed 7 objects (0 bytes)")


def test_a_clean_up_whose_job_is_being_deleted_after_its_end_is_not_run_again(deletion: Deletion) -> None:
    """The pass that deleted the Job may have failed to remove the finalizer."""
    deletion.delete()
    deletion.step()
    ending = succeeded(removed_objects=7)
    deletion.end_clean_up(lambda pod: ending(pod).outlived_by("istio-proxy"), lambda job: job)
    for held in (deletion.cluster.jobs[JOB], deletion.cluster.pods[deletion.cluster.pods_of(JOB)[-1]]):
        held["metadata"]["deletionTimestamp"] = deletion.cluster.timestamp()

    done = deletion.step()

    assert done.plan.final_event == EventDraft("Normal", "CleanedUp", "removed 7 objects (0 bytes)")
    assert done.plan.actions == ()


def test_a_clean_up_that_fails_while_its_pod_lives_on_is_tried_again(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(lambda pod: pod.ended(14).outlived_by("istio-proxy"), lambda job: job)
    deletion.let_pass(timedelta(seconds=30))

    replaced, again = deletion.step(), deletion.step()

    assert [action.name for action in replaced.plan.actions if isinstance(action, DeleteJob)] == [JOB]
    assert replaced.plan.message.endswith("an attempt failed and its Pod is still running container istio-proxy")
    assert [type(action) for action in again.plan.actions] == [CreateCleanUp]


def test_the_last_event_of_a_cleaned_up_object_has_the_figures(deletion: Deletion) -> None:
    deletion.delete()

    first = deletion.step()
    job = deletion.cluster.jobs[JOB]
    assert (first.plan.reason, first.plan.message) == ("CleaningUp", f"Job {JOB} is removing the artifacts")
    assert "ownerReferences" not in job["metadata"]
    assert job["spec"]["activeDeadlineSeconds"] == CLEAN_UP_SECONDS
    environment = {each["name"]: each["value"] for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    request = CleanUpRequest.decode(environment["EDGETUNE_REQUEST"])
    assert (request.name, request.store.uri) == ("sensor-faults", STORE)
    assert deletion.step().plan.final_event is None

    deletion.end_clean_up(succeeded(removed_objects=1234, removed_bytes=56789, shared_stages=2), complete)
    last = deletion.step()

    assert last.plan.final_event == EventDraft(
        "Normal",
        "CleanedUp",
        "removed 1,234 objects (56,789 bytes); kept the output of 2 stages, which other objects use",
    )
    assert deletion.cluster.gone
    assert len([job for job in deletion.cluster.created if job["metadata"]["name"] == JOB]) == 1


def test_a_clean_up_whose_pod_succeeded_is_not_deleted_before_its_job_ends_by_itself(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(succeeded(removed_objects=1), lambda job: job)

    assert deletion.step().plan.actions == ()
    assert deletion.cluster.gone


def test_a_complete_clean_up_with_a_lost_result_succeeds(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(lambda pod: pod.ended(0, ""), complete)

    assert deletion.step().plan.final_event == EventDraft("Normal", "CleanedUp", "removed the artifacts")


def test_the_result_of_a_clean_up_is_awaited_if_its_jobs_end_is_observed_first(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    at = deletion.cluster.timestamp()
    deletion.end_clean_up(lambda pod: pod, lambda job: job.complete(at))
    waiting = deletion.step().plan
    deletion.end_clean_up(succeeded(removed_objects=5, removed_bytes=100), lambda job: job.complete(at))
    final_event = deletion.step().plan.final_event

    assert (waiting.final_event, waiting.message) == (None, f"Job {JOB} has ended; waiting for the result of its Pod")
    assert final_event == EventDraft("Normal", "CleanedUp", "removed 5 objects (100 bytes)")


def test_the_result_of_a_missing_clean_up_pod_is_awaited_for_a_limited_time(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    at = deletion.cluster.timestamp()
    deletion.end_clean_up(lambda pod: pod, lambda job: job.complete(at))
    deletion.cluster.now += timedelta(seconds=20)

    assert deletion.step().plan.final_event == EventDraft("Normal", "CleanedUp", "removed the artifacts")


def test_artifacts_left_in_the_profiles_previous_store_are_reported(deletion: Deletion) -> None:
    deletion.profiles = {"default": PROFILE.model_copy(update={"store": ProfileStore(uri="s3://artifacts-2026/e")})}
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(succeeded(removed_objects=0, removed_bytes=0), complete)

    assert deletion.step().plan.final_event == EventDraft(
        "Warning",
        "CleanUpFailed",
        f"{STORE}/models/sensor-faults/ and the stage outputs marked in {STORE}/uses/*/*/sensor-faults are left: the "
        "profile's store is now s3://artifacts-2026/e/team-a. In that store: removed 0 objects (0 bytes)",
    )
    assert deletion.cluster.gone


def test_other_finalizers_are_kept(deletion: Deletion) -> None:
    deletion.change(deletion.builder.with_metadata(finalizers=[names.FINALIZER, "foregroundDeletion"]))
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(succeeded(), complete)
    deletion.step()

    assert deletion.finalizers == ["foregroundDeletion"]
    assert not deletion.cluster.gone


def test_the_status_is_deleting_and_keeps_what_the_runs_recorded(deletion: Deletion) -> None:
    before = deletion.status
    deletion.delete()
    deletion.step()

    after = deletion.status
    message = f"Job {JOB} is removing the artifacts"
    assert after.phase is Phase.DELETING
    assert after.observed_generation == before.observed_generation + 1
    assert deletion.condition("Ready") == ("False", "CleaningUp", message)
    assert deletion.condition("Reconciling") == ("True", "CleaningUp", message)
    assert deletion.condition("CleanedUp") == ("False", "CleaningUp", message)
    assert deletion.condition("Stalled") is None
    assert deletion.condition("Trained") == ("True", "Succeeded", "")
    assert (after.scores, after.artifacts, after.history) == (before.scores, before.artifacts, before.history)
    assert list(transitions(before, after)) == [EventDraft("Normal", "CleaningUp", message)]


def test_a_pass_without_changes_writes_nothing(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    writes = deletion.cluster.status_writes

    assert not deletion.step().wrote_status
    assert deletion.cluster.status_writes == writes


def test_the_clean_up_starts_only_after_the_running_stages_are_gone() -> None:
    deletion = Deletion(with_delete())
    deletion.advance_to(Stage.TRAIN)
    train = deletion.live_job
    deletion.cluster.deletes_slowly = True
    deletion.delete()

    first = deletion.step()
    assert first.plan.message.startswith("waiting until the stages' Jobs are gone: ")
    assert train in first.plan.message
    assert deletion.cluster.jobs[train]["metadata"]["deletionTimestamp"]
    assert deletion.row(Stage.TRAIN).state is StageState.PENDING
    deletion.step()
    assert JOB not in deletion.cluster.jobs

    for name in list(deletion.cluster.jobs):
        deletion.cluster.remove_job(name)
    deletion.step()
    assert JOB in deletion.cluster.jobs


def test_the_clean_up_waits_for_a_pod_that_outlives_its_job(deletion: Deletion) -> None:
    deletion.cluster.pods_ended = False
    deletion.delete()

    assert deletion.step().plan.message == "waiting until the stages' Pods have ended"
    assert JOB not in deletion.cluster.jobs

    deletion.cluster.pods_ended = True
    deletion.step()
    assert JOB in deletion.cluster.jobs


def test_setting_retain_during_the_deletion_stops_the_clean_up_and_releases_the_object(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.change(deletion.builder.with_spec("deletionPolicy", "Retain"))

    assert deletion.step().plan.final_event == EventDraft(
        "Normal", "ArtifactsRetained", f"{LEFT}. spec.deletionPolicy is now Retain"
    )
    assert JOB not in deletion.cluster.jobs
    assert deletion.cluster.gone


def test_a_deleted_clean_up_job_is_created_again(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.cluster.remove_job(JOB)

    deletion.step()

    assert JOB in deletion.cluster.jobs


def test_the_deletion_continues_despite_a_status_that_another_version_wrote(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.cluster.document["status"] = {"phase": "SomethingNew"}
    deletion.step()  # deletes the Job, which is no longer known to be the object's
    deletion.step()

    deletion.end_clean_up(succeeded(), complete)
    assert deletion.step().plan.final_event is not None


def test_a_status_with_the_phase_deleting_is_valid(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()

    assert LoraFineTuneStatus.model_validate(deletion.cluster.document["status"]).phase is Phase.DELETING
