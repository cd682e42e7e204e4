"""Jobs that wait in a queue: what is said, and what a change of spec or profile does to them. Kueue is simulated."""

from datetime import timedelta

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.profiles.queue import Queue
from edgetune_operator.api.profiles.resources import Resources
from edgetune_operator.api.status.object_status import Phase
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.reporting.events import transitions
from support.builders import lora_fine_tune
from support.queueing import QUEUED, admit, stop_by_queue, suspend
from support.scenario import PROFILE, Scenario
from support.workloads import INSUFFICIENT, pending


@pytest.fixture
def scenario() -> Scenario:
    """An object whose training has a Job in a queue."""
    found = Scenario(lora_fine_tune(), QUEUED)
    found.advance_to(Stage.TRAIN)
    return found


def test_only_stages_with_a_gpu_wait_in_the_queue_unless_the_profile_says_otherwise() -> None:
    gpu = Resources(requests={"nvidia.com/gpu": 1}, limits={"nvidia.com/gpu": 1})

    def queued(profile: Profile) -> set[Stage]:
        return {stage for stage in Stage if profile.queue_of(stage) is not None}

    assert queued(QUEUED) == {Stage.TRAIN}
    assert queued(QUEUED.model_copy(update={"resources": {Stage.EVALUATE: gpu}})) == {Stage.TRAIN, Stage.EVALUATE}
    chosen = Queue(name="gpu", stages=(Stage.MERGE,))
    assert queued(QUEUED.model_copy(update={"queue": chosen})) == {Stage.MERGE}
    assert queued(PROFILE) == set()


def test_a_waiting_stage_is_queued_and_starts_when_it_is_admitted(scenario: Scenario) -> None:
    created = scenario.row(Stage.TRAIN)
    suspend(scenario, pending(INSUFFICIENT))
    scenario.reconcile()
    waiting, phase, progress = scenario.row(Stage.TRAIN), scenario.status.phase, scenario.status.display
    admit(scenario)
    scenario.reconcile()

    assert (created.state, created.started_at) == (StageState.QUEUED, None)
    assert (waiting.state, waiting.started_at, phase) == (StageState.QUEUED, None, Phase.QUEUED)
    assert progress is not None
    assert progress.progress == "Queued"
    assert (scenario.row(Stage.TRAIN).state, scenario.status.phase) == (StageState.RUNNING, Phase.TRAINING)


def test_no_event_says_that_a_stage_has_started_before_its_container_runs() -> None:
    scenario = Scenario(lora_fine_tune(), QUEUED)
    scenario.reconcile()
    scenario.finish()
    before = scenario.status
    scenario.reconcile()
    created = list(transitions(before, scenario.status))
    suspend(scenario, pending(INSUFFICIENT))
    scenario.reconcile()
    waiting = scenario.status
    admit(scenario)
    scenario.end_pod(lambda pod: pod.waiting("ContainerCreating"))
    scenario.reconcile()
    admitted = scenario.status
    scenario.end_pod(lambda pod: pod.running())
    scenario.reconcile()
    started = list(transitions(admitted, scenario.status))

    job = scenario.live_job
    assert [(each.reason, each.message) for each in created] == [
        ("PrepareSucceeded", f"done in 0 s; created Job {job}; the Job is suspended until queue gpu admits it")
    ]
    assert list(transitions(waiting, admitted)) == []
    message = f"its queue has admitted Job {job}, and its container runs"
    assert [(each.reason, each.message) for each in started] == [("TrainStarted", message)]


def test_a_cause_that_somebody_must_remove_stalls_the_object(scenario: Scenario) -> None:
    suspend(scenario, pending("LocalQueue gpu doesn't exist", "Inadmissible"))

    scenario.reconcile()

    assert scenario.status.phase in (Phase.STALLED, Phase.QUEUED)
    stalled = scenario.held_up
    assert stalled is not None
    assert stalled[1] == "QueueNotFound"


def test_a_queue_on_hold_is_no_fault_and_says_who_holds_it(scenario: Scenario) -> None:
    suspend(scenario, pending("ClusterQueue all is inactive", "Inadmissible"))
    held = {"type": "Active", "status": "False", "reason": "Stopped", "message": "is stopped"}
    scenario.cluster.queue = {
        "isServed": True,
        "localQueue": {"spec": {"clusterQueue": "all"}},
        "clusterQueue": {"status": {"conditions": [held]}},
    }

    scenario.reconcile()

    message = "train: an administrator holds ClusterQueue all; waits in it since 2026-11-24T08:00:00Z"
    assert scenario.condition("Reconciling") == ("True", "QueueOnHold", message)
    assert scenario.status.phase is Phase.QUEUED


def test_a_missing_priority_class_is_named_once_kueue_has_had_time(scenario: Scenario) -> None:
    suspend(scenario)
    scenario.cluster.workloads.clear()
    scenario.cluster.queue = {"isServed": True, "localQueue": {}, "clusterQueue": None, "missingPriority": "urgent"}

    job = scenario.cluster.jobs[scenario.live_job]
    job["metadata"]["creationTimestamp"] = (scenario.cluster.now + timedelta(seconds=6)).isoformat()
    early = scenario.reconcile().plan.look_again
    waiting = scenario.condition("Reconciling")
    scenario.reconcile()

    assert early == timedelta(seconds=6)
    assert waiting == ("True", "Queued", "train: the Job is suspended until queue gpu admits it")
    stalled = scenario.held_up
    assert stalled is not None
    assert stalled[1:] == (
        "PriorityClassNotFound",
        "train: WorkloadPriorityClass urgent not found; create it, or correct spec.priority or queue.priorities in the "
        "profile",
    )


