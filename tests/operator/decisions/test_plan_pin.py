"""A pin: the pointer goes back to an older version at once, and forward again when the pin is taken away."""

import pytest

from edgetune_contract.digest import pin_digest
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.objects import StageState
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.decisions.plan import Outcome
from support.builders import lora_fine_tune
from support.scenario import Scenario, created, deleted

POINTER = "s3://artifacts/edgetune/team-a/models/sensor-faults/latest.json"
LATER_STAGES = [Stage.TRAIN, Stage.MERGE, Stage.QUANTIZE, Stage.EVALUATE]


@pytest.fixture
def scenario() -> Scenario:
    """An object whose second version is published; the first is in the store."""
    scenario = Scenario(lora_fine_tune())
    scenario.finish_all()
    scenario.change(scenario.builder.edited("lora.rank", 8))
    run_again(scenario)
    return scenario


def run_again(scenario: Scenario) -> list[Stage]:
    """Stages whose Jobs are created from now on until the end."""
    ran = []
    while (done := scenario.reconcile()).plan.actions or scenario.cluster.live_jobs():
        ran += created(done)
        if scenario.cluster.live_jobs():
            scenario.finish()
    return ran


def versions(scenario: Scenario) -> list[str]:
    """Versions in the history of the object, oldest first."""
    return [entry.version for entry in reversed(scenario.status.history)]


def pin(scenario: Scenario, version: str) -> None:
    """A person pins a version, or with an empty one takes the pin away."""
    scenario.change(scenario.builder.edited("publish.pin", version))


def test_a_pin_runs_publish_alone_and_moves_the_pointer_back(scenario: Scenario) -> None:
    first, second = versions(scenario)
    pin(scenario, first[:12])

    ran = run_again(scenario)

    assert ran == [Stage.PUBLISH]
    assert scenario.pointer == first != second
    assert scenario.condition("Ready") == (
        "True",
        "Pinned",
        f"{POINTER} names version {first[:12]}, as spec.publish.pin says",
    )
    assert scenario.condition("Stalled") is None
    publication = scenario.status.publication
    assert publication is not None
    assert (publication.version, publication.pinned) == (first, True)


def test_the_history_names_the_pinned_version_without_the_scores_of_another(scenario: Scenario) -> None:
    first, second = versions(scenario)
    pin(scenario, first)
    run_again(scenario)

    newest = scenario.status.history[0]
    assert (newest.outcome, newest.version) == ("Succeeded: Pinned", first)
    assert (newest.scores, newest.sizes) == (None, None)
    assert versions(scenario) == [first, second, first]


def test_taking_the_pin_away_moves_the_pointer_forward_without_any_other_stage(scenario: Scenario) -> None:
    first, second = versions(scenario)
    pin(scenario, first)
    run_again(scenario)

    pin(scenario, "")

    assert run_again(scenario) == [Stage.PUBLISH]
    assert scenario.pointer == second
    assert scenario.condition("Ready") == ("True", "Published", f"{POINTER} names version {second[:12]}")


