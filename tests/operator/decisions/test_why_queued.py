"""Why a Job waits: each cause that Kueue names has its own reason and words."""

from typing import Any

import pytest

from edgetune_operator.decisions.causes.queueing import observe_workloads, why_queued
from support.workloads import INSUFFICIENT, PREEMPTED, SINCE, TOO_SMALL, pending, workload


@pytest.mark.parametrize(
    ("found", "reason", "message"),
    [
        (
            workload("1", pending(f"couldn't assign flavors to pod set main: {INSUFFICIENT}")),
            "Queued",
            f"waits in queue gpu since 2026-11-24T08:00:00Z: {INSUFFICIENT}",
        ),
        (
            workload("1"),
            "Queued",
            "waits in queue gpu since 2026-11-24T08:00:00Z: not considered yet, others are ahead of it",
        ),
        (
            workload("1", ("Evicted", True, "Preempted", PREEMPTED), pending(PREEMPTED)),
            "Preempted",
            "preempted by a workload of ClusterQueue team-b: prioritization in the ClusterQueue; waits in queue gpu "
            f"since {SINCE}",
        ),
        (
            workload("1", ("Evicted", True, "Preempted", PREEMPTED), pending(INSUFFICIENT)) | {"preemptor": "urgent"},
            "Preempted",
            "preempted by urgent: prioritization in the ClusterQueue; waits in queue gpu since "
            f"{SINCE}: {INSUFFICIENT}",
        ),
        (
            workload("1", ("Evicted", True, "PodsReadyTimeout", "Exceeded the PodsReady timeout"), pending("")),
            "Evicted",
            f"evicted by Kueue: Exceeded the PodsReady timeout; waits in queue gpu since {SINCE}",
        ),
        (
            workload("1", pending("LocalQueue gpu doesn't exist", "Inadmissible")),
            "QueueNotFound",
            "LocalQueue gpu of namespace team-a not found; create it, or correct queue.name in the profile",
        ),
        (
            workload("1", pending("ClusterQueue all is inactive", "Inadmissible")),
            "QueueInactive",
            "LocalQueue gpu of namespace team-a admits nothing: ClusterQueue all is inactive; ask the platform team",
        ),
        (
            workload("1", pending("Workload namespace doesn't match ClusterQueue selector")),
            "QueueRefuses",
            "LocalQueue gpu of namespace team-a: its ClusterQueue does not admit this namespace: Workload namespace "
            "doesn't match ClusterQueue selector",
        ),
        (
            workload("1", pending(f"couldn't assign flavors to pod set main: {TOO_SMALL}")),
            "QueueTooSmall",
            f"LocalQueue gpu of namespace team-a can never admit this stage: {TOO_SMALL}; request less in the profile, "
            "or raise the queue's quota",
        ),
        (
            workload("1", pending(f"insufficient unused quota for cpu in flavor h100, 2 more needed, {TOO_SMALL}")),
            "QueueTooSmall",
            "LocalQueue gpu of namespace team-a can never admit this stage: insufficient unused quota for cpu in "
            f"flavor h100, 2 more needed, {TOO_SMALL}; request less in the profile, or raise the queue's quota",
        ),
        (
            workload("1", pending(f"{TOO_SMALL}, {INSUFFICIENT}")),
            "Queued",
            f"waits in queue gpu since 2026-11-24T08:00:00Z: {TOO_SMALL}, {INSUFFICIENT}",
        ),
        (
            workload("1", pending("resource nvidia.com/gpu unavailable in ClusterQueue")),
            "QueueTooSmall",
            "LocalQueue gpu of namespace team-a can never admit this stage: resource nvidia.com/gpu unavailable in "
            "ClusterQueue; request less in the profile, or raise the queue's quota",
        ),
        (
            workload("1", active=False),
            "WorkloadDeactivated",
            "its Workload job-x is deactivated; set spec.active of the Workload to true, and the stage continues by "
            "itself",
        ),
    ],
)
def test_each_cause_has_its_own_reason_and_words(found: dict[str, Any], reason: str, message: str) -> None:
    (observed,) = observe_workloads([found]).values()

    assert why_queued("gpu", "team-a", observed, None) == (reason, message)
