"""Pods with a container that outlives the stage, with a real API server, Job controller and garbage collector."""

from typing import Any

import pytest

from cluster.processes import wait_for
from edgetune_contract.stages import ExitCode, Stage
from support.builders import failed_result
from support.kube import pod_ended
from support.scenario import request_of
from support.stage_player import StagePlayer

pytestmark = pytest.mark.slow


def outlived(status: dict[str, Any], *, native: bool) -> dict[str, Any]:
    """The status of an ended Pod, with a container of a service mesh that is still running."""
    state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    proxy = {"name": "istio-proxy", "image": "", "imageID": "", "ready": True, "restartCount": 0, "state": state}
    if native:
        return {**status, "phase": "Running", "initContainerStatuses": [proxy]}
    return {**status, "phase": "Running", "containerStatuses": [*status["containerStatuses"], proxy]}


def is_deleted(player: StagePlayer, job: dict[str, Any]) -> bool:
    uid = job["metadata"]["uid"]
    return all(found["metadata"]["uid"] != uid or "deletionTimestamp" in found["metadata"] for found in player.jobs())


@pytest.mark.parametrize("native", [False, True], ids=["sidecar", "native sidecar"])
def test_the_job_of_a_stage_that_is_done_goes_although_its_pod_lives_on(player: StagePlayer, native: bool) -> None:
    player.apply()
    job, pod = player.live_pod(Stage.PREPARE)
    result = player.stages.simulated_result(request_of(job))

    player.end_pod(pod, outlived(pod_ended(0, result.encode().decode()), native=native))
    player.live_pod(Stage.TRAIN)
    assert wait_for(lambda: is_deleted(player, job), 60)

    name = job["metadata"]["name"]
    row = player.row(Stage.PREPARE)
    assert row["state"] == "Succeeded"
    assert row["message"] == f"done; Job {name} was deleted because its Pod is still running container istio-proxy"


def test_an_invalid_request_is_final_although_its_pod_lives_on(player: StagePlayer) -> None:
    player.apply()
    job, pod = player.live_pod(Stage.PREPARE)
    failed = failed_result(Stage.PREPARE, request_of(job).digest, ExitCode.INVALID, "InvalidInput", "train.jsonl:3")

    player.end_pod(pod, outlived(pod_ended(ExitCode.INVALID, failed.encode().decode()), native=False))
    stalled = player.wait_for_condition("Stalled", "InvalidInput")
    assert wait_for(lambda: is_deleted(player, job), 60)

    assert stalled["message"] == "prepare: train.jsonl:3"


def test_a_transient_failure_is_retried_although_its_pod_lives_on(player: StagePlayer) -> None:
    player.apply(retryLimit=1)
    job, pod = player.live_pod(Stage.PREPARE)
    failed = failed_result(Stage.PREPARE, request_of(job).digest, ExitCode.TRANSIENT, "TransientError", "bucket away")

    player.end_pod(pod, outlived(pod_ended(ExitCode.TRANSIENT, failed.encode().decode()), native=False))
    assert wait_for(lambda: is_deleted(player, job), 60)
    player.remove_pod(pod)
    again, _ = player.live_pod(Stage.PREPARE)
    player.finish_from(Stage.PREPARE)

    player.wait_for_phase("Succeeded")
    assert again["metadata"]["uid"] != job["metadata"]["uid"]
    assert again["spec"]["backoffLimit"] == 0
    assert player.row(Stage.PREPARE)["attempts"] == 2
