"""The metrics of stages: how a run, a failure, an interruption and a cached stage change them."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.gpu_use import Prices
from edgetune_operator.api.status.stage_status import ProgressStatus
from edgetune_operator.reconcile import Pass
from edgetune_operator.telemetry import OBJECT_METRICS, WASTE_CAUSES, ObjectFigures, count_stages
from support.builders import NAMESPACE, lora_fine_tune
from support.scenario import PROFILE, Scenario

ARTIFACT_BYTES = 500
"""Size of each artifact of a scenario."""


class CountedScenario(Scenario):
    """A scenario whose passes are counted as the controller counts them."""

    def __init__(self) -> None:
        super().__init__(lora_fine_tune())
        self._initial = samples()

    def reconcile(self) -> Pass:
        before = self.status
        done = super().reconcile()
        count_stages(NAMESPACE, before, self.status)
        self.show()
        return done

    def show(self) -> None:
        """Show the object's metrics as an operator does, also one that has just started."""
        figures = ObjectFigures.of(self.cluster.document.get("status") or {})
        OBJECT_METRICS.replace({Key(NAMESPACE, "sensor-faults"): figures})

    def shown(self, metric: str) -> dict[str, float]:
        """Values of a metric by the values of its labels."""
        return {labels: value for (name, labels), value in samples().items() if name == f"edgetune_{metric}"}

    def added(self, metric: str) -> dict[str, float]:
        """Increase of a metric since the scenario's start, by the values of its labels."""
        pairs = samples().items()
        added = {key: value - self._initial.get(key, 0.0) for key, value in pairs if key[0] == f"edgetune_{metric}"}
        return {labels: value for (_, labels), value in added.items() if value}


def samples() -> dict[tuple[str, str], float]:
    """Values of all metrics by name and labels."""
    every = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return {(sample.name, " ".join(sample.labels.values())): sample.value for sample in every}


@pytest.fixture
def scenario() -> Iterator[CountedScenario]:
    """An object before its first pass."""
    yield CountedScenario()
    OBJECT_METRICS.replace({})


def test_a_run_counts_stages_durations_attempts_and_artifact_bytes(scenario: CountedScenario) -> None:
    scenario.finish_all()
    scenario.reconcile()

    assert scenario.added("stages_total") == {f"{stage} Succeeded false": 1 for stage in Stage}
    assert scenario.added("stage_seconds_count") == dict.fromkeys(Stage, 1)
    # Each Job is created in one pass and has ended before the next one.
    seconds = {stage: scenario.row(stage).seconds for stage in Stage}
    assert scenario.added("stage_seconds_sum") == {stage: value for stage, value in seconds.items() if value}
    assert scenario.added("stage_attempts_total") == dict.fromkeys(Stage, 1)
    makers = (Stage.PREPARE, Stage.TRAIN, Stage.MERGE, Stage.QUANTIZE)
    assert scenario.added("artifact_bytes_total") == dict.fromkeys(makers, ARTIFACT_BYTES)
    assert (scenario.added("preemptions_total"), scenario.added("lost_steps_total")) == ({}, {})


def test_a_cached_stage_counts_no_duration_and_no_bytes(scenario: CountedScenario) -> None:
    scenario.finish_all()
    artifact_bytes, durations = scenario.added("artifact_bytes_total"), scenario.added("stage_seconds_count")
    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.reconcile()
    scenario.change(scenario.builder.edited("lora.rank", 16).with_retry_requested("from the store"))
    scenario.cluster.remove_ended_jobs()
    scenario.reconcile()
    scenario.finish_all()

    cached = {key: value for key, value in scenario.added("stages_total").items() if key.endswith("true")}
    assert cached == {f"{stage} Succeeded true": 1 for stage in list(Stage)[1:]}
    assert scenario.added("artifact_bytes_total") == artifact_bytes | {Stage.PREPARE: 2 * ARTIFACT_BYTES}
    assert scenario.added("stage_seconds_count") == durations | {Stage.PREPARE: 2}


