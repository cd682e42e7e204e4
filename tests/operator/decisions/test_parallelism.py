"""The processes of a training in its row, and their efficiency against one process."""

from collections.abc import Mapping
from typing import Any

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles.resources import Resources
from edgetune_operator.api.status.stage_status import Parallelism, StageStatus
from support.builders import lora_fine_tune
from support.scenario import PROFILE, Scenario

H100: Mapping[str, Any] = {"facts": {"device": "NVIDIA H100"}}
FOUR = Resources(limits={"nvidia.com/gpu": 2}, nodes=2)


def train(scenario: Scenario, speed: float, processes: int = 1, **changes: Any) -> StageStatus:
    """The training runs with as many processes, and measures this many tokens per second over all; its row."""
    scenario.profiles["default"] = PROFILE.model_copy(
        update={"resources": {Stage.TRAIN: FOUR}} if processes > 1 else {}
    )
    scenario.advance_to(Stage.TRAIN)
    metrics = {"tokensPerSecond": speed, **({"worldSize": float(processes)} if processes > 1 else {})}
    result = scenario.simulated_result(scenario.request).model_copy(update={**H100, "metrics": metrics, **changes})
    scenario.finish(result)
    scenario.finish_all()
    return scenario.row(Stage.TRAIN)


def edit(scenario: Scenario, path: str, value: Any) -> None:
    scenario.change(scenario.builder.edited(path, value))
    scenario.reconcile()


@pytest.fixture
def one() -> Scenario:
    """An object that has trained in one process, with 1000 tokens per second."""
    scenario = Scenario(lora_fine_tune())
    row = train(scenario, 1000)
    assert row.parallelism is None
    return scenario


def test_the_efficiency_compares_each_process_with_one_that_trained_alone(one: Scenario) -> None:
    edit(one, "training.epochs", 5)

    row = train(one, 3600, processes=4)

    assert row.parallelism == Parallelism(processes=4, nodes=2, efficiency=0.9)
    assert one.status.display is not None
    assert one.status.display.processes == "4 on 2 nodes"


@pytest.mark.parametrize(
    ("path", "value", "changes"),
    [
        ("training.maxLength", 512, {}),
        ("lora.rank", 64, {}),
        ("training.epochs", 5, {"facts": {"device": "NVIDIA L4"}}),
    ],
    ids=["other sequences", "another adapter", "another device"],
)
def test_a_training_that_differs_in_what_decides_its_speed_is_not_compared(
    one: Scenario, path: str, value: Any, changes: dict[str, Any]
) -> None:
    edit(one, path, value)

    row = train(one, 3600, processes=4, **changes)

    assert row.parallelism == Parallelism(processes=4, nodes=2)


def test_the_newest_training_in_one_process_is_compared_with(one: Scenario) -> None:
    edit(one, "training.epochs", 5)
    train(one, 1200)
    edit(one, "training.epochs", 6)

    row = train(one, 3600, processes=4)

    assert row.parallelism is not None
    assert row.parallelism.efficiency == 0.75


def test_an_output_from_the_store_has_the_processes_that_made_it(one: Scenario) -> None:
    edit(one, "training.epochs", 5)

    row = train(one, 3600, processes=8, cached=True)

    assert row.parallelism == Parallelism(processes=8, efficiency=0.45)
