"""Jobs that wait in a queue keep their place. Kueue is simulated."""

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import Image, ProfileStore
from edgetune_operator.api.profiles.queue import Queue
from edgetune_operator.api.status.object_status import Phase
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.reporting.events import transitions
from support.builders import lora_fine_tune
from support.queueing import QUEUED, admit, suspend
from support.scenario import PROFILE, Scenario, created, request_of
from support.workloads import INSUFFICIENT, TOO_SMALL, pending


@pytest.fixture
def scenario() -> Scenario:
    """An object whose training has a Job in a queue."""
    found = Scenario(lora_fine_tune(), QUEUED)
    found.advance_to(Stage.TRAIN)
    return found


def trainings(scenario: Scenario) -> int:
    """Number of Jobs of the training that were created."""
    return sum(request_of(job).stage is Stage.TRAIN for job in scenario.cluster.created)


def request_retry(scenario: Scenario) -> None:
    """A user requests a retry; prepare's next Job checks the inputs."""
    scenario.change(scenario.builder.with_retry_requested("again"))
    scenario.reconcile()
    assert created(scenario.reconcile()) == [Stage.PREPARE]


def test_a_retry_checks_the_inputs_while_the_training_keeps_its_place(scenario: Scenario) -> None:
    suspend(scenario, pending(INSUFFICIENT))
    scenario.reconcile()

    request_retry(scenario)
    state, phase, before = scenario.row(Stage.TRAIN).state, scenario.status.phase, scenario.status
    scenario.finish()
    scenario.reconcile()

    assert (state, phase) == (StageState.QUEUED, Phase.PREPARING)
    assert (scenario.row(Stage.TRAIN).state, scenario.status.phase) == (StageState.QUEUED, Phase.QUEUED)
    assert trainings(scenario) == 1
    assert scenario.status.last_handled_retry == "again"
    assert [each.reason for each in transitions(before, scenario.status)] == ["PrepareSucceeded"]


def test_a_training_may_run_and_end_while_a_retry_checks_its_inputs(scenario: Scenario) -> None:
    training = suspend(scenario, pending(INSUFFICIENT))
    scenario.reconcile()
    request_retry(scenario)
    prepare = scenario.live_job

    admit(scenario, training)
    scenario.reconcile()
    scenario.finish(name=training)
    scenario.reconcile()
    scenario.finish(name=prepare)
    scenario.reconcile()

    row = scenario.row(Stage.TRAIN)
    assert (row.state, row.gpu_seconds) == (StageState.SUCCEEDED, 10.0)
    assert trainings(scenario) == 1


def test_a_training_whose_data_has_changed_leaves_its_queue(scenario: Scenario) -> None:
    training = suspend(scenario, pending(INSUFFICIENT))
    scenario.reconcile()
    scenario.data = "second version of the data"

    request_retry(scenario)
    scenario.finish()
    scenario.reconcile()
    scenario.reconcile()

    assert training not in scenario.cluster.jobs
    assert trainings(scenario) == 2


def test_a_prepare_that_waits_in_a_queue_checks_the_inputs_for_a_retry_when_it_starts() -> None:
    queue = Queue(name="gpu", stages=(Stage.PREPARE,))
    scenario = Scenario(lora_fine_tune(), PROFILE.model_copy(update={"queue": queue}))
    scenario.reconcile()
    suspend(scenario, pending(INSUFFICIENT))

    scenario.change(scenario.builder.with_retry_requested("again"))
    scenario.reconcile()
    scenario.reconcile()

    assert len(scenario.cluster.created) == 1
    assert scenario.status.last_handled_retry == "again"


def test_a_training_that_waits_with_another_store_is_created_again(scenario: Scenario) -> None:
    training = suspend(scenario, pending(INSUFFICIENT))
    scenario.reconcile()

    elsewhere = QUEUED.model_copy(update={"store": ProfileStore(uri="s3://artifacts-2026/edgetune")})
    scenario.profiles = {"default": elsewhere}
    scenario.reconcile()

    assert training not in scenario.cluster.jobs


def test_a_pinned_version_is_published_while_the_training_keeps_its_place(scenario: Scenario) -> None:
    pinned = "0" * 64
    scenario.manifests[pinned] = scenario._new_result(Stage.PUBLISH, pinned)
    suspend(scenario, pending(INSUFFICIENT))
    scenario.reconcile()

    scenario.change(scenario.builder.edited("publish.pin", pinned))
    scenario.reconcile()
    scenario.finish()
    scenario.reconcile()

    assert trainings(scenario) == 1
    assert scenario.status.phase is Phase.QUEUED


