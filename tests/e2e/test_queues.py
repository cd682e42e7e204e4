"""Two teams whose queues share one GPU, with a real Kueue: what only a node can show of preemption and hold.

One training lives through all of it, in the order of the tests. Its team owns no GPU and borrows the other team's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from cluster import kueue, playground
from cluster.choice import AnyCluster
from cluster.controlplane import ControlPlane
from cluster.lifecycle import Cluster
from cluster.node import GPU, RUNTIME_WITHOUT_GPUS
from cluster.processes import wait_for
from edgetune_contract.digest import stage_key
from edgetune_contract.stages import Stage
from support.container_times import ContainerTimes
from support.kube import Document, Kube
from support.live_object import LiveObject
from support.queue_player import PRIORITIES, QUEUE, add_cluster_queue, add_flavor, add_local_queue
from support.tiny_inputs import tiny_fine_tune
from support.versitygw import S3Server

from .conftest import Durations, InstalledOperator, team

pytestmark = pytest.mark.e2e
STEPS = 240
EVERY_STEPS = 20
SHORT = {"maxSteps": 5, "checkpoint": {"everySteps": 5}}
BORROWING, OWNING = "borrowing", "owning"
PREEMPTIONS = 3


@pytest.fixture(scope="module")
def plane(cluster: AnyCluster) -> ControlPlane:
    """The control plane, if Kueue's controller can run beside it."""
    if not isinstance(cluster, Cluster):
        pytest.skip("kind's API server runs in a container: it does not reach the webhooks of a process")
    return cluster.plane


@dataclass(frozen=True)
class Teams:
    """Objects of two teams: the one that borrows the GPU has two, the one that owns it has one."""

    borrower: LiveObject
    urgent: LiveObject
    """A short training of the borrowing team, which first waits behind the other one."""

    owner: LiveObject
    """A short training of the owning team; its priority class is missing at first."""

    times: ContainerTimes


@pytest.fixture(scope="module")
def teams(
    plane: ControlPlane, kube: Kube, s3: S3Server, operator: InstalledOperator, durations: Durations
) -> Iterator[Teams]:
    with durations.timed("start of Kueue"):
        kueue.start(plane)
    _set_up(kube)
    operator.add_profile("queued", _profile(operator.cluster))
    times = ContainerTimes(kube)
    times.start()
    with team(kube) as first, team(kube) as second:
        add_local_queue(kube, first, BORROWING)
        add_local_queue(kube, second, OWNING)
        queued = {"profile": "queued", "priority": "low"}
        long = {"maxSteps": STEPS, "checkpoint": {"everySteps": EVERY_STEPS}}
        with durations.timed("a training that is preempted, reclaimed, held and drained"):
            borrower = LiveObject.apply(kube, tiny_fine_tune(s3, first, "borrower", training=long, **queued))
            borrower.wait_for_job(Stage.TRAIN)  # it is first in the queue
            short = {"training": SHORT, **queued}
            urgent = tiny_fine_tune(s3, first, "urgent", **short, deletionPolicy="Delete")
            owner = tiny_fine_tune(s3, second, "owner", **{**short, "priority": "unknown"})
            yield Teams(borrower, LiveObject.apply(kube, urgent), LiveObject.apply(kube, owner), times)


def test_a_missing_priority_holds_a_training_up(teams: Teams) -> None:
    message = teams.owner.wait_for_reason("Reconciling", "PriorityClassNotFound")

    assert message.startswith("train: WorkloadPriorityClass unknown not found; create it, or correct spec.priority")
    assert _phase_and_progress(teams.owner) == ("Queued", "PriorityClassNotFound")


