"""Workloads of Kueue as the watch keeps them, with the words of Kueue 0.18."""

from typing import Any

SINCE = "2026-11-24T08:00:20Z"
INSUFFICIENT = "insufficient unused quota for nvidia.com/gpu in flavor l4, 1 more needed"
TOO_SMALL = (
    "insufficient quota for nvidia.com/gpu in flavor h100, previously considered podsets requests (0) + current podset "
    "request (1) > maximum capacity (0)"
)
PREEMPTED = (
    "Preempted to accommodate a workload (UID: 1, JobUID: 2) due to prioritization in the ClusterQueue; "
    "preemptor path: /research/team-b; preemptee path: /research/team-a"
)


def workload(job: str, *conditions: tuple[str, bool, str, str], **fields: Any) -> dict[str, Any]:
    """A Workload as the watch keeps it; each condition has type, status, reason and message."""
    found = [
        {"type": each, "status": str(is_true), "reason": reason, "message": message, "lastTransitionTime": SINCE}
        for each, is_true, reason, message in conditions
    ]
    metadata = {"name": "job-x", "uid": "1", "creationTimestamp": "2026-11-24T08:00:00Z"}
    spec = {"queueName": "gpu", **fields}
    return {"job": job, "metadata": metadata, "spec": spec, "status": {"conditions": found}}


def pending(message: str, reason: str = "Pending") -> tuple[str, bool, str, str]:
    """The condition of a Workload without quota."""
    return ("QuotaReserved", False, reason, message)
