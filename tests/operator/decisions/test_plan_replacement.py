"""Jobs that have not started follow the profile and the limits of the spec; running ones are kept."""

from typing import Any

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import Image, Profile, ProfileStore
from edgetune_operator.api.profiles.resources import Resources
from edgetune_operator.api.status.stage_status import StageState
from support.builders import PodBuilder, lora_fine_tune
from support.scenario import PROFILE, Scenario, created, deleted, run_again

FIXED = PROFILE.model_copy(update={"image": Image(reference="registry.example/jobs:fixed")})
REPLACED = "the profile or a limit of the spec changed while no attempt was running: the stage's Job is replaced"


@pytest.fixture
def scenario() -> Scenario:
    return Scenario(lora_fine_tune())


def change_profile(scenario: Scenario, profile: Profile = FIXED) -> None:
    """The platform team changes the profile; the operator restarts with it."""
    scenario.profiles = {"default": profile}


def blocked(pod: PodBuilder) -> PodBuilder:
    return pod.waiting("ImagePullBackOff", "Back-off pulling image")


def test_a_job_that_waits_for_its_image_is_replaced_with_the_fixed_image(scenario: Scenario) -> None:
    scenario.reconcile()
    scenario.end_pod(blocked)
    scenario.reconcile()
    before, job = scenario.status.phase, scenario.live_job

    change_profile(scenario)
    first = scenario.reconcile()
    row, ready = scenario.row(Stage.PREPARE), scenario.condition("Reconciling")
    second = scenario.reconcile()

    assert (before, [name for name, _ in deleted(first)], created(first)) == ("Preparing", [job], [])
    assert (row.state, row.reason, row.message) == (StageState.PENDING, "Replaced", REPLACED)
    assert ready == ("True", "Replaced", f"prepare: {REPLACED}")
    assert created(second) == [Stage.PREPARE]
    (container,) = scenario.cluster.jobs[scenario.live_job]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/jobs:fixed"
    assert scenario.row(Stage.PREPARE).reason == "JobRunning"
    assert scenario.reconcile().plan.actions == ()


@pytest.mark.parametrize(
    "ending",
    [
        lambda pod: pod.unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        lambda pod: pod.waiting("ContainerCreating"),
    ],
)
def test_a_job_whose_pod_is_pending_is_replaced(scenario: Scenario, ending: Any) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.end_pod(ending)

    change_profile(scenario, PROFILE.model_copy(update={"node_selector": {"gpu": "l4"}}))
    scenario.reconcile()

    assert created(scenario.reconcile()) == [Stage.TRAIN]


def test_a_queued_job_is_replaced(scenario: Scenario) -> None:
    scenario.reconcile()
    job = scenario.cluster.jobs[scenario.live_job]
    job["spec"]["suspend"], job["status"] = True, {}
    scenario.cluster.pods.clear()

    change_profile(scenario)
    scenario.reconcile()

    assert created(scenario.reconcile()) == [Stage.PREPARE]


def test_a_job_whose_pods_are_refused_is_replaced_with_an_edited_limit(scenario: Scenario) -> None:
    scenario.reconcile()
    scenario.cluster.pods.clear()
    scenario.cluster.jobs[scenario.live_job]["status"] = {}

    scenario.change(scenario.builder.edited("activeDeadlineSeconds", 90_000))
    scenario.reconcile()
    scenario.reconcile()

    assert scenario.cluster.jobs[scenario.live_job]["spec"]["activeDeadlineSeconds"] == 90_000


@pytest.mark.parametrize("field", ["retryLimit", "activeDeadlineSeconds"])
def test_a_running_stage_keeps_its_job(scenario: Scenario, field: str) -> None:
    scenario.advance_to(Stage.TRAIN)

    change_profile(scenario)
    scenario.change(scenario.builder.edited(field, 99))

    assert scenario.reconcile().plan.actions == ()
    assert scenario.reconcile().wrote_status is False