def test_a_failure_counts_its_attempts(scenario: CountedScenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.fail(ExitCode.TRANSIENT, "the store did not answer", attempts=4)
    scenario.reconcile()
    scenario.reconcile()

    assert scenario.added("stages_total") == {"prepare Succeeded false": 1, "train Failed false": 1}
    assert scenario.added("stage_attempts_total") == {"prepare": 1, "train": 4}


def test_interruptions_count_the_lost_steps(scenario: CountedScenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    for step, resumed_from in ((43, 0), (41, 40)):
        pod = scenario.cluster.pods_of(scenario.live_job)[-1]
        scenario.cluster.progress = ProgressStatus(
            stage=Stage.TRAIN, step=step, total_steps=200, percent=step // 2, pod=pod, resumed_from=resumed_from
        )
        scenario.reconcile()
        scenario.cluster.progress = None
        scenario.end_pod(lambda pod: pod.ended(137).disrupted())
        scenario.reconcile()
        scenario.cluster.start_pod(scenario.live_job)
        scenario.reconcile()

    assert scenario.added("preemptions_total") == {"train": 2}
    assert scenario.added("lost_steps_total") == {"": 3}


TRAINING = f"{NAMESPACE} sensor-faults default train"


def test_gpu_time_is_that_of_the_status_and_survives_a_restart(scenario: CountedScenario) -> None:
    scenario.profiles = {"default": PROFILE.model_copy(update={"prices": Prices(currency="EUR", gpu_hour=36)})}
    scenario.advance_to(Stage.TRAIN)
    scenario.reconcile()
    at_first = scenario.shown("gpu_seconds_total")
    running = scenario.shown("gpus_running")
    scenario.let_pass(timedelta(seconds=20))
    scenario.end_pod(lambda pod: pod.ended(137).disrupted())
    scenario.reconcile()
    scenario.cluster.start_pod(scenario.live_job)
    scenario.let_pass(timedelta(seconds=100))
    scenario.fail(ExitCode.DIVERGED, "the loss is not finite", reason="PodFailurePolicy")
    scenario.reconcile()
    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.reconcile()
    OBJECT_METRICS.replace({})
    scenario.show()

    # From 0 on, or Prometheus does not see the first increase.
    assert (at_first, running) == ({TRAINING: 0}, {TRAINING: 1})
    assert scenario.shown("gpu_seconds_total") == {TRAINING: 130}
    waste = {cause: scenario.shown("gpu_waste_seconds_total")[f"{TRAINING} {cause}"] for cause in WASTE_CAUSES}
    assert waste == {"failed": 100, "repeated": 0, "loading": 0, "lost_peer": 0, "waiting": 0}
    assert scenario.shown("gpu_estimated_seconds_total") == {TRAINING: 0}
    assert scenario.shown("gpu_cost_total") == {f"{TRAINING} EUR": 1.3}


def test_the_wait_for_a_gpu_begins_with_the_job_or_the_end_of_the_attempt_before(scenario: CountedScenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    job = scenario.live_job
    created = scenario.cluster.pods.pop(scenario.cluster.pods_of(job)[-1])["metadata"]["creationTimestamp"]
    scenario.let_pass(timedelta(seconds=50))
    scenario.cluster.start_pod(job)
    scenario.reconcile()
    first = scenario.added("gpu_wait_seconds_sum")
    scenario.end_pod(lambda pod: pod.ended(137).disrupted())
    scenario.let_pass(timedelta(seconds=20))
    scenario.cluster.start_pod(job)
    scenario.reconcile()

    labels = f"{NAMESPACE} default train"
    assert created == scenario.cluster.jobs[job]["metadata"]["creationTimestamp"]
    assert (first, scenario.added("gpu_wait_seconds_sum")) == ({labels: 50}, {labels: 70})


def test_the_wait_of_an_attempt_counts_once_though_the_spec_is_edited_while_it_runs(
    scenario: CountedScenario,
) -> None:
    scenario.cluster.deletes_slowly = True
    scenario.advance_to(Stage.TRAIN)
    scenario.reconcile()
    waited = scenario.added("gpu_wait_seconds_count")
    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.reconcile()

    assert scenario.row(Stage.TRAIN).gpu_attempt is not None
    assert waited == scenario.added("gpu_wait_seconds_count") == {f"{NAMESPACE} default train": 1}


def test_failures_are_counted_by_reason_and_scores_are_shown(scenario: CountedScenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.fail(ExitCode.DIVERGED, "the loss is not finite", reason="PodFailurePolicy")
    scenario.reconcile()
    failures = scenario.added("stage_failures_total")
    scenario.change(scenario.builder.edited("retryLimit", 9))
    scenario.reconcile()
    scenario.finish_all()

    assert failures == {f"{NAMESPACE} train TrainingDiverged": 1}
    scores = {"base": 0.05, "tuned": 0.95, "merged": 0.95, "edge": 0.94}
    assert scenario.shown("score") == {f"{NAMESPACE} sensor-faults {model}": value for model, value in scores.items()}


def test_a_status_of_another_version_has_no_figures() -> None:
    assert ObjectFigures.of({"gpu": {"unknown": 1}}) == ObjectFigures()
