"""A training that MultiKueue runs in another cluster: its Job's status is mirrored, and there is no Pod."""

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator.api.status.object_status import Phase
from edgetune_operator.api.status.stage_status import StageState
from support.builders import lora_fine_tune
from support.queueing import QUEUED, suspend
from support.scenario import Scenario, created
from support.workloads import INSUFFICIENT, pending


@pytest.fixture
def scenario() -> Scenario:
    """An object whose training has run in another cluster."""
    found = Scenario(lora_fine_tune(), QUEUED)
    found.advance_to(Stage.TRAIN)
    training = found.cluster.jobs[suspend(found, pending(INSUFFICIENT))]
    training["spec"] |= {"managedBy": "kueue.x-k8s.io/multikueue", "suspend": False}
    training["status"] = {"startTime": found.cluster.timestamp(), "active": 1}
    found.reconcile()
    assert (found.row(Stage.TRAIN).state, found.row(Stage.TRAIN).started_at) == (
        StageState.RUNNING,
        training["status"]["startTime"],
    )
    found.simulated_result(found.request)
    found.end_job(lambda job: job.complete(found.cluster.timestamp()))
    return found


def test_the_result_of_a_training_in_another_cluster_is_read_by_prepare(scenario: Scenario) -> None:
    scenario.reconcile()
    waiting = scenario.row(Stage.TRAIN)
    assert created(scenario.reconcile()) == [Stage.PREPARE]
    scenario.finish()
    done = scenario.reconcile()

    assert waiting.message == (
        "the stage ended without a readable result; running prepare again finds its manifest in the store"
    )
    assert (waiting.state, waiting.reason) == (StageState.PENDING, "ResultLost")
    assert (scenario.row(Stage.TRAIN).state, scenario.row(Stage.TRAIN).reason) == (StageState.SUCCEEDED, "Cached")
    assert [artifact.name for artifact in scenario.status.artifacts] == ["prepared", "adapter"]
    assert created(done) == [Stage.MERGE]


def test_a_training_in_another_cluster_without_a_manifest_fails(scenario: Scenario) -> None:
    scenario.manifests.clear()
    scenario.reconcile()
    scenario.reconcile()
    scenario.finish()
    scenario.reconcile()

    assert (scenario.row(Stage.TRAIN).state, scenario.row(Stage.TRAIN).reason) == (StageState.FAILED, "ResultLost")
    assert scenario.status.phase is Phase.FAILED
    assert scenario.cluster.live_jobs() == []
