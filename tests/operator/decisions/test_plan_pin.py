"""A pin: the pointer is rolled back to an older version at once, and moves forward again when the pin is removed."""

import pytest

from edgetune_contract.digest import pin_digest
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.plans import Outcome
from support.builders import lora_fine_tune
from support.scenario import Scenario, created, deleted, run_again

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


def versions(scenario: Scenario) -> list[str]:
    """Versions in the history of the object, oldest first."""
    return [entry.version for entry in reversed(scenario.status.history)]


def pin(scenario: Scenario, version: str) -> None:
    """A user pins a version, or removes the pin with an empty one."""
    scenario.change(scenario.builder.edited("publish.pin", version))


def test_a_pin_runs_only_publish_and_rolls_the_pointer_back(scenario: Scenario) -> None:
    first, second = versions(scenario)
    pin(scenario, first[:12])

    ran = run_again(scenario)

    assert ran == [Stage.PUBLISH]
    assert scenario.pointer == first != second
    assert scenario.condition("Ready") == (
        "True",
        "Pinned",
        f"{POINTER} names version {first[:12]}, as set by spec.publish.pin",
    )
    assert scenario.condition("Stalled") is None
    publication = scenario.status.publication
    assert publication is not None
    assert (publication.version, publication.pinned) == (first, True)


def test_the_history_has_the_pinned_version_without_the_scores_of_another(scenario: Scenario) -> None:
    first, second = versions(scenario)
    pin(scenario, first)
    run_again(scenario)

    newest = scenario.status.history[0]
    assert (newest.outcome, newest.version) == ("Succeeded: Pinned", first)
    assert (newest.scores, newest.sizes) == (None, None)
    assert versions(scenario) == [first, second, first]


def test_removing_the_pin_moves_the_pointer_forward_and_runs_only_publish(scenario: Scenario) -> None:
    first, second = versions(scenario)
    pin(scenario, first)
    run_again(scenario)

    pin(scenario, "")

    assert run_again(scenario) == [Stage.PUBLISH]
    assert scenario.pointer == second
    assert scenario.condition("Ready") == ("True", "Published", f"{POINTER} names version {second[:12]}")


