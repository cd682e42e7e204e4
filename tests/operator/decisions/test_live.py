"""status.live and the condition Available: what edge devices get, whatever the current run does."""

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.status.object_status import LiveStatus
from support.builders import lora_fine_tune
from support.scenario import Scenario, run_again

POINTER = "s3://artifacts/edgetune/team-a/models/sensor-faults/latest.json"


@pytest.fixture
def scenario() -> Scenario:
    """An object whose first version is published."""
    scenario = Scenario(lora_fine_tune())
    scenario.finish_all()
    return scenario


def live(scenario: Scenario) -> LiveStatus:
    """What the status says is live."""
    found = scenario.status.live
    assert found is not None
    return found


def column(scenario: Scenario) -> str:
    """The column Version."""
    assert scenario.status.display is not None
    return scenario.status.display.version


def available(scenario: Scenario) -> tuple[str, str]:
    """Status and reason of the condition Available."""
    found = scenario.condition("Available")
    assert found is not None
    return found[:2]


def test_the_published_version_is_live_with_its_pointer_its_time_and_its_scores(scenario: Scenario) -> None:
    found = live(scenario)

    assert (found.version, found.pointer, found.since) == (scenario.pointer, POINTER, scenario.pointer_since)
    assert found.scores is not None
    assert (found.scores.edge, found.scores.details) == (0.94, {})
    message = f"{POINTER} names version {scenario.pointer[:12]} since {scenario.pointer_since}"
    assert scenario.condition("Available") == ("True", "Published", message)
    assert column(scenario) == scenario.pointer[:12]


def test_a_new_object_does_not_know_what_is_live_until_prepare_has_read_the_store() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.reconcile()
    before = available(scenario)

    scenario.finish()
    scenario.reconcile()

    assert before == ("Unknown", "StoreNotRead")
    assert available(scenario) == ("False", "NothingPublished")
    assert (scenario.status.live, column(scenario)) == (None, "")


@pytest.mark.parametrize("ends", ["trains", "fails", "refused"])
def test_what_is_live_is_said_while_the_next_run_trains_fails_or_is_refused(scenario: Scenario, ends: str) -> None:
    before = live(scenario)
    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.gates_pass = False

    scenario.advance_to(Stage.TRAIN)
    if ends == "fails":
        scenario.fail(ExitCode.DIVERGED, "the loss is not finite")
        scenario.reconcile()
    elif ends == "refused":
        run_again(scenario)

    assert scenario.status.phase == {"trains": "Training", "fails": "Failed", "refused": "Refused"}[ends]
    assert live(scenario) == before
    assert available(scenario) == ("True", "Published")
    assert column(scenario) == before.version[:12]


def test_a_pinned_version_is_live_with_its_own_time(scenario: Scenario) -> None:
    first = live(scenario)
    scenario.change(scenario.builder.edited("lora.rank", 8))
    run_again(scenario)
    second = live(scenario)

    scenario.change(scenario.builder.edited("publish.pin", first.version))
    run_again(scenario)

    assert live(scenario).version == first.version != second.version
    assert live(scenario).since > second.since > first.since


@pytest.mark.parametrize("stage", Stage)
def test_a_recreated_object_finds_what_is_live_in_the_store_at_every_stage(scenario: Scenario, stage: Stage) -> None:
    before = live(scenario)
    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.advance_to(stage) if stage is not Stage.PREPARE else scenario.reconcile()
    trainings = sum("-train-" in job["metadata"]["name"] for job in scenario.cluster.created)

    scenario.recreate()
    scenario.reconcile()
    unknown = available(scenario)
    scenario.finish()
    scenario.reconcile()

    assert unknown == ("Unknown", "StoreNotRead")
    assert live(scenario) == before
    run_again(scenario)
    assert scenario.status.phase == "Succeeded"
    again = sum("-train-" in job["metadata"]["name"] for job in scenario.cluster.created) - trainings
    assert again == (stage in (Stage.PREPARE, Stage.TRAIN)), "a training that has ended is found in the store"


def test_a_pointer_that_somebody_moved_or_removed_is_seen_at_the_next_look(scenario: Scenario) -> None:
    scenario.move_pointer("")
    scenario.change(scenario.builder.with_retry_requested("look"))
    scenario.reconcile()
    scenario.reconcile()
    known = available(scenario)
    scenario.finish()
    scenario.reconcile()
    removed = available(scenario), scenario.status.live
    run_again(scenario)

    assert known == ("True", "Published"), "until a stage has read the store"
    assert removed == (("False", "NothingPublished"), None)
    assert live(scenario).version == scenario.pointer


def test_a_deleted_object_still_says_what_is_live(scenario: Scenario) -> None:
    metadata = scenario.cluster.document["metadata"]
    metadata |= {"deletionTimestamp": scenario.cluster.timestamp(), "finalizers": ["others.example/hold"]}

    with pytest.raises(AssertionError, match="deleted"):
        scenario.reconcile()

    assert available(scenario) == ("True", "Published")
    assert live(scenario).version == scenario.pointer
