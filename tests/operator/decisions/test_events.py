"""Events of an object: what became true, once, in sentences."""

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.decisions.events import transitions
from support.builders import lora_fine_tune
from support.scenario import PROFILE, Scenario


@pytest.fixture
def scenario() -> Scenario:
    """The smallest object, before its first pass."""
    return Scenario(lora_fine_tune())


def told(scenario: Scenario) -> list[tuple[str, str, str]]:
    """Events of one pass."""
    before = scenario.status
    scenario.reconcile()
    return [(event.type, event.reason, event.message) for event in transitions(before, scenario.status)]


def test_a_stage_that_starts_and_ends_is_told(scenario: Scenario) -> None:
    begun = told(scenario)
    job = scenario.live_job
    scenario.finish()
    handed_over = told(scenario)

    assert begun == [("Normal", "PrepareStarted", f"created Job {job}")]
    assert handed_over[0] == ("Normal", "PrepareSucceeded", "done in 0 s")
    assert handed_over[1] == ("Normal", "TrainStarted", f"created Job {scenario.live_job}")
    assert told(scenario) == []


def test_a_job_that_is_replaced_is_told_with_the_reason(scenario: Scenario) -> None:
    scenario.reconcile()
    scenario.end_pod(lambda pod: pod.waiting("ContainerCreating"))
    scenario.profiles = {"default": PROFILE.model_copy(update={"queue": "gpu"})}
    replaced, made_anew = told(scenario), told(scenario)

    message = "the profile or a limit of the spec changed while no attempt ran: the stage's Job is created again"
    assert replaced == [("Normal", "PrepareReplaced", message)]
    assert made_anew == [("Normal", "PrepareStarted", f"created Job {scenario.live_job}")]


def test_what_stalls_a_stage_is_told_once_and_again_when_the_cause_changes(scenario: Scenario) -> None:
    scenario.reconcile()
    scenario.end_pod(lambda pod: pod.waiting("CreateContainerConfigError", "no such key"))
    first, second = told(scenario), told(scenario)
    scenario.end_pod(lambda pod: pod.waiting("ImagePullBackOff", "no such image"))

    assert first == [("Warning", "CreateContainerConfigError", "prepare: no such key")]
    assert second == []
    assert told(scenario) == [("Warning", "ImagePullBackOff", "prepare: no such image")]


def test_a_failure_and_a_refusal_are_warnings(scenario: Scenario) -> None:
    scenario.gates_hold = False
    scenario.advance_to(Stage.PUBLISH)
    scenario.finish()
    refusal = "maxDrop: the edge model is 0.03 below the tuned model, at most 0.02 is allowed"
    failing = Scenario(lora_fine_tune())
    failing.reconcile()
    failing.fail(ExitCode.INVALID, "line 7: no response")

    assert ("Warning", "GatesRefused", refusal) in told(scenario)
    assert told(failing) == [("Warning", "InvalidInput", "prepare: line 7: no response")]


def test_an_interruption_is_a_warning_and_the_end_is_not(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.end_pod(lambda pod: pod.ended(143).disrupted())
    goes_on = "evicted from its node, as when a node is drained; goes on from its newest checkpoint"
    interrupted = told(scenario)
    scenario.cluster.start_pod(scenario.live_job)
    scenario.finish_all()

    assert interrupted == [("Warning", "TrainInterrupted", goes_on)]
    assert scenario.condition("Ready") is not None


def test_the_end_of_a_run_is_told_with_its_outcome(scenario: Scenario) -> None:
    scenario.advance_to(Stage.PUBLISH)
    scenario.finish()

    last = told(scenario)[-1]

    ready = scenario.condition("Ready")
    assert ready is not None
    assert last == ("Normal", "Published", ready[2])
