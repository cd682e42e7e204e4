"""The cost of interruptions: steps that were repeated, also over restarts of the operator."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_jobs.runtime.progress import ProgressUpdate, TrainingMetrics
from edgetune_operator.api.status.stage_status import ProgressStatus
from edgetune_operator.cluster.progress import parse_metrics
from support.builders import PodBuilder, failed_result, lora_fine_tune
from support.scenario import Scenario

EVICTED = "evicted from its node, for example by a drain; resumes from its newest checkpoint"


@pytest.fixture
def training() -> Scenario:
    """An object whose training runs."""
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    return scenario


def reach(scenario: Scenario, step: int, resumed_from: int = 0) -> None:
    """The newest attempt reports a step, and a pass reads it."""
    pod = scenario.cluster.pods_of(scenario.live_job)[-1]
    scenario.cluster.progress = ProgressStatus(
        stage=Stage.TRAIN, step=step, total_steps=200, percent=step // 2, pod=pod, resumed_from=resumed_from
    )
    scenario.reconcile()


def evict(scenario: Scenario) -> None:
    """The newest attempt is evicted and killed; another one starts."""
    scenario.cluster.progress = None
    scenario.end_pod(lambda pod: pod.ended(137).disrupted())
    scenario.reconcile()
    scenario.cluster.start_pod(scenario.live_job)
    scenario.reconcile()


def _has_ended(pod: dict[str, Any]) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def interruptions_of(scenario: Scenario) -> tuple[int, int | None, int | None, str]:
    """Preemptions, step from which the newest attempt resumed, lost steps, and the message."""
    row = scenario.row(Stage.TRAIN)
    return row.preemptions, row.resumed_from, row.lost_steps, row.message


def test_the_steps_between_the_last_observed_one_and_the_checkpoint_are_lost(training: Scenario) -> None:
    reach(training, 43)
    evict(training)
    waiting = training.row(Stage.TRAIN)
    reach(training, 41, resumed_from=40)

    assert waiting.message == EVICTED
    assert interruptions_of(training) == (1, 40, 3, "1 preemption; resumed at step 40, 3 steps lost")
    assert training.condition("Reconciling") == (
        "True",
        "Resumed",
        "train: 1 preemption; resumed at step 40, 3 steps lost",
    )

    training.finish()
    training.reconcile()

    assert interruptions_of(training) == (1, 40, 3, "1 preemption; resumed at step 40, 3 steps lost")
    assert training.condition("Trained") == (
        "True",
        "Succeeded",
        "1 preemption; resumed at step 40, 3 steps lost",
    )


def test_a_training_that_wrote_its_checkpoint_in_time_lost_no_steps(training: Scenario) -> None:
    reach(training, 43)
    evict(training)
    reach(training, 46, resumed_from=45)

    assert interruptions_of(training) == (1, 45, 0, "1 preemption; resumed at step 45, 0 steps lost")


def test_lost_steps_add_up_even_if_each_attempt_resumes_from_the_same_checkpoint(training: Scenario) -> None:
    reach(training, 43)
    evict(training)
    reach(training, 44, resumed_from=40)
    evict(training)
    reach(training, 45, resumed_from=40)
    reach(training, 60, resumed_from=40)

    assert interruptions_of(training) == (2, 40, 7, "2 preemptions; resumed at step 40, 7 steps lost")


def test_after_another_interruption_the_older_resumption_is_not_reported(training: Scenario) -> None:
    reach(training, 43)
    evict(training)
    reach(training, 44, resumed_from=40)
    evict(training)

    assert interruptions_of(training) == (2, None, 3, EVICTED)


def test_an_attempt_that_ended_before_its_metrics_were_read_reports_its_resumption_in_its_result(
    training: Scenario,
) -> None:
    reach(training, 43)
    evict(training)
    result = training.simulated_result(training.request)
    training.finish(result.model_copy(update={"metrics": {"resumedFromStep": 42.0}}))

    training.reconcile()

    assert interruptions_of(training) == (1, 42, 1, "1 preemption; resumed at step 42, 1 step lost")


def test_an_unobserved_interruption_is_counted_when_the_next_attempt_resumes(training: Scenario) -> None:
    reach(training, 43)
    training.evict()
    reach(training, 41, resumed_from=40)
    reach(training, 50, resumed_from=40)

    assert interruptions_of(training) == (1, 40, 3, "1 preemption; resumed at step 40, 3 steps lost")

    training.evict()
    reach(training, 51, resumed_from=50)

    assert interruptions_of(training) == (2, 50, 3, "2 preemptions; resumed at step 50, 3 steps lost")


def test_an_observed_interruption_is_not_counted_again_after_a_restart_of_the_operator(
    training: Scenario,
) -> None:
    reach(training, 43)
    evict(training)
    training.cluster.pods = {name: pod for name, pod in training.cluster.pods.items() if not _has_ended(pod)}
    reach(training, 41, resumed_from=40)

    assert interruptions_of(training) == (1, 40, 3, "1 preemption; resumed at step 40, 3 steps lost")


def test_an_interruption_counts_even_if_its_nodes_clock_is_behind(training: Scenario) -> None:
    reach(training, 43)
    evict(training)
    training.cluster.now += timedelta(minutes=1)
    behind = "2026-11-24T07:00:00Z"
    training.end_pod(lambda pod: replace(pod, now=behind).ended(137).disrupted())

    training.reconcile()
    training.reconcile()

    assert interruptions_of(training)[0] == 2


def test_an_attempt_of_an_earlier_job_with_the_same_name_is_not_an_interruption(training: Scenario) -> None:
    earlier = PodBuilder(training.live_job, "earlier", training.cluster.timestamp(), job_uid="of-an-earlier-job")
    training.cluster.pods["earlier"] = earlier.ended(ExitCode.INTERRUPTED).build()

    training.reconcile()

    assert interruptions_of(training) == (0, None, None, "")


def test_a_failed_attempt_is_not_an_interruption(training: Scenario) -> None:
    reach(training, 43)
    training.end_pod(lambda pod: pod.ended(ExitCode.TRANSIENT))
    training.cluster.start_pod(training.live_job)
    reach(training, 41, resumed_from=40)

    assert interruptions_of(training)[:3] == (0, 40, 3)


def test_progress_is_kept_between_attempts_and_removed_when_the_stage_ends(training: Scenario) -> None:
    reach(training, 43)
    evict(training)
    kept = training.status.progress
    training.finish()
    training.reconcile()

    assert kept is not None
    assert kept.step == 43
    assert training.status.progress is None


def test_a_training_restarted_by_an_edit_has_lost_no_steps(training: Scenario) -> None:
    reach(training, 43)
    training.change(training.builder.edited("lora.rank", 8))
    training.cluster.progress = None
    training.reconcile()
    training.advance_to(Stage.TRAIN)

    reach(training, 1)

    assert interruptions_of(training) == (0, None, None, "")


def test_an_edit_after_the_job_was_removed_starts_without_the_old_progress(training: Scenario) -> None:
    reach(training, 43)
    training.cluster.progress = None
    training.cluster.remove_job(training.live_job)
    training.change(training.builder.edited("lora.rank", 8))

    training.advance_to(Stage.TRAIN)

    assert training.row(Stage.TRAIN).job == training.live_job
    assert training.status.progress is None


def test_an_interruption_of_another_stage_is_reported_without_steps() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.EVALUATE)
    scenario.end_pod(lambda pod: pod.ended(143).disrupted())
    scenario.cluster.start_pod(scenario.live_job)

    scenario.reconcile()

    row = scenario.row(Stage.EVALUATE)
    assert (row.reason, row.message) == ("Resumed", "1 preemption")


def test_a_training_reports_in_its_metrics_the_step_from_which_it_resumed() -> None:
    from prometheus_client import generate_latest

    metrics = TrainingMetrics("team-a", "sensor-faults")
    metrics.observe(ProgressUpdate(43, 200, "steps", {"loss": 0.41, "resumedFromStep": 40.0, "startTimeSeconds": 0.0}))

    progress = parse_metrics(generate_latest(metrics._registry).decode(), "pod-2")

    assert progress == ProgressStatus(
        stage=Stage.TRAIN,
        step=43,
        total_steps=200,
        loss=0.41,
        pod="pod-2",
        resumed_from=40,
        started_at="1970-01-01T00:00:00Z",
    )


def test_the_start_of_a_stage_takes_one_status_write_and_one_more_if_it_has_a_gpu(training: Scenario) -> None:
    writes = training.cluster.status_writes

    training.reconcile()
    training.reconcile()

    assert training.cluster.status_writes == writes + 1
    assert (training.row(Stage.TRAIN).attempts, training.row(Stage.TRAIN).reason) == (1, "JobRunning")


def test_the_start_of_an_ended_stage_is_that_in_its_jobs_status(training: Scenario) -> None:
    job = training.cluster.jobs[training.live_job]
    training.finish()
    training.reconcile()

    assert training.row(Stage.TRAIN).started_at == job["status"]["startTime"]


def test_a_failed_stage_keeps_its_message_when_its_pods_are_gone(training: Scenario) -> None:
    digest = training.request.digest
    failed = failed_result(Stage.TRAIN, digest, ExitCode.DIVERGED, "TrainingDiverged", "loss is nan at step 3")
    training.end_pod(lambda pod: pod.ended(ExitCode.DIVERGED, failed.encode().decode()))
    training.end_job(lambda job: job.failed("PodFailurePolicy"))
    training.reconcile()
    training.cluster.pods.clear()

    done = training.reconcile()

    assert done.wrote_status is False
    assert training.row(Stage.TRAIN).message == "loss is nan at step 3"