def test_a_training_that_waits_says_in_which_queue_why_and_since_when(kube: Kube, teams: Teams) -> None:
    urgent = teams.urgent
    job = urgent.wait_for_job(Stage.TRAIN)

    _set_stop_policy(kube, "None")
    message = urgent.wait_for_reason("Reconciling", "Queued", "insufficient unused quota")

    waits, _, cause = message.removeprefix("train: waits in queue gpu since ").partition(": ")
    assert waits >= job["metadata"]["creationTimestamp"]
    assert cause == "insufficient unused quota for nvidia.com/gpu in flavor l4, 1 more needed"
    assert _phase_and_progress(urgent) == ("Queued", "Queued")
    assert urgent.events("TrainStarted") == []


def test_a_higher_priority_preempts_a_training_which_resumes(teams: Teams) -> None:
    borrower, urgent = teams.borrower, teams.urgent
    step = borrower.wait_for_step(EVERY_STEPS)

    urgent.patch({"priority": "high"})
    message = borrower.wait_for_reason("Reconciling", "Preempted", "waits in queue gpu since")

    assert message.startswith("train: preempted by urgent: prioritization in the ClusterQueue; waits in queue gpu")
    assert _phase_and_progress(borrower) == ("Queued", "Preempted")
    _wait_for_a_training_and_suspend(urgent)
    assert _resumed_from(borrower) >= step


def test_lent_quota_is_reclaimed_from_a_training_which_resumes(teams: Teams) -> None:
    borrower, owner = teams.borrower, teams.owner
    step = borrower.wait_for_step(_resumed_from(borrower) + 1)

    owner.patch({"priority": "low"})
    message = borrower.wait_for_reason("Reconciling", "Preempted", "reclamation")

    assert message.startswith("train: preempted by a workload of ClusterQueue owning: reclamation within the cohort")
    assert owner.namespace not in message
    assert _phase_and_progress(borrower) == ("Queued", "Preempted")
    _wait_for_a_training_and_suspend(owner)
    assert _resumed_from(borrower) >= step


def test_while_kueue_is_down_a_stage_says_why_it_has_no_job_and_a_training_runs_on(
    plane: ControlPlane, teams: Teams
) -> None:
    borrower, owner = teams.borrower, teams.owner
    with _stopped_kueue(plane):
        owner.patch({"suspend": False})
        message = owner.wait_for_reason("Reconciling", "JobRefused")
        borrower.wait_for_step(_resumed_from(borrower) + 1)

    assert message.startswith(
        'merge: the cluster refuses the Job: Internal error occurred: failed calling webhook "mjob.kb.io"'
    )
    assert _phase_and_progress(owner) == ("Merging", "JobRefused")


def test_a_held_and_drained_queue_stops_a_training_and_says_so(kube: Kube, teams: Teams) -> None:
    borrower = teams.borrower

    _set_stop_policy(kube, "HoldAndDrain")
    message = borrower.wait_for_reason("Reconciling", "QueueOnHold")

    assert message.startswith(f"train: an administrator holds ClusterQueue {BORROWING}; waits in it since ")
    assert _phase_and_progress(borrower) == ("Queued", "QueueOnHold")
    kube.wait_until_gone("v1", "Pod", borrower.namespace, borrower.selector(Stage.TRAIN))


def test_a_deleted_object_is_cleaned_up_under_a_held_queue(s3: S3Server, teams: Teams) -> None:
    urgent = teams.urgent
    adapter = f"artifacts/{urgent.namespace}/{stage_key(Stage.TRAIN, urgent.row(Stage.TRAIN)['digest'])}"
    assert s3.object_path(adapter).exists()

    urgent.delete()
    urgent.wait_until_gone()

    assert not s3.object_path(adapter).exists()
    # Events are sent behind the pass that removes the finalizer.
    assert wait_for(lambda: len(urgent.events("CleanedUp")) == 1, 30)


def test_the_training_completes_from_its_checkpoint_and_has_lost_no_step(kube: Kube, teams: Teams) -> None:
    borrower = teams.borrower
    _set_stop_policy(kube, "None")

    row = borrower.wait_for_stage(Stage.TRAIN)

    assert (row["attempts"], row["preemptions"], row["lostSteps"]) == (1, PREEMPTIONS, 0)
    assert row["metrics"]["steps"] == STEPS
    assert row["resumedFrom"] > EVERY_STEPS
    assert len(borrower.events("TrainStarted")) == PREEMPTIONS + 1
    assert [message.partition(";")[0] for message in borrower.events("TrainInterrupted")] == [
        "preempted by urgent: prioritization in the ClusterQueue",
        f"preempted by a workload of ClusterQueue {OWNING}: reclamation within the cohort",
        f"an administrator holds ClusterQueue {BORROWING}",
    ]


