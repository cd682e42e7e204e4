"""Kueue's Workloads of stages' Jobs, as the watch keeps them."""

from typing import Any

from edgetune_operator.api.names import Key
from edgetune_operator.cluster.workloads import Workloads
from edgetune_operator.decisions.causes.queueing import observe_workloads

JOB, OTHER_JOB, FOREIGN_JOB = (f"{digit * 8}-0000-0000-0000-000000000000" for digit in "123")
KEYS = {
    JOB: Key("team-a", "sensor-faults"),
    OTHER_JOB: Key("team-a", "urgent"),
    FOREIGN_JOB: Key("team-b", "secret-project"),
}
NAME = "sensor-faults-train-0123456789"


def body(job: str = JOB, owner: str = NAME, preemptor: str = "", version: str = "1") -> dict[str, Any]:
    """A Workload of a Job; `preemptor`: UID of the Job that preempted it."""
    message = f"Preempted to accommodate a workload (UID: 9, JobUID: {preemptor}) due to prioritization"
    conditions = [{"type": "Evicted", "status": "True", "reason": "Preempted", "message": message}] if preemptor else []
    return {
        "metadata": {
            "name": f"job-{owner}-abcde",
            "namespace": "team-a",
            "uid": f"uid-{version}",
            "creationTimestamp": "2026-11-24T08:00:00Z",
            "labels": {"kueue.x-k8s.io/job-uid": job},
            "ownerReferences": [{"kind": "Job", "name": owner, "uid": job, "controller": True}],
        },
        "spec": {"queueName": "gpu", "active": True, "podSets": [{"template": {}}]},
        "status": {"conditions": conditions},
    }


def kept() -> tuple[Workloads, list[Key]]:
    """Workloads, and the keys of the objects that they wake."""
    woken: list[Key] = []
    return Workloads(KEYS.get, woken.append), woken


def test_the_object_is_woken_only_by_what_a_pass_would_see() -> None:
    workloads, woken = kept()

    workloads.take("ADDED", body())
    same = body()
    same["spec"]["podSets"] = []
    workloads.take("MODIFIED", same)
    changed = body()
    changed["spec"]["active"] = False
    workloads.take("MODIFIED", changed)

    assert woken == [KEYS[JOB]] * 2
    assert not observe_workloads(workloads.of("team-a", [JOB]))[JOB].is_active


def test_workloads_of_other_jobs_are_not_kept() -> None:
    workloads, woken = kept()

    workloads.take("ADDED", body(owner="somebody-elses"))
    without_owner = body()
    without_owner["metadata"]["ownerReferences"] = []
    workloads.take("ADDED", without_owner)

    assert (len(workloads), woken) == (0, [])


def test_a_deleted_workload_is_forgotten_unless_another_has_taken_its_place() -> None:
    workloads, _ = kept()
    workloads.take("ADDED", body(version="1"))
    workloads.take("ADDED", body(version="2"))

    workloads.take("DELETED", body(version="1"))
    after_the_old_one = len(workloads)
    workloads.take("DELETED", body(version="2"))

    assert (after_the_old_one, len(workloads)) == (1, 0)


def test_a_preemptor_is_named_only_within_its_namespace() -> None:
    workloads, _ = kept()

    workloads.take("ADDED", body(preemptor=OTHER_JOB))
    (own,) = workloads.of("team-a", [JOB])
    workloads.take("MODIFIED", body(preemptor=FOREIGN_JOB))
    (foreign,) = workloads.of("team-a", [JOB])

    assert (own["preemptor"], foreign["preemptor"]) == ("urgent", "")


def test_a_workload_of_another_namespace_cannot_speak_for_a_job() -> None:
    workloads, _ = kept()
    workloads.take("ADDED", body())
    forged = body(version="2")
    forged["metadata"]["namespace"] = "team-b"
    forged["spec"]["active"] = False

    workloads.take("ADDED", forged)

    (own,) = workloads.of("team-a", [JOB])
    assert own["spec"]["active"]


def test_messages_are_bounded() -> None:
    workloads, _ = kept()
    long = body()
    long["status"]["conditions"] = [{"type": "QuotaReserved", "status": "False", "message": "x" * 100_000}]

    workloads.take("ADDED", long)

    (observed,) = observe_workloads(workloads.of("team-a", [JOB])).values()
    assert observed.cause == "x" * 1024
