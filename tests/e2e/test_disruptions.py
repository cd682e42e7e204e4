"""Disruptions: evictions, suspension, a killed operator. None of them uses up retries."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.choice import AnyCluster
from edgetune_contract.digest import checkpoints_key
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from support.kube import Document, Kube, audit_events
from support.live_object import LiveObject
from support.tiny_inputs import tiny_fine_tune
from support.versitygw import S3Server

from .conftest import Durations, InstalledOperator

# The run with outages of its S3 server mostly waits for minutes: it runs in parallel with these tests.
pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("unsteady_run")]
STEPS = 240
EVERY_STEPS = 10


@dataclass(frozen=True)
class Disturbed:
    """Observations of a run that was evicted once and whose operator was killed three times."""

    object: LiveObject
    status: Document
    evicted_at_step: int
    """Step in the status just before the eviction."""

    second_attempt: list[Any]
    """Lines that the second train Pod printed."""

    creations: Counter[str]
    """Number of creations of each Job by name, from the API server's audit log."""


@pytest.fixture(scope="module")
def disturbed(
    cluster: AnyCluster, kube: Kube, s3: S3Server, namespace: str, operator: InstalledOperator, durations: Durations
) -> Iterator[Disturbed]:
    training = {"maxSteps": STEPS, "checkpoint": {"everySteps": EVERY_STEPS}}
    run = LiveObject.apply(kube, tiny_fine_tune(s3, namespace, "disturbed", training=training, profile="slow"))
    with durations.timed("a run with an eviction and three kills of the operator"):
        run.wait_for_pod(Stage.PREPARE)
        operator.kill()

        run.wait_for_step(EVERY_STEPS)
        operator.kill()
        operator.wait_until_ready()
        first = run.wait_for_pod(Stage.TRAIN)["metadata"]["name"]
        evicted_at_step = run.wait_for_step(run.wait_for_step(1) + 2 * EVERY_STEPS)
        kube.evict(namespace, first)
        run.wait_for_pod(Stage.TRAIN, other_than=first)

        run.wait_for_pod(Stage.EVALUATE)
        operator.kill()
        status = run.wait_for_end()
    second = run.lines(run.pods(Stage.TRAIN)[0]["metadata"]["name"])
    yield Disturbed(run, status, evicted_at_step, second, _creations(cluster, run))
    run.delete()


def test_an_evicted_training_resumes_at_the_step_after_its_checkpoint(s3: S3Server, disturbed: Disturbed) -> None:
    assert disturbed.status["phase"] == "Succeeded", disturbed.status
    said = [line["say"] for line in disturbed.second_attempt if "say" in line]
    resumed = next(sentence for sentence in said if sentence.startswith("resuming training"))
    step = int(resumed.removeprefix("resuming training from the checkpoint of step "))
    assert disturbed.evicted_at_step <= step < STEPS
    trained = [line["progress"]["done"] for line in disturbed.second_attempt if "progress" in line]
    assert (trained[0], trained[-1]) == (step + 1, STEPS)

    row = disturbed.object.row(Stage.TRAIN)
    assert (row["resumedFrom"], row["metrics"]["steps"]) == (step, STEPS)
    checkpoints = f"artifacts/{disturbed.object.namespace}/{checkpoints_key(row['digest'])}"
    assert not s3.object_path(checkpoints).exists(), "checkpoints are removed after the training"


def test_an_eviction_is_a_preemption_not_an_attempt_and_loses_no_step(disturbed: Disturbed) -> None:
    row = disturbed.object.row(Stage.TRAIN)
    assert (row["preemptions"], row["attempts"], row["lostSteps"]) == (1, 1, 0)
    assert len(disturbed.object.events("TrainInterrupted")) == 1


def test_an_operator_killed_three_times_creates_each_job_once(disturbed: Disturbed) -> None:
    jobs = {row["name"]: row["job"] for row in disturbed.status["stages"]}
    assert list(jobs) == list(Stage)
    assert disturbed.creations == dict.fromkeys(jobs.values(), 1)


def test_a_suspended_training_resumes_from_its_checkpoint(
    kube: Kube, s3: S3Server, namespace: str, operator: InstalledOperator
) -> None:
    del operator  # only required to be installed
    training = {"maxSteps": STEPS, "seed": 7, "checkpoint": {"everySteps": EVERY_STEPS}}
    run = LiveObject.apply(kube, tiny_fine_tune(s3, namespace, "suspended", training=training, profile="slow"))
    step = run.wait_for_step(EVERY_STEPS)
    run.patch({"suspend": True})
    run.wait(lambda status: status["phase"] == "Suspended" and not run.jobs(Stage.TRAIN), "its Job is gone")

    run.patch({"suspend": False})
    pod = run.wait_for_pod(Stage.TRAIN)["metadata"]["name"]
    assert run.wait_for_step(step + 1) < STEPS
    said = [line["say"] for line in run.lines(pod) if "say" in line]
    assert any(sentence.startswith("resuming training from the checkpoint of step ") for sentence in said), said

    run.delete()
    kube.wait_until_gone("v1", "Pod", namespace, f"{names.OWNER_LABEL}=suspended", limit_seconds=180)


def _creations(cluster: AnyCluster, run: LiveObject) -> Counter[str]:
    events = [event for event in audit_events(cluster.audit_log()) if event["verb"] == "create"]
    created = [event["objectRef"] for event in events if event["responseStatus"]["code"] == 201]
    ours = [target for target in created if (target["resource"], target.get("namespace")) == ("jobs", run.namespace)]
    return Counter(target["name"] for target in ours if target["name"].startswith(f"{run.name}-"))