def test_limits_priority_and_node_selection_change_in_the_waiting_job(scenario: Scenario) -> None:
    name = suspend(scenario, pending(INSUFFICIENT))
    scenario.change(scenario.builder.edited("retryLimit", 7).edited("priority", "high"))
    scenario.profiles = {"default": QUEUED.model_copy(update={"node_selector": {"gpu": "l4"}})}

    for _ in range(3):
        scenario.reconcile()

    job = scenario.cluster.jobs[name]
    assert scenario.cluster.changed == [name]
    assert job["spec"]["backoffLimit"] == 7
    assert job["metadata"]["labels"][names.PRIORITY_LABEL] == "high"
    assert job["spec"]["template"]["spec"]["nodeSelector"] == {"gpu": "l4"}
    assert scenario.row(Stage.TRAIN).message.endswith(INSUFFICIENT)


def test_what_cannot_change_in_a_waiting_job_leaves_it_its_place(scenario: Scenario) -> None:
    name = suspend(scenario, pending(INSUFFICIENT))
    uid = scenario.cluster.jobs[name]["metadata"]["uid"]
    image = Image(reference="ghcr.io/edgetune/jobs:0.2.0")
    scenario.profiles = {"default": QUEUED.model_copy(update={"image": image})}
    scenario.reconcile()
    scenario.reconcile()
    waiting = scenario.row(Stage.TRAIN).message
    admit(scenario)
    scenario.end_pod(lambda pod: pod.waiting("ContainerCreating"))
    scenario.reconcile()

    assert scenario.cluster.jobs[name]["metadata"]["uid"] == uid
    assert len([job for job in scenario.cluster.created if job["metadata"]["name"] == name]) == 1
    assert waiting.endswith("the profile has changed since: the Job keeps its place, and its settings")
    # It has lost its place anyway once it cannot start.
    scenario.end_pod(lambda pod: pod.waiting("ImagePullBackOff", "no such image"))
    scenario.reconcile()
    scenario.reconcile()
    (container,) = scenario.cluster.jobs[name]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == image.reference


def test_a_waiting_job_keeps_no_priority_in_the_queue_of_another_profile() -> None:
    scenario = Scenario(lora_fine_tune().edited("priority", "high"), QUEUED)
    scenario.advance_to(Stage.TRAIN)
    first = suspend(scenario, pending(INSUFFICIENT))
    scenario.reconcile()
    shared = PROFILE.model_copy(update={"queue": Queue(name="shared")})
    scenario.profiles = {"default": QUEUED, "shared": shared}
    spec = {**scenario.cluster.document["spec"], "profile": "shared"}
    del spec["priority"]
    scenario.cluster.document["spec"] = spec
    scenario.reconcile()
    scenario.reconcile()

    labels = scenario.cluster.jobs[scenario.live_job]["metadata"]["labels"]
    assert first == scenario.live_job
    assert labels[names.QUEUE_LABEL] == "shared"
    assert names.PRIORITY_LABEL not in labels


def test_a_refused_change_of_a_waiting_job_is_said_until_it_is_accepted(scenario: Scenario) -> None:
    name = suspend(scenario, pending(INSUFFICIENT))
    scenario.cluster.refusal = "the cluster refuses to change the waiting Job: no such node pool"
    scenario.profiles = {"default": QUEUED.model_copy(update={"node_selector": {"gpu": "l4"}})}

    look_again = scenario.reconcile().plan.look_again
    held_up, row, live = scenario.held_up, scenario.row(Stage.TRAIN), scenario.cluster.live_jobs()
    scenario.cluster.refusal = ""
    scenario.reconcile()
    scenario.reconcile()

    assert held_up == (
        "True",
        "JobRefused",
        f"train: waits in queue gpu since 2026-11-24T08:00:00Z: {INSUFFICIENT}; the cluster refuses to change the "
        "waiting Job: no such node pool; it keeps its place and its settings",
    )
    assert (row.state, row.job, live) == (StageState.QUEUED, name, [name])
    assert look_again is not None
    assert scenario.cluster.changed == [name]
    assert (scenario.condition("Stalled"), scenario.status.phase) == (None, Phase.QUEUED)


def test_a_refused_change_does_not_hide_that_a_queue_can_never_admit_the_job(scenario: Scenario) -> None:
    suspend(scenario, pending(TOO_SMALL))
    scenario.cluster.refusal = "no such node pool"
    scenario.profiles = {"default": QUEUED.model_copy(update={"node_selector": {"gpu": "l4"}})}

    scenario.reconcile()

    assert scenario.held_up is not None
    _, reason, message = scenario.held_up
    assert reason == "QueueTooSmall"
    assert scenario.status.phase is Phase.STALLED
    assert "can never admit this stage" in message
    assert message.endswith("; no such node pool; it keeps its place and its settings")