def test_a_priority_that_the_profile_does_not_offer_is_refused() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("priority", "urgent"), QUEUED)
    scenario.reconcile()
    refused = scenario.held_up
    scenario.profiles = {"default": PROFILE}
    scenario.reconcile()
    without_queue = scenario.held_up
    scenario.profiles = {"default": PROFILE.model_copy(update={"queue": Queue(name="gpu")})}
    scenario.reconcile()
    without_priorities = scenario.held_up

    assert refused == (
        "True",
        "InvalidSpec",
        "spec.priority: profile 'default' does not offer 'urgent'; use one of low, high",
    )
    assert without_queue is not None
    assert without_queue[2] == (
        "spec.priority: profile 'default' has no queue, and a priority is that of a queue; remove it"
    )
    assert without_priorities is not None
    assert without_priorities[2] == "spec.priority: profile 'default' has no priorities (queue.priorities); remove it"


def test_a_cluster_without_kueue_is_named_and_not_the_priority_class() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("priority", "high"), QUEUED)
    scenario.advance_to(Stage.TRAIN)
    suspend(scenario)
    scenario.cluster.workloads.clear()
    scenario.cluster.queue = {"isServed": False}
    scenario.let_pass(timedelta(seconds=10))
    scenario.reconcile()

    assert scenario.held_up == (
        "True",
        "KueueNotFound",
        "train: the Job is suspended until queue gpu admits it, and the API server does not serve "
        "kueue.x-k8s.io/v1beta2: install Kueue, or remove queue and requireQueue from the profile",
    )


@pytest.mark.parametrize("started", [True, False], ids=["it ran", "its container had not started"])
def test_a_preempted_attempt_is_no_failed_one(scenario: Scenario, started: bool) -> None:
    scenario.reconcile()

    stop_by_queue(scenario, started)
    scenario.reconcile()
    row = scenario.row(Stage.TRAIN)

    assert (row.state, row.preemptions, row.reason) == (StageState.QUEUED, 1, "Preempted")
    admit(scenario)
    scenario.cluster.jobs[scenario.live_job]["status"]["startTime"] = scenario.cluster.timestamp()
    scenario.reconcile()
    assert scenario.row(Stage.TRAIN).reason != "AttemptFailed"


def test_the_deadline_is_over_all_attempts(scenario: Scenario) -> None:
    scenario.reconcile()
    job = scenario.cluster.jobs[scenario.live_job]
    job["spec"]["activeDeadlineSeconds"] = 100
    scenario.let_pass(timedelta(seconds=60))
    stop_by_queue(scenario)
    scenario.reconcile()
    before = scenario.row(Stage.TRAIN)
    # Waiting does not count.
    scenario.let_pass(timedelta(hours=3))
    scenario.reconcile()
    waiting = scenario.row(Stage.TRAIN)
    admit(scenario)
    running = scenario.reconcile()
    look_again = running.plan.look_again
    scenario.let_pass(timedelta(seconds=60))
    scenario.reconcile()

    assert before.active_seconds is not None
    assert 60 <= before.active_seconds < 100
    assert waiting.state is StageState.QUEUED
    assert look_again is not None
    assert timedelta(0) < look_again <= timedelta(seconds=40)
    failed = scenario.row(Stage.TRAIN)
    assert (failed.state, failed.reason) == (StageState.FAILED, "DeadlineExceeded")
    assert scenario.cluster.live_jobs() == []


def test_the_gpu_time_is_over_all_attempts_and_ends_a_running_one(scenario: Scenario) -> None:
    scenario.change(scenario.builder.edited("maxGpuSeconds", 120))
    scenario.reconcile()
    scenario.let_pass(timedelta(seconds=60))
    stop_by_queue(scenario)
    scenario.reconcile()
    admit(scenario)
    scenario.reconcile()
    going = scenario.row(Stage.TRAIN).state
    scenario.let_pass(timedelta(seconds=60))
    scenario.reconcile()

    failed = scenario.row(Stage.TRAIN)
    assert going is StageState.RUNNING
    assert (failed.state, failed.reason) == (StageState.FAILED, "GpuSecondsExceeded")
    assert "spec.maxGpuSeconds is 120; raise it, and the training resumes from its newest checkpoint" in failed.message


def test_a_deadline_is_no_preemption(scenario: Scenario) -> None:
    scenario.reconcile()
    job = scenario.cluster.jobs[scenario.live_job]
    scenario.end_pod(lambda pod: pod.ended(ExitCode.INTERRUPTED))
    # The Job controller stops the Pods before the Job has failed.
    job["status"]["conditions"] = [{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]

    scenario.reconcile()

    row = scenario.row(Stage.TRAIN)
    assert (row.preemptions, row.reason) == (0, "DeadlineExceeded")
    assert row.message.endswith("its attempt is being stopped")
