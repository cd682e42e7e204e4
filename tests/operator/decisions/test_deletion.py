"""An object that is deleted with its artifacts, from the finalizer to its end. Passes are the real `run_once`."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from edgetune_contract.clean_up import CleanUpRequest
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.objects import LoraFineTuneStatus, Phase, StageState
from edgetune_operator.api.profiles import ProfileStore
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.decisions.deletion import CLEAN_UP_SECONDS
from edgetune_operator.decisions.events import EventDraft, transitions
from edgetune_operator.reconcile import Conflict, run_once
from support.builders import lora_fine_tune
from support.deletion import JOB, LEFT, STORE, Deletion, complete, published_with_delete, succeeded, with_delete
from support.scenario import PROFILE, Scenario


@pytest.fixture
def deletion() -> Deletion:
    """A published object that is going to be deleted."""
    return published_with_delete()


def test_an_object_that_retains_gets_no_finalizer() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.finish_all()

    assert scenario.cluster.finalizer_writes == 0
    assert parse_spec(lora_fine_tune().build()["spec"]).deletion_policy == "Retain"


def test_the_finalizer_is_there_before_the_first_job_and_is_written_once() -> None:
    scenario = Scenario(with_delete())
    scenario.finish_all()

    assert scenario.cluster.document["metadata"]["finalizers"] == ["edgetune.dev/artifacts"]
    assert scenario.cluster.finalizer_writes == 1


def test_a_finalizer_that_cannot_be_written_leaves_everything_for_the_next_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = Scenario(with_delete())

    async def changed(*_: Any) -> None:
        raise Conflict("changed meanwhile")

    monkeypatch.setattr(scenario.cluster, "write_finalizers", changed)
    with pytest.raises(Conflict):
        scenario.reconcile()

    assert scenario.cluster.jobs == {}
    assert scenario.cluster.status_writes == 0


def test_changing_the_policy_takes_the_finalizer_and_puts_it_and_runs_nothing_again() -> None:
    scenario = Scenario(with_delete())
    scenario.finish_all()
    made = len(scenario.cluster.created)

    scenario.change(scenario.builder.with_metadata(finalizers=["other/finalizer", names.FINALIZER]))
    scenario.change(scenario.builder.edited("deletionPolicy", "Retain"))
    scenario.reconcile()
    assert scenario.cluster.document["metadata"]["finalizers"] == ["other/finalizer"]

    scenario.change(scenario.builder.edited("deletionPolicy", "Delete"))
    scenario.reconcile()
    assert scenario.cluster.document["metadata"]["finalizers"] == ["other/finalizer", names.FINALIZER]
    assert len(scenario.cluster.created) == made
    assert scenario.status.phase is Phase.SUCCEEDED


def test_a_spec_that_cannot_be_read_keeps_its_finalizer() -> None:
    scenario = Scenario(with_delete())
    scenario.reconcile()
    scenario.change(scenario.builder.edited("lora.rank", 0))

    scenario.reconcile()

    assert scenario.cluster.document["metadata"]["finalizers"] == [names.FINALIZER]


def test_a_deleted_object_without_our_finalizer_is_left_alone(deletion: Deletion) -> None:
    deletion.delete()
    deletion.change(deletion.builder.with_metadata(finalizers=["foregroundDeletion"]))

    done = asyncio.run(
        run_once(deletion.cluster, Key("team-a", "sensor-faults"), deletion.profiles, deletion.cluster.now)
    )

    assert done is None
    assert JOB not in deletion.cluster.jobs


def test_the_clean_up_runs_and_then_the_object_goes_with_the_figures_in_its_last_event(deletion: Deletion) -> None:
    deletion.delete()

    first = deletion.step()
    job = deletion.cluster.jobs[JOB]
    assert (first.plan.reason, first.plan.message) == ("CleaningUp", f"Job {JOB} removes the artifacts")
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
        "removed 1,234 objects (56,789 bytes); what 2 stages made stays, since other objects use it",
    )
    assert deletion.cluster.gone
    assert len([made for made in deletion.cluster.created if made["metadata"]["name"] == JOB]) == 1


def test_a_lost_result_of_a_complete_clean_up_is_success_as_well(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(lambda pod: pod.ended(0, ""), complete)

    assert deletion.step().plan.final_event == EventDraft("Normal", "CleanedUp", "the artifacts are removed")


def test_the_words_of_a_clean_up_are_waited_for_when_its_job_is_seen_to_end_first(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    at = deletion.cluster.timestamp()
    deletion.end_clean_up(lambda pod: pod, lambda job: job.complete(at))
    waiting = deletion.step().plan
    deletion.end_clean_up(succeeded(removed_objects=5, removed_bytes=100), lambda job: job.complete(at))
    final_event = deletion.step().plan.final_event

    assert (waiting.final_event, waiting.message) == (None, f"Job {JOB} has ended; waits for what its Pod says")
    assert final_event == EventDraft("Normal", "CleanedUp", "removed 5 objects (100 bytes)")


def test_a_clean_up_whose_pod_is_gone_is_not_waited_for_longer_than_its_words_may_take(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    at = deletion.cluster.timestamp()
    deletion.end_clean_up(lambda pod: pod, lambda job: job.complete(at))
    deletion.cluster.now += timedelta(seconds=20)

    assert deletion.step().plan.final_event == EventDraft("Normal", "CleanedUp", "the artifacts are removed")


def test_what_was_made_in_a_store_that_the_profile_had_before_is_said_to_stay(deletion: Deletion) -> None:
    deletion.profiles = {"default": PROFILE.model_copy(update={"store": ProfileStore(uri="s3://artifacts-2026/e")})}
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(succeeded(removed_objects=0, removed_bytes=0), complete)

    assert deletion.step().plan.final_event == EventDraft(
        "Warning",
        "CleanUpFailed",
        f"{STORE}/models/sensor-faults/ and what {STORE}/uses/*/*/sensor-faults names stay: the profile's store is "
        "s3://artifacts-2026/e/team-a by now. There: removed 0 objects (0 bytes)",
    )
    assert deletion.cluster.gone


def test_other_finalizers_stay(deletion: Deletion) -> None:
    deletion.change(deletion.builder.with_metadata(finalizers=[names.FINALIZER, "foregroundDeletion"]))
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(succeeded(), complete)
    deletion.step()

    assert deletion.finalizers == ["foregroundDeletion"]
    assert not deletion.cluster.gone


def test_the_status_says_deleting_and_keeps_what_the_runs_have_recorded(deletion: Deletion) -> None:
    before = deletion.status
    deletion.delete()
    deletion.step()

    after = deletion.status
    message = f"Job {JOB} removes the artifacts"
    assert after.phase is Phase.DELETING
    assert after.observed_generation == before.observed_generation + 1
    assert deletion.condition("Ready") == ("False", "CleaningUp", message)
    assert deletion.condition("Reconciling") == ("True", "CleaningUp", message)
    assert deletion.condition("CleanedUp") == ("False", "CleaningUp", message)
    assert deletion.condition("Stalled") is None
    assert deletion.condition("Trained") == ("True", "Succeeded", "")
    assert (after.scores, after.artifacts, after.history) == (before.scores, before.artifacts, before.history)
    assert list(transitions(before, after)) == [EventDraft("Normal", "CleaningUp", message)]


def test_a_pass_without_news_writes_nothing(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    writes = deletion.cluster.status_writes

    assert not deletion.step().wrote_status
    assert deletion.cluster.status_writes == writes


def test_running_stages_are_stopped_and_gone_before_the_clean_up_begins() -> None:
    deletion = Deletion(with_delete())
    deletion.advance_to(Stage.TRAIN)
    train = deletion.live_job
    deletion.cluster.deletes_slowly = True
    deletion.delete()

    first = deletion.step()
    assert first.plan.message.startswith("waits until the stages' Jobs are gone: ")
    assert train in first.plan.message
    assert deletion.cluster.jobs[train]["metadata"]["deletionTimestamp"]
    assert deletion.row(Stage.TRAIN).state is StageState.PENDING
    deletion.step()
    assert JOB not in deletion.cluster.jobs

    for name in list(deletion.cluster.jobs):
        deletion.cluster.remove_job(name)
    deletion.step()
    assert JOB in deletion.cluster.jobs


def test_a_pod_that_outlives_its_job_is_waited_for(deletion: Deletion) -> None:
    deletion.cluster.pods_ended = False
    deletion.delete()

    assert deletion.step().plan.message == "waits until the stages' Pods have ended"
    assert JOB not in deletion.cluster.jobs

    deletion.cluster.pods_ended = True
    deletion.step()
    assert JOB in deletion.cluster.jobs


def test_retain_during_the_deletion_stops_the_clean_up_and_lets_the_object_go(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.change(deletion.builder.with_spec("deletionPolicy", "Retain"))

    assert deletion.step().plan.final_event == EventDraft(
        "Normal", "ArtifactsRetained", f"{LEFT}. spec.deletionPolicy is Retain by now"
    )
    assert JOB not in deletion.cluster.jobs
    assert deletion.cluster.gone


def test_a_clean_up_job_that_somebody_deletes_is_created_again(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.cluster.remove_job(JOB)

    deletion.step()

    assert JOB in deletion.cluster.jobs


def test_the_deletion_goes_on_after_a_status_that_another_version_wrote(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.cluster.document["status"] = {"phase": "SomethingNew"}
    deletion.step()

    deletion.end_clean_up(succeeded(), complete)
    assert deletion.step().plan.final_event is not None


def test_a_status_with_the_phase_deleting_reads_back(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()

    assert LoraFineTuneStatus.model_validate(deletion.cluster.document["status"]).phase is Phase.DELETING