def test_a_job_with_an_active_pod_that_no_watch_has_shown_is_not_replaced(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.cluster.pods.clear()

    change_profile(scenario)

    assert scenario.reconcile().plan.actions == ()


def test_a_container_that_has_just_succeeded_is_not_run_again(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    result = scenario.simulated_result(scenario.request)
    scenario.end_pod(lambda pod: pod.succeeded(result))
    scenario.cluster.jobs[scenario.live_job]["status"]["active"] = 0

    change_profile(scenario)

    assert created(scenario.reconcile()) == [Stage.MERGE]


def test_between_two_attempts_the_job_is_replaced_with_the_fixed_profile(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    request = scenario.request
    scenario.end_pod(lambda pod: pod.failed(request.stage, request.digest, ExitCode.TRANSIENT, "no answer"))
    scenario.cluster.jobs[scenario.live_job]["status"]["active"] = 0

    change_profile(scenario)
    scenario.reconcile()

    assert created(scenario.reconcile()) == [Stage.TRAIN]


def test_a_change_of_another_stages_resources_replaces_nothing(scenario: Scenario) -> None:
    scenario.reconcile()
    scenario.end_pod(blocked)

    change_profile(scenario, PROFILE.model_copy(update={"resources": {Stage.TRAIN: Resources(requests={"cpu": 1})}}))

    assert scenario.reconcile().plan.actions == ()


def test_an_exceeded_deadline_is_reported_as_the_job_had_it(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.change(scenario.builder.edited("activeDeadlineSeconds", 172_800))
    scenario.reconcile()

    scenario.end_job(lambda job: job.failed("DeadlineExceeded", "Job was active longer than specified deadline"))
    scenario.reconcile()

    assert scenario.row(Stage.TRAIN).message == (
        "not done after 86400 seconds; raise spec.activeDeadlineSeconds or reduce the work"
    )


ELSEWHERE = PROFILE.model_copy(update={"store": ProfileStore(uri="s3://artifacts-2026/edgetune")})


def move_store(scenario: Scenario, *, copied: bool) -> None:
    """The platform team changes the bucket, with or without copying its content."""
    scenario.profiles = {"default": ELSEWHERE}
    scenario.store = "s3://artifacts-2026/edgetune"
    if not copied:
        scenario.manifests.clear()


@pytest.mark.parametrize(("copied", "ran"), [(False, list(Stage)), (True, [Stage.PREPARE, *list(Stage)[3:]])])
def test_after_a_change_of_store_every_stage_is_found_there_or_runs_again(
    scenario: Scenario, copied: bool, ran: list[Stage]
) -> None:
    scenario.advance_to(Stage.QUANTIZE)
    scenario.end_pod(blocked)

    move_store(scenario, copied=copied)
    scenario.reconcile()
    between = scenario.status

    assert (between.artifacts, between.store) == ((), "s3://artifacts-2026/edgetune/team-a")
    assert run_again(scenario) == ran
    assert scenario.status.phase == "Succeeded"
    new = {artifact.stage for artifact in scenario.status.artifacts if artifact.uri.startswith("s3://artifacts-2026/")}
    # A manifest has the URIs of its files when it was written.
    assert new == ({Stage.PREPARE, Stage.QUANTIZE} if copied else set(list(Stage)[:4]))
    assert scenario.reconcile().wrote_status is False


def test_a_bucket_with_the_same_name_at_another_endpoint_is_another_store(scenario: Scenario) -> None:
    scenario.advance_to(Stage.QUANTIZE)
    scenario.end_pod(blocked)
    store = PROFILE.store.model_copy(update={"endpoint": "https://minio.example"})

    scenario.profiles = {"default": PROFILE.model_copy(update={"store": store})}
    scenario.manifests.clear()
    scenario.reconcile()

    assert scenario.status.store == f"{PROFILE.store.uri}/team-a at https://minio.example"
    assert run_again(scenario) == list(Stage)


def test_a_job_without_a_settings_hash_is_not_replaced(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.end_pod(blocked)
    (job,) = scenario.cluster.live_jobs()
    del scenario.cluster.jobs[job]["metadata"]["annotations"][names.SETTINGS_ANNOTATION]

    scenario.profiles = {"default": FIXED}

    assert scenario.reconcile().plan.actions == ()


def test_a_stage_that_runs_with_the_old_store_is_not_stopped(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)

    move_store(scenario, copied=False)
    deferred = scenario.reconcile()
    condition = scenario.condition("Reconciling")
    scenario.finish()
    scenario.manifests.clear()
    scenario.reconcile()

    assert deferred.plan.actions == ()
    assert condition is not None
    assert condition[2] == (
        "train: running; the profile's store has changed: when this stage has ended, every stage is looked up there or "
        "run again"
    )
    assert run_again(scenario) == list(Stage)


def test_a_finished_object_is_not_affected_by_a_change_of_store_until_it_is_edited(scenario: Scenario) -> None:
    scenario.finish_all()

    move_store(scenario, copied=True)
    unchanged = scenario.reconcile()
    scenario.change(scenario.builder.edited("evaluation.maxExamples", 10))
    scenario.reconcile()

    assert (unchanged.plan.actions, unchanged.wrote_status) == ((), False)
    assert run_again(scenario) == [Stage.PREPARE, Stage.EVALUATE, Stage.PUBLISH]


def test_a_retry_of_a_finished_object_checks_the_new_store_once(scenario: Scenario) -> None:
    scenario.finish_all()

    move_store(scenario, copied=False)
    scenario.change(scenario.builder.with_retry_requested("move"))
    scenario.reconcile()

    assert run_again(scenario) == list(Stage)
    assert scenario.status.last_handled_retry == "move"
