"""Events of an object: each change once, as a sentence."""

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.status.object_status import Condition
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.causes.patience import PATIENCE
from edgetune_operator.decisions.reporting.events import transitions
from support.builders import lora_fine_tune
from support.scenario import PROFILE, Scenario


@pytest.fixture
def scenario() -> Scenario:
    """The smallest object, before its first pass."""
    return Scenario(lora_fine_tune())


def pass_events(scenario: Scenario) -> list[tuple[str, str, str]]:
    """Make one pass; returns its Events."""
    before = scenario.status
    scenario.reconcile()
    return [(event.type, event.reason, event.message) for event in transitions(before, scenario.status)]


def test_the_end_of_a_stage_and_the_next_job_are_one_event(scenario: Scenario) -> None:
    first = pass_events(scenario)
    job = scenario.live_job
    scenario.finish()
    second = pass_events(scenario)

    assert first == [("Normal", "PrepareStarted", f"created Job {job}")]
    assert second == [("Normal", "PrepareSucceeded", f"done in 0 s; created Job {scenario.live_job}")]
    assert pass_events(scenario) == []


def test_a_run_has_one_event_for_each_stage_and_one_for_the_outcome(scenario: Scenario) -> None:
    events = pass_events(scenario)
    for stage in Stage:
        if scenario.row(stage).state is StageState.RUNNING:
            scenario.finish()
            events += pass_events(scenario)

    reasons = [f"{stage.capitalize()}Succeeded" for stage in list(Stage)[:-1]]
    assert [reason for _, reason, _ in events] == ["PrepareStarted", *reasons, "Published"]


def test_stages_whose_output_is_in_the_store_are_named_in_the_same_event(scenario: Scenario) -> None:
    scenario.finish_all()
    again = Scenario(lora_fine_tune())
    again.manifests = scenario.manifests
    pass_events(again)
    again.finish()
    events = pass_events(again)

    assert len(events) == 1
    job = again.live_job
    assert events[0][2] == f"done in 0 s; already in the store: train, merge, quantize, evaluate; created Job {job}"


def test_the_end_of_a_stage_is_reported_even_if_the_next_job_is_refused(scenario: Scenario) -> None:
    scenario.reconcile()
    before = scenario.status
    ended = [
        row.model_copy(update={"state": StageState.SUCCEEDED, "seconds": 4.2}) if row.name is Stage.PREPARE else row
        for row in before.stages
    ]
    refused = Condition(
        type="Stalled",
        status="True",
        reason="JobRefused",
        message="train: exceeded quota",
        last_transition_time="2026-11-24T08:00:00Z",
        observed_generation=1,
    )
    after = before.model_copy(update={"stages": tuple(ended), "conditions": (*before.conditions, refused)})

    assert [(event.type, event.reason, event.message) for event in transitions(before, after)] == [
        ("Normal", "PrepareSucceeded", "done in 4 s"),
        ("Warning", "JobRefused", "train: exceeded quota"),
    ]


def test_a_replaced_job_is_reported_with_the_reason(scenario: Scenario) -> None:
    scenario.reconcile()
    scenario.end_pod(lambda pod: pod.waiting("ContainerCreating"))
    scenario.profiles = {"default": PROFILE.model_copy(update={"env": {"DEBUG": "1"}})}
    replaced, created = pass_events(scenario), pass_events(scenario)

    message = "the profile or a limit of the spec changed while no attempt was running: the stage's Job is replaced"
    assert replaced == [("Normal", "PrepareReplaced", message)]
    assert created == [("Normal", "PrepareStarted", f"created Job {scenario.live_job}")]


def test_a_stall_is_reported_once_and_again_when_its_cause_changes(scenario: Scenario) -> None:
    scenario.reconcile()
    scenario.end_pod(lambda pod: pod.waiting("CreateContainerConfigError", "no such key"))
    patient = pass_events(scenario)
    scenario.let_pass(PATIENCE)
    first, second = pass_events(scenario), pass_events(scenario)
    scenario.end_pod(lambda pod: pod.waiting("ImagePullBackOff", "no such image"))

    assert patient == []
    assert first == [("Warning", "CreateContainerConfigError", "prepare: no such key")]
    assert second == []
    assert pass_events(scenario) == [("Warning", "ImagePullBackOff", "prepare: no such image")]


def test_a_failure_and_a_refusal_are_warnings(scenario: Scenario) -> None:
    scenario.gates_pass = False
    scenario.advance_to(Stage.PUBLISH)
    scenario.finish()
    refusal = "maxDrop: the edge model is 0.03 below the tuned model, at most 0.02 is allowed"
    failing = Scenario(lora_fine_tune())
    failing.reconcile()
    failing.fail(ExitCode.INVALID, "line 7: no response")

    assert ("Warning", "GatesRefused", refusal) in pass_events(scenario)
    assert pass_events(failing) == [("Warning", "InvalidInput", "prepare: line 7: no response")]


def test_an_interruption_is_a_warning(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.end_pod(lambda pod: pod.ended(143).disrupted())
    message = "evicted from its node, for example by a drain; resumes from its newest checkpoint"
    interrupted = pass_events(scenario)
    scenario.cluster.start_pod(scenario.live_job)
    scenario.finish_all()

    assert interrupted == [("Warning", "TrainInterrupted", message)]
    assert scenario.condition("Ready") is not None


def test_the_end_of_a_run_is_reported_with_its_outcome(scenario: Scenario) -> None:
    scenario.advance_to(Stage.PUBLISH)
    scenario.finish()

    last = pass_events(scenario)[-1]

    ready = scenario.condition("Ready")
    assert ready is not None
    assert last == ("Normal", "Published", ready[2])