def test_pinning_the_same_version_again_moves_the_pointer_again(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    for version in (first, "", first):
        pin(scenario, version)
        run_again(scenario)

    assert scenario.pointer == first


def test_a_pin_stops_a_training_which_resumes_after_the_rollback(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    scenario.change(scenario.builder.edited("lora.rank", 4))
    scenario.advance_to(Stage.TRAIN)
    training = scenario.live_job
    pin(scenario, first)

    stopped, publishing = scenario.reconcile(), scenario.reconcile()
    phase = scenario.status.phase
    scenario.finish()
    resumed = scenario.reconcile()

    assert [name for name, _ in deleted(stopped)] == [training]
    assert created(publishing) == [Stage.PUBLISH]
    assert phase == "Publishing"
    assert scenario.pointer == first
    assert created(resumed) == [Stage.TRAIN]
    assert scenario.live_job == training


def test_a_model_trained_with_a_pin_is_published_only_after_the_pin_is_removed(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    pin(scenario, first)
    run_again(scenario)
    scenario.change(scenario.builder.edited("lora.rank", 4))

    with_pin = run_again(scenario)
    pinned_at = scenario.pointer
    pin(scenario, "")
    after = run_again(scenario)

    assert with_pin == [Stage.PREPARE, *LATER_STAGES]
    assert pinned_at == first
    assert after == [Stage.PUBLISH]
    assert scenario.status.publication is not None
    assert scenario.pointer == scenario.status.publication.version not in versions(scenario)[:2]


def test_new_data_at_the_same_uri_does_not_move_a_pinned_pointer(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    pin(scenario, first)
    run_again(scenario)
    scenario.data = "second version of the data"
    scenario.change(scenario.builder.with_retry_requested("new data"))

    ran = run_again(scenario)

    assert ran == [Stage.PREPARE, *LATER_STAGES]
    assert scenario.pointer == first
    assert scenario.status.phase == "Succeeded"


def test_a_retry_with_a_pin_restores_a_pointer_that_somebody_moved(scenario: Scenario) -> None:
    first, second = versions(scenario)
    pin(scenario, first)
    run_again(scenario)
    scenario.pointer = second
    scenario.change(scenario.builder.with_retry_requested("check"))

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
    request = scenario.request
    scenario.finish()
    scenario.reconcile()

    assert (request.stage, request.digest) == (Stage.PUBLISH, pin_digest(request.parameters, "sensor-faults"))
    assert scenario.pointer == first
    assert (scenario.status.phase, scenario.cluster.live_jobs()) == ("Failed", []), "a pin retries nothing"


def test_a_new_object_with_a_pin_runs_publish_first() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("publish.pin", "a" * 12))

    done = scenario.reconcile()

    assert created(done) == [Stage.PUBLISH]
    assert scenario.request.resolved is None


def test_a_pin_to_a_missing_version_fails_and_runs_nothing_else(scenario: Scenario) -> None:
    _, second = versions(scenario)
    pin(scenario, "f" * 12)
    scenario.reconcile()
    scenario.fail(ExitCode.INVALID, "spec.publish.pin: version not found", reason="PodFailurePolicy")

    done = scenario.reconcile()

    assert done.plan.view.outcome is Outcome.FAILED
    assert scenario.condition("Ready") == (
        "False",
        "InvalidInput",
        "publish: spec.publish.pin: version not found",
    )
    assert scenario.row(Stage.EVALUATE).state is StageState.SUCCEEDED
    assert scenario.pointer == second


def fail_the_next_training(scenario: Scenario) -> None:
    """An edit whose training fails for good."""
    scenario.change(scenario.builder.edited("lora.rank", 4))
    scenario.advance_to(Stage.TRAIN)
    scenario.fail(ExitCode.DIVERGED, "the loss is not finite", reason="PodFailurePolicy")
    scenario.reconcile()
    assert scenario.status.phase == "Failed"


def test_a_pin_with_suspend_rolls_back_in_one_commit_and_is_ready(scenario: Scenario) -> None:
    first, second = versions(scenario)
    scenario.change(scenario.builder.edited("suspend", True).with_spec("publish.pin", first))

    ran = run_again(scenario)

    assert (ran, scenario.pointer) == ([Stage.PUBLISH], first)
    assert scenario.condition("Ready") == (
        "True",
        "Pinned",
        f"{POINTER} names version {first[:12]}, as set by spec.publish.pin",
    )
    assert scenario.status.live is not None
    assert scenario.status.live.version == first != second


@pytest.mark.parametrize("state", ["runs", "failed", "pending"])
def test_a_pin_with_suspend_is_ready_whatever_the_current_run_did(scenario: Scenario, state: str) -> None:
    first, _ = versions(scenario)
    if state == "failed":
        fail_the_next_training(scenario)
    else:
        scenario.change(scenario.builder.edited("lora.rank", 4))
        scenario.advance_to(Stage.TRAIN) if state == "runs" else None
    scenario.change(scenario.builder.edited("suspend", True).with_spec("publish.pin", first))

    ran = run_again(scenario)

    assert (ran, scenario.pointer) == ([Stage.PUBLISH], first)
    message = (
        f"{POINTER} names version {first[:12]}, as set by spec.publish.pin; spec.suspend is true: nothing else runs"
    )
    assert scenario.condition("Ready") == ("True", "Pinned", message)
    assert (scenario.status.phase, scenario.condition("Stalled")) == ("Succeeded", None)
    assert scenario.cluster.live_jobs() == []
    assert (scenario.row(Stage.TRAIN).state is StageState.FAILED) == (state == "failed")


def test_what_a_pin_with_suspend_stopped_continues_when_both_are_removed(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    scenario.change(scenario.builder.edited("lora.rank", 4))
    scenario.advance_to(Stage.TRAIN)
    scenario.change(scenario.builder.edited("suspend", True).with_spec("publish.pin", first))
    run_again(scenario)

    scenario.change(scenario.builder.edited("suspend", False).with_spec("publish.pin", ""))

    assert run_again(scenario) == [*LATER_STAGES, Stage.PUBLISH]
    assert scenario.pointer not in versions(scenario)[:2]


def test_a_pin_alone_retries_nothing_that_failed(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    fail_the_next_training(scenario)
    pin(scenario, first)

    ran = run_again(scenario)

    assert (ran, scenario.pointer) == ([Stage.PUBLISH], first)
    assert scenario.condition("Stalled") == ("True", "TrainingDiverged", "train: the loss is not finite")
    assert scenario.status.live is not None
    assert scenario.status.live.version == first
    pin(scenario, "")
    assert Stage.TRAIN not in run_again(scenario)
    scenario.change(scenario.builder.edited("retryLimit", 5))
    assert Stage.TRAIN in run_again(scenario)


def test_a_retry_of_a_suspended_pin_restores_a_pointer_that_somebody_moved(scenario: Scenario) -> None:
    first, second = versions(scenario)
    scenario.change(scenario.builder.edited("suspend", True).with_spec("publish.pin", first))
    run_again(scenario)
    scenario.move_pointer(second)
    scenario.change(scenario.builder.with_retry_requested("check"))

    assert run_again(scenario) == [Stage.PUBLISH]
    assert scenario.pointer == first
    assert scenario.status.last_handled_retry == "check"


def test_a_pin_is_not_ready_while_a_retry_waits_for_the_stage_that_suspension_stops(scenario: Scenario) -> None:
    first, _ = versions(scenario)
    scenario.change(scenario.builder.edited("lora.rank", 32).with_spec("publish.pin", first))
    scenario.advance_to(Stage.TRAIN)
    scenario.change(scenario.builder.edited("suspend", True).with_spec("retry", "check"))

    stopping = scenario.reconcile()
    waiting = scenario.condition("Ready"), scenario.condition("Reconciling"), scenario.status.pending_retries
    run_again(scenario)

    message = "publish: done; the requested retry starts when this stage has ended"
    assert [why for _, why in deleted(stopping)] == ["it is not part of the current run"]
    assert waiting == (("False", "Pending", message), ("True", "Pending", message), ("check",))
    assert ((scenario.condition("Ready") or ())[:2], scenario.status.pending_retries) == (("True", "Pinned"), ())


def test_a_version_that_was_deleted_can_be_replaced_by_another_pin(scenario: Scenario) -> None:
    first, second = versions(scenario)
    scenario.change(scenario.builder.edited("suspend", True).with_spec("publish.pin", first))
    scenario.reconcile()
    scenario.reconcile()
    scenario.fail(ExitCode.INVALID, "spec.publish.pin: version not found", reason="PodFailurePolicy")
    scenario.reconcile()
    stalled, live = scenario.condition("Stalled"), scenario.status.live
    pin(scenario, second)

    run_again(scenario)

    assert stalled == ("True", "InvalidInput", "publish: spec.publish.pin: version not found")
    assert live is not None
    assert live.version == second == scenario.pointer
    assert (scenario.condition("Ready") or ())[:2] == ("True", "Pinned")


def test_the_digest_of_a_pin_depends_on_pin_and_name_only() -> None:
    def digest(rank: int, version: str, name: str = "a") -> str:
        spec = lora_fine_tune().with_spec("lora.rank", rank).with_spec("publish.pin", version).build()["spec"]
        return pin_digest(parse_spec(spec).parameters, name)

    assert digest(8, "a" * 12) == digest(16, "a" * 12)
    assert len({digest(8, "a" * 12), digest(8, "a" * 13), digest(8, "a" * 12, "b")}) == 3
    assert digest(8, "") == ""
