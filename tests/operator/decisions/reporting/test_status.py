"""From a view to the object's status: conditions as kstatus reads them, times, history, sizes, formatted figures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_contract.pipeline import PIPELINE
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.stages import ExitCode, Stage
from edgetune_contract.values.units import format_bytes, format_share
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import ProgressStatus
from edgetune_operator.decisions.reporting.status import dump
from support.builders import lora_fine_tune
from support.scenario import Scenario

MEASUREMENT = EdgeMeasurement(
    runtime="transformers", peak_memory_bytes=1, cpu="AMD EPYC", threads=2, prompt_tokens=60, new_tokens=32
)


@pytest.fixture
def scenario() -> Scenario:
    """The smallest object, before its first pass."""
    return Scenario(lora_fine_tune())


def transition_time(scenario: Scenario, condition_type: str) -> str:
    """When a condition last changed."""
    return next(found.last_transition_time for found in scenario.status.conditions if found.type == condition_type)


def test_before_the_first_pass_no_generation_is_observed() -> None:
    assert LoraFineTuneStatus().observed_generation == -1
    assert LoraFineTuneStatus().conditions == ()


def test_every_condition_exists_once_with_the_current_generation(scenario: Scenario) -> None:
    scenario.change(scenario.builder.with_metadata(generation=7))
    scenario.reconcile()

    types = [condition.type for condition in scenario.status.conditions]
    assert types == ["Ready", "Reconciling", "Available", *(PIPELINE[stage].condition for stage in Stage)]
    assert {condition.observed_generation for condition in scenario.status.conditions} == {7}
    assert scenario.status.observed_generation == 7


def test_reconciling_and_stalled_are_absent_when_they_are_not_true(scenario: Scenario) -> None:
    seen = set()
    while True:
        scenario.reconcile()
        seen |= {(found.type, found.status) for found in scenario.status.conditions}
        if not scenario.cluster.live_jobs():
            break
        scenario.finish()

    assert ("Reconciling", "True") in seen
    assert not {("Reconciling", "False"), ("Stalled", "False"), ("Stalled", "True")} & seen
    assert ("Ready", "True") in seen


def test_a_condition_keeps_its_time_until_its_status_changes(scenario: Scenario) -> None:
    scenario.reconcile()
    first = transition_time(scenario, "Ready")

    scenario.finish_all()
    prepared, ready = transition_time(scenario, "Prepared"), transition_time(scenario, "Ready")

    assert first < prepared < ready
    scenario.change(scenario.builder.edited("retryLimit", 9))
    scenario.reconcile()
    assert transition_time(scenario, "Ready") == ready


def test_a_run_has_a_start_and_an_end(scenario: Scenario) -> None:
    scenario.reconcile()
    running = scenario.status
    scenario.finish_all()

    assert running.started_at == "2026-11-24T08:00:10Z"
    assert running.finished_at is None
    assert scenario.status.started_at == running.started_at
    assert scenario.status.finished_at == scenario.cluster.timestamp()


def test_a_new_run_has_its_own_start(scenario: Scenario) -> None:
    scenario.finish_all()
    scenario.change(scenario.builder.edited("lora.rank", 8))

    scenario.reconcile()

    assert scenario.status.started_at == scenario.cluster.timestamp()
    assert scenario.status.finished_at is None


def test_each_finished_run_is_in_the_history_once_newest_first(scenario: Scenario) -> None:
    scenario.finish_all()
    scenario.reconcile()
    scenario.gates_pass = False
    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.reconcile()
    scenario.finish_all()
    scenario.change(scenario.builder.edited("lora.rank", 4))
    scenario.advance_to(Stage.TRAIN)
    scenario.fail(ExitCode.DIVERGED, "the loss is not finite")
    scenario.reconcile()

    history = scenario.status.history
    assert [(entry.generation, entry.outcome) for entry in history] == [
        (3, "Failed: TrainingDiverged"),
        (2, "Refused: GatesRefused"),
        (1, "Succeeded"),
    ]
    assert history[0].scores is None
    assert history[2].scores is not None
    assert history[2].scores.edge == 0.94


def test_the_measurement_of_the_edge_model_is_in_the_status_once_it_is_evaluated(scenario: Scenario) -> None:
    scenario.measurement = MEASUREMENT
    scenario.reconcile()
    before = scenario.status.edge
    scenario.finish_all()

    assert before is None
    assert scenario.status.edge == MEASUREMENT


def test_a_run_without_an_edge_budget_drops_the_earlier_measurement(scenario: Scenario) -> None:
    scenario.measurement = MEASUREMENT
    scenario.finish_all()
    scenario.measurement = None
    scenario.change(scenario.builder.edited("evaluation.maxExamples", 7))

    scenario.finish_all()

    assert scenario.status.edge is None


def test_the_history_keeps_the_last_ten_runs(scenario: Scenario) -> None:
    for rank in range(1, 13):
        scenario.change(scenario.builder.edited("lora.rank", rank))
        scenario.reconcile()
        scenario.finish_all()

    assert [entry.generation for entry in scenario.status.history] == list(range(13, 3, -1))


def test_sizes_are_those_of_inputs_and_outputs(scenario: Scenario) -> None:
    scenario.finish_all()

    sizes = scenario.status.sizes
    assert sizes is not None
    assert (sizes.base_bytes, sizes.adapter_bytes, sizes.merged_bytes, sizes.edge_bytes) == (1000, 500, 500, 500)
    assert sizes.ratio == 0.5
    assert (sizes.trained_quantized_share, sizes.edge_quantized_share) == (0.75, 0.5)


def test_columns_have_formatted_figures(scenario: Scenario) -> None:
    scenario.finish_all()

    display = scenario.status.display
    assert display is not None
    assert (display.base, display.tuned, display.edge) == ("5.0%", "95.0%", "94.0%")
    assert (display.adapter_size, display.edge_size) == ("500 B", "500 B")
    assert display.version == scenario.pointer[:12]


def test_progress_is_a_column_while_a_stage_runs(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.cluster.progress = ProgressStatus(stage=Stage.TRAIN, step=120, total_steps=200)

    scenario.reconcile()

    assert scenario.status.display is not None
    assert scenario.status.display.progress == "120/200 steps (60 %)"


def test_the_column_has_the_reason_if_no_stage_is_running(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.cluster.progress = ProgressStatus(stage=Stage.TRAIN, step=120, total_steps=200)
    scenario.reconcile()
    scenario.end_pod(lambda pod: pod.waiting("ImagePullBackOff", "Back-off pulling image"))

    scenario.reconcile()

    assert scenario.status.display is not None
    assert (scenario.status.phase, scenario.status.display.progress) == ("Training", "ImagePullBackOff")


def test_unset_fields_are_omitted_from_the_status() -> None:
    assert dump(LoraFineTuneStatus(observed_generation=3)) == {"observedGeneration": 3, "phase": "Pending"}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, ""),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_640_000, "9.6 MB"),
        (269_060_000, "269 MB"),
        (999_600_000, "1.0 GB"),
        (14_500_000_000, "14.5 GB"),
        (2_000_000_000_000, "2.0 TB"),
    ],
)
def test_bytes_are_formatted_in_powers_of_ten(count: int | None, text: str) -> None:
    assert format_bytes(count) == text


@given(count=st.integers(0, 10**18))
def test_any_size_fits_into_its_column(count: int) -> None:
    assert len(format_bytes(count)) <= 16


@pytest.mark.parametrize(("share", "text"), [(None, ""), (0.0, "0.0%"), (0.9444, "94.4%"), (1.0, "100.0%")])
def test_scores_are_formatted_in_percent(share: float | None, text: str) -> None:
    assert format_share(share) == text
