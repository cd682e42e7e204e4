"""Simulates what Kueue does to the live Job of a scenario."""

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.profiles.queue import Queue
from support.builders import failed_result
from support.scenario import PROFILE, Scenario
from support.workloads import INSUFFICIENT, PREEMPTED, pending, workload

QUEUED = PROFILE.model_copy(update={"queue": Queue(name="gpu", priorities=("low", "high"))})


def suspend(scenario: Scenario, *conditions: tuple[str, bool, str, str]) -> str:
    """Kueue suspends the live Job, whose Pod is gone; returns the Job's name."""
    name = scenario.live_job
    job = scenario.cluster.jobs[name]
    job["spec"]["suspend"] = True
    job["status"] = {}
    for pod in scenario.cluster.pods_of(name):
        del scenario.cluster.pods[pod]
    uid = job["metadata"]["uid"]
    scenario.cluster.workloads[uid] = workload(uid, *conditions)
    return name


def admit(scenario: Scenario, name: str = "") -> None:
    """Kueue admits the live Job, or the one with this name, whose Pod runs."""
    name = name or scenario.live_job
    job = scenario.cluster.jobs[name]
    job["spec"]["suspend"] = False
    job["status"] = {"startTime": scenario.cluster.timestamp()}
    scenario.cluster.workloads.clear()
    scenario.cluster.start_pod(name)


def stop_by_queue(scenario: Scenario, started: bool = True) -> None:
    """The live Job's Pod ends while the Job is suspended."""
    name = scenario.live_job
    job = scenario.cluster.jobs[name]
    digest = scenario.request.digest
    job["spec"]["suspend"] = True
    job["status"] = {}
    result = failed_result(Stage.TRAIN, digest, ExitCode.INTERRUPTED, "Interrupted", "stopped", step=40)
    if started:
        scenario.end_pod(lambda pod: pod.ended(ExitCode.INTERRUPTED, result.encode().decode()))
    else:
        scenario.end_pod(lambda pod: pod.failed_by_kubelet("", ""))
    (pod,) = scenario.cluster.pods_of(name)
    scenario.cluster.pods[pod]["metadata"]["deletionTimestamp"] = scenario.cluster.timestamp()
    uid = job["metadata"]["uid"]
    scenario.cluster.workloads[uid] = workload(uid, ("Evicted", True, "Preempted", PREEMPTED), pending(INSUFFICIENT))
