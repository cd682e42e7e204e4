"""The metrics of stages: how a run, a failure, an interruption and a cached stage change them."""

from datetime import timedelta

import pytest
from prometheus_client import REGISTRY

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.objects import ProgressStatus
from edgetune_operator.reconcile import Pass
from edgetune_operator.telemetry import count_stages
from support.builders import lora_fine_tune
from support.scenario import Scenario

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
        count_stages(before, self.status)
        return done

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
def scenario() -> CountedScenario:
    """An object before its first pass."""
    return CountedScenario()


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


def test_gpu_time_is_counted_when_an_attempt_has_ended(scenario: CountedScenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.let_pass(timedelta(seconds=30))
    scenario.end_pod(lambda pod: pod.ended(137).disrupted())
    scenario.reconcile()
    stopped = scenario.added("gpu_seconds_total")
    scenario.cluster.start_pod(scenario.live_job)
    scenario.let_pass(timedelta(seconds=100))
    scenario.fail(ExitCode.DIVERGED, "the loss is not finite", reason="PodFailurePolicy")
    scenario.reconcile()
    failed = scenario.added("gpu_seconds_total")

    scenario.change(scenario.builder.edited("retryLimit", 9))
    scenario.reconcile()
    scenario.reconcile()
    scenario.let_pass(timedelta(seconds=7))
    scenario.finish()
    scenario.reconcile()

    assert (stopped, failed, scenario.added("gpu_seconds_total")) == ({"train": 30}, {"train": 130}, {"train": 137})