def test_gpu_seconds_are_those_of_the_kubelet(teams: Teams) -> None:
    for run, attempts in ((teams.borrower, PREEMPTIONS + 1), (teams.owner, 1)):
        assert wait_for(partial(_are_recorded, teams.times, run, attempts), 10)
        used = run.status()["gpu"]["total"]
        assert used["seconds"] == pytest.approx(sum(teams.times.of(run)), abs=1)
        assert (used["estimatedSeconds"], used["failedSeconds"], used["repeatedSeconds"]) == (0, 0, 0)


def test_a_stage_continues_once_kueue_is_back(teams: Teams) -> None:
    teams.owner.wait_for_job(Stage.MERGE)


def _set_up(kube: Kube) -> None:
    """A cohort of two queues for one GPU, which only one of them owns."""
    metadata = {"name": RUNTIME_WITHOUT_GPUS}
    kube.apply(
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": metadata, "handler": RUNTIME_WITHOUT_GPUS}
    )
    add_flavor(kube)
    preemption = {
        "withinClusterQueue": "LowerPriority",
        "reclaimWithinCohort": "Any",
        # Without this, a queue preempts nothing for a training that needs a borrowed GPU.
        "borrowWithinCohort": {"policy": "LowerPriority"},
    }
    # Held at first, so that the training runs only once the others wait for it.
    add_cluster_queue(kube, BORROWING, gpus=0, cohortName="research", preemption=preemption, stopPolicy="Hold")
    add_cluster_queue(kube, OWNING, gpus=1, cohortName="research")


def _profile(cluster: AnyCluster) -> Document:
    """A profile whose trainings wait for GPUs, and run without one."""
    profile = playground.profile(cluster.object_store.endpoint)
    small: Document = profile["resources"][Stage.PREPARE]
    training = {kind: {**amounts, GPU: 1} for kind, amounts in small.items()}
    return {
        **profile,
        "resources": {**profile["resources"], Stage.TRAIN: training},
        "runtimeClassName": RUNTIME_WITHOUT_GPUS,
        "queue": {"name": QUEUE, "priorities": [*PRIORITIES, "unknown"]},
    }


def _set_stop_policy(kube: Kube, policy: str) -> None:
    kube.merge(kueue.API_VERSION, "ClusterQueue", None, BORROWING, {"spec": {"stopPolicy": policy}})


@contextmanager
def _stopped_kueue(plane: ControlPlane) -> Iterator[None]:
    kueue.stop(plane)
    try:
        yield
    finally:
        kueue.resume(plane)


def _wait_for_a_training_and_suspend(run: LiveObject) -> None:
    """Wait until an object's training is done; the stages after it would take the time of the tests."""
    run.wait_for_stage(Stage.TRAIN)
    run.patch({"suspend": True})


def _resumed_from(run: LiveObject) -> int:
    """The step from which a training has resumed, once its newest attempt has said it."""

    def step(status: Document) -> int | None:
        rows: list[Document] = [row for row in status["stages"] if row["name"] == Stage.TRAIN]
        row = rows[0]
        return row.get("resumedFrom") if row.get("state") == "Running" else None

    return step(run.wait(lambda status: step(status) is not None, "its training has resumed")) or 0


def _are_recorded(times: ContainerTimes, run: LiveObject, attempts: int) -> bool:
    return len(times.of(run)) == attempts


def _phase_and_progress(run: LiveObject) -> tuple[str, str]:
    """What `kubectl get` shows."""
    columns = run.columns()
    return columns["Phase"], columns["Progress"]
