"""An object that is deleted with its artifacts, from the finalizer to its end. Passes are the real `run_once`."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from edgetune_contract.clean_up import CleanUpRequest, CleanUpResult
from edgetune_contract.request import Failure
from edgetune_contract.stages import Stage
from edgetune_operator import names
from edgetune_operator.api import LoraFineTuneStatus, Phase, StageState
from edgetune_operator.deletion import CLEAN_UP_SECONDS
from edgetune_operator.events import EventDraft, transitions
from edgetune_operator.profiles import ProfileStore
from edgetune_operator.reconcile import Conflict, DeletionPass, JobRefused, Key, run_once
from edgetune_operator.spec_check import parse_spec
from support.builders import UID, JobBuilder, ObjectBuilder, PodBuilder, lora_fine_tune
from support.scenario import PROFILE, TICK, Scenario

JOB = f"sensor-faults-clean-up-{UID.replace('-', '')[:10]}"
STORE = "s3://artifacts/edgetune/team-a"
LEFT = (
    f"{STORE}/models/sensor-faults/ and what {STORE}/uses/*/*/sensor-faults names stay; "
    "the next object of this name that is deleted with Delete removes them"
)
MAX_EVENT_MESSAGE = 1024  # as the API server has it
LIMIT = timedelta(seconds=PROFILE.termination_grace_period_seconds + CLEAN_UP_SECONDS + 60)


class Deletion(Scenario):
    """A scenario whose object is deleted at some time."""

    def delete(self) -> None:
        """A person deletes the object."""
        self.cluster.document["metadata"]["deletionTimestamp"] = self.cluster.timestamp()
        self.cluster.document["metadata"]["generation"] += 1

    def step(self) -> DeletionPass:
        """One pass over the deleted object."""
        self.cluster.now += TICK
        done = asyncio.run(run_once(self.cluster, Key("team-a", "sensor-faults"), self.profiles, self.cluster.now))
        assert isinstance(done, DeletionPass), done
        return done

    @property
    def finalizers(self) -> list[str]:
        found: list[str] = self.cluster.document["metadata"].get("finalizers", [])
        return found

    def end_clean_up(self, pod: Callable[[PodBuilder], PodBuilder], job: Callable[[JobBuilder], JobBuilder]) -> None:
        """The clean-up's Pod and Job end in some way."""
        name = self.cluster.pods_of(JOB)[-1]
        self.cluster.pods[name] = pod(PodBuilder(JOB, name, now=self.cluster.timestamp())).build()
        self.cluster.jobs[JOB]["status"] = job(JobBuilder(Stage.PUBLISH, "", name=JOB)).status


def with_delete() -> ObjectBuilder:
    return lora_fine_tune().with_spec("deletionPolicy", "Delete")


@pytest.fixture
def deletion() -> Deletion:
    """A published object with deletionPolicy Delete whose Jobs have gone by their time to live."""
    scenario = Deletion(with_delete())
    scenario.finish_all()
    scenario.cluster.remove_ended_jobs()
    return scenario


def succeeded(**figures: int) -> Callable[[PodBuilder], PodBuilder]:
    return lambda pod: pod.ended(0, CleanUpResult(**figures).encode().decode())