def test_the_same_pin_a_second_time_moves_the_pointer_again(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    for version in (first, "", first):
        pin(scenario, version)
        run_again(scenario)

    assert scenario.pointer == first


def test_a_pin_stops_a_training_for_the_roll_back_which_then_goes_on(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    scenario.change(scenario.builder.edited("lora.rank", 4))
    scenario.reconcile()
    training = scenario.live_job
    pin(scenario, first)

    stopped, publishing = scenario.reconcile(), scenario.reconcile()
    phase = scenario.status.phase
    scenario.finish()
    goes_on = scenario.reconcile()

    assert [name for name, _ in deleted(stopped)] == [training]
    assert created(publishing) == [Stage.PUBLISH]
    assert phase == "Publishing"
    assert scenario.pointer == first
    assert created(goes_on) == [Stage.TRAIN]
    assert scenario.live_job == training


def test_what_is_trained_under_a_pin_is_not_published_until_the_pin_is_gone(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    pin(scenario, first)
    run_again(scenario)
    scenario.change(scenario.builder.edited("lora.rank", 4))

    under_pin = run_again(scenario)
    pinned_at = scenario.pointer
    pin(scenario, "")
    after = run_again(scenario)

    assert under_pin == LATER_STAGES
    assert pinned_at == first
    assert after == [Stage.PUBLISH]
    assert scenario.status.publication is not None
    assert scenario.pointer == scenario.status.publication.version not in versions(scenario)[:2]


def test_new_data_behind_the_same_name_does_not_move_a_pinned_pointer(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    pin(scenario, first)
    run_again(scenario)
    scenario.data = "second version of the data"
    scenario.change(scenario.builder.with_retry_requested("new data"))

    ran = run_again(scenario)

    assert ran == [Stage.PREPARE, *LATER_STAGES]
    assert scenario.pointer == first
    assert scenario.status.phase == "Succeeded"


def test_a_retry_under_a_pin_moves_a_pointer_back_that_somebody_else_moved(scenario: Scenario) -> None:
    first, second = versions(scenario)
    pin(scenario, first)
    run_again(scenario)
    scenario.pointer = second
    scenario.change(scenario.builder.with_retry_requested("look"))

    assert run_again(scenario) == [Stage.PREPARE, Stage.PUBLISH]
    assert scenario.pointer == first


def test_a_pin_moves_the_pointer_while_prepare_cannot_succeed(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    scenario.change(scenario.builder.edited("dataset.template", "ChatTemplate"))
    scenario.reconcile()
    scenario.fail(ExitCode.DENIED, "the data's bucket refuses the credentials", reason="PodFailurePolicy")
    scenario.reconcile()
    pin(scenario, first)
    scenario.reconcile()
    scenario.reconcile()
    asked = scenario.request
    scenario.finish()
    scenario.reconcile()

    assert (asked.stage, asked.digest) == (Stage.PUBLISH, pin_digest(asked.parameters, "sensor-faults"))
    assert scenario.pointer == first
    assert scenario.request.stage is Stage.PREPARE


def test_an_object_that_is_applied_with_a_pin_asks_for_the_pointer_first() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("publish.pin", "a" * 12))

    done = scenario.reconcile()

    assert created(done) == [Stage.PUBLISH]
    assert scenario.request.resolved is None


def test_a_pin_on_a_version_that_is_not_there_fails_and_runs_nothing_else(scenario: Scenario) -> None:
    _, second = versions(scenario)
    pin(scenario, "f" * 12)
    scenario.reconcile()
    scenario.fail(ExitCode.INVALID, "spec.publish.pin: there is no such version", reason="PodFailurePolicy")

    done = scenario.reconcile()

    assert done.plan.view.outcome is Outcome.FAILED
    assert scenario.condition("Ready") == (
        "False",
        "InvalidInput",
        "publish: spec.publish.pin: there is no such version",
    )
    assert scenario.row(Stage.EVALUATE).state is StageState.SUCCEEDED
    assert scenario.pointer == second


def test_a_suspended_object_moves_no_pointer(scenario: Scenario) -> None:
    first, second = versions(scenario)
    scenario.change(scenario.builder.edited("suspend", True))
    scenario.reconcile()
    pin(scenario, first)

    scenario.reconcile()

    assert scenario.condition("Ready") == (
        "False",
        "Suspended",
        "spec.suspend is true; publish continues when it is set to false",
    )
    assert scenario.pointer == second


def test_a_pins_digest_is_of_pin_and_name_alone() -> None:
    def digest(rank: int, version: str, name: str = "a") -> str:
        spec = lora_fine_tune().with_spec("lora.rank", rank).with_spec("publish.pin", version).build()["spec"]
        return pin_digest(parse_spec(spec).parameters, name)

    assert digest(8, "a" * 12) == digest(16, "a" * 12)
    assert len({digest(8, "a" * 12), digest(8, "a" * 13), digest(8, "a" * 12, "b")}) == 3
    assert digest(8, "") == ""