def complete(job: JobBuilder) -> JobBuilder:
    return job.complete()


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
    assert deletion.step().plan.farewell is None

    deletion.end_clean_up(succeeded(removed_objects=1234, removed_bytes=56789, shared_stages=2), complete)
    last = deletion.step()

    assert last.plan.farewell == EventDraft(
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

    assert deletion.step().plan.farewell == EventDraft("Normal", "CleanedUp", "the artifacts are removed")


def test_what_was_made_in_a_store_that_the_profile_had_before_is_said_to_stay(deletion: Deletion) -> None:
    deletion.profiles = {"default": PROFILE.model_copy(update={"store": ProfileStore(uri="s3://artifacts-2026/e")})}
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(succeeded(removed_objects=0, removed_bytes=0), complete)

    assert deletion.step().plan.farewell == EventDraft(
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


def test_a_clean_up_that_fails_lets_the_object_go_with_a_warning_of_what_stays_where(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    failure = Failure.brief(14, "TransientFault", f"the store cannot be reached for {STORE}/uses/")
    deletion.end_clean_up(
        lambda pod: pod.ended(14, CleanUpResult(failure=failure).encode().decode()),
        lambda job: job.failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"),
    )

    why = f"TransientFault: the store cannot be reached for {STORE}/uses/"
    assert deletion.step().plan.farewell == EventDraft(
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
    farewell = deletion.step().plan.farewell

    assert farewell is not None
    assert farewell.message == (
        f"{LEFT}. The clean-up was given up: Job was active longer than specified deadline; "
        "its Pod waits: ImagePullBackOff: no such image"
    )


def test_a_clean_up_that_takes_too_long_is_stopped_and_the_object_goes(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    began = deletion.cluster.now
    deletion.cluster.now = began + LIMIT - TICK
    assert deletion.step().plan.farewell is None

    farewell = deletion.step().plan.farewell

    assert farewell is not None
    assert (farewell.type, farewell.reason) == ("Warning", "CleanUpFailed")
    assert farewell.message == (
        f"{LEFT}. The clean-up was given up: not done after 780 s: Job {JOB} removes the artifacts"
    )
    assert JOB not in deletion.cluster.jobs
    assert deletion.cluster.gone


def test_the_time_counts_from_when_the_operator_began_not_from_a_deletion_while_it_was_down(deletion: Deletion) -> None:
    deletion.delete()
    deletion.cluster.now += timedelta(days=3)

    assert deletion.step().plan.farewell is None
    assert JOB in deletion.cluster.jobs


def test_stages_that_never_end_are_bounded_as_well() -> None:
    deletion = Deletion(with_delete())
    deletion.advance_to(Stage.TRAIN)
    deletion.cluster.deletes_slowly = True
    deletion.delete()
    deletion.step()
    deletion.cluster.now += LIMIT

    farewell = deletion.step().plan.farewell

    assert farewell is not None
    assert "not done after 780 s: waits until the stages' Jobs are gone: " in farewell.message


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
    farewell = deletion.step().plan.farewell

    assert farewell is not None
    assert farewell.message.endswith("not done after 780 s: the cluster refuses the Job: exceeded quota: none")
    assert deletion.cluster.gone


def test_an_object_in_a_namespace_that_is_deleted_goes_at_once(deletion: Deletion) -> None:
    deletion.cluster.namespace_goes = True
    deletion.delete()

    assert deletion.step().plan.farewell == EventDraft(
        "Warning",
        "CleanUpSkipped",
        f"{LEFT}. Nothing was removed: its namespace is being deleted, and takes no Job any more",
    )
    assert deletion.cluster.gone


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

    assert deletion.step().plan.farewell == EventDraft(
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

    farewell = deletion.step().plan.farewell

    assert farewell is not None
    assert farewell.reason == "CleanUpSkipped"
    assert farewell.message.startswith(
        "as far as the status tells, no artifacts were made. Nothing was removed: the spec is invalid: spec.lora.rank: "
    )


def test_retain_during_the_deletion_stops_the_clean_up_and_lets_the_object_go(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()
    deletion.change(deletion.builder.with_spec("deletionPolicy", "Retain"))

    assert deletion.step().plan.farewell == EventDraft(
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
    assert deletion.step().plan.farewell is not None


def test_what_stays_where_is_not_cut_from_a_long_event(deletion: Deletion) -> None:
    failure = Failure.brief(1, "InternalError", "x" * 5000)
    deletion.delete()
    deletion.step()
    deletion.end_clean_up(
        lambda pod: pod.ended(1, CleanUpResult(failure=failure).encode().decode()),
        lambda job: job.failed("BackoffLimitExceeded"),
    )

    farewell = deletion.step().plan.farewell

    assert farewell is not None
    assert len(farewell.message) > MAX_EVENT_MESSAGE
    assert LEFT in farewell.message[:MAX_EVENT_MESSAGE]


def test_a_status_with_the_phase_deleting_reads_back(deletion: Deletion) -> None:
    deletion.delete()
    deletion.step()

    assert LoraFineTuneStatus.model_validate(deletion.cluster.document["status"]).phase is Phase.DELETING
