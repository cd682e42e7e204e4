"""The life of an object on a real control plane: edits, retries, deadlines, removed Jobs, names in use."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from support.kube import condition, pod_ended, pod_running, pod_waiting
from support.scenario import request_of
from support.stage_player import OBJECT, Operator, StagePlayer

pytestmark = pytest.mark.slow

OTHER_DATA = {"train": {"uri": "s3://datasets/other.jsonl"}}
EDITS: dict[Stage, dict[str, Any]] = {
    Stage.PREPARE: {"dataset": OTHER_DATA},
    Stage.TRAIN: {"lora": {"rank": 8}},
    Stage.MERGE: {"merge": {"base": "Original"}},
    Stage.QUANTIZE: {"quantization": {"outlierThreshold": 0}},
    Stage.EVALUATE: {"evaluation": {"maxNewTokens": 64}},
    Stage.PUBLISH: {"evaluation": {"gates": {"minScore": 0.5}}},
}


def eventually(holds: Callable[[], bool], what: str, limit_seconds: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + limit_seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {limit_seconds:.0f} s: {what}"
        time.sleep(0.1)


def uids(player: StagePlayer) -> dict[str, str]:
    """UIDs of the Jobs by name."""
    return {job["metadata"]["name"]: job["metadata"]["uid"] for job in player.jobs()}


@pytest.mark.parametrize("stage", Stage)
def test_an_edit_while_a_stage_runs_replaces_its_job_and_keeps_earlier_stages(
    player: StagePlayer, stage: Stage
) -> None:
    player.apply()
    for earlier in list(Stage)[: list(Stage).index(stage)]:
        player.finish(earlier)
    stale, _ = player.live_pod(stage)
    before = uids(player)

    player.apply(**EDITS[stage])
    eventually(lambda: stale["metadata"]["uid"] not in uids(player).values(), "the stale Job is gone")
    if stage not in (Stage.PREPARE, Stage.PUBLISH):
        looking, pod = player.live_pod(Stage.PREPARE)
        player.finish_pod(looking, pod)
        del before[looking["metadata"]["name"]]
    player.finish_from(stage)

    player.wait_for_phase("Succeeded")
    del before[stale["metadata"]["name"]]
    assert before.items() <= uids(player).items(), "finished stages keep their Jobs"
    ran = [job["metadata"]["labels"][names.STAGE_LABEL] for job in player.jobs()]
    assert sorted(ran) == sorted(Stage), "one Job for each stage, from before or after the edit"


def test_an_edit_of_a_finished_object_reruns_only_what_it_changes(player: StagePlayer) -> None:
    player.apply()
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")
    before = uids(player)

    player.apply(evaluation={"gates": {"minScore": 0.5}})
    player.finish(Stage.PUBLISH)
    player.wait_for_phase("Succeeded")

    added = uids(player).items() - before.items()
    assert [name.rsplit("-", 2)[1] for name, _ in added] == ["publish"]


def test_labels_limits_and_deadlines_rerun_nothing(player: StagePlayer) -> None:
    player.apply()
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")
    before = uids(player)

    player.apply(retryLimit=7, activeDeadlineSeconds=600)
    player.wait(lambda found: found["status"]["observedGeneration"] == 2, "the edit is observed")

    assert player.object["status"]["phase"] == "Succeeded"
    assert uids(player) == before


def test_a_retry_reruns_a_failed_stage_and_is_recorded(player: StagePlayer) -> None:
    player.apply(retryLimit=0)
    player.finish(Stage.PREPARE)
    player.fail(Stage.TRAIN, ExitCode.TRANSIENT, "the store did not answer")
    stalled = player.wait_for_condition("Stalled", "TransientError")

    player.request_retry("again")
    player.finish(Stage.PREPARE)
    player.finish_from(Stage.TRAIN)

    assert stalled["message"] == "train: the store did not answer"
    assert player.wait_for_phase("Succeeded")["status"]["lastHandledRetry"] == "again"


def test_a_retry_while_a_stage_runs_starts_when_it_has_ended(player: StagePlayer) -> None:
    player.apply()
    job, pod = player.live_pod(Stage.PREPARE)
    # The stage is observed to run once nothing holds it up: while it waits, a retry would start at once.
    player.end_pod(pod, pod_waiting("ImagePullBackOff"))
    player.wait_for_condition("Reconciling", "ImagePullBackOff")
    player.end_pod(pod, pod_running())
    player.wait_for_condition("Reconciling", "JobRunning")
    player.request_retry("early")

    message = "prepare: running; the requested retry starts when this stage has ended"
    player.wait(lambda found: (condition(found, "Ready") or {}).get("message") == message, "the retry waits")
    handled = player.object["status"].get("lastHandledRetry")
    result = player.stages.simulated_result(request_of(job))
    player.end_pod(pod, pod_ended(0, result.encode().decode()))
    player.finish_from(Stage.PREPARE)

    assert handled is None
    assert player.wait_for_phase("Succeeded")["status"]["lastHandledRetry"] == "early"
    assert job["metadata"]["uid"] not in uids(player).values()


def test_a_stage_that_exceeds_its_deadline_fails(player: StagePlayer) -> None:
    player.apply(activeDeadlineSeconds=60)
    job, _ = player.live_pod(Stage.PREPARE)
    # The shortest deadline of a spec is a minute.
    shorter = {"spec": {"activeDeadlineSeconds": 1}}
    player.kube.merge("batch/v1", "Job", player.namespace, job["metadata"]["name"], shorter)

    stalled = player.wait_for_condition("Stalled", "DeadlineExceeded")

    message = "prepare: not done after 1 seconds; raise spec.activeDeadlineSeconds or reduce the work"
    assert stalled["message"] == message


def test_jobs_removed_by_their_time_to_live_are_not_created_again(player: StagePlayer) -> None:
    player.apply()
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")
    player.shorten_lives()
    eventually(lambda: not player.jobs(), "the Jobs are gone")

    player.request_retry("check again")
    player.finish(Stage.PREPARE)

    status = player.wait(
        lambda found: found["status"].get("lastHandledRetry") == "check again", "the retry is handled"
    )["status"]
    assert status["phase"] in ("Preparing", "Succeeded")
    player.wait_for_phase("Succeeded")


def test_a_result_that_is_lost_costs_one_short_run(player: StagePlayer) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    job, pod = player.live_pod(Stage.TRAIN)
    player.stages.simulated_result(request_of(job))
    player.end_pod(pod, pod_ended(0, ""))

    eventually(lambda: job["metadata"]["uid"] not in uids(player).values(), "the Job without a result is gone")
    player.finish_from(Stage.TRAIN)

    player.wait_for_phase("Succeeded")
    assert (player.row(Stage.TRAIN)["cached"], player.row(Stage.TRAIN)["reason"]) == (True, "Cached")


def test_a_job_that_ended_and_was_removed_while_the_operator_was_down_runs_again_and_finds_its_output(
    player: StagePlayer, operator: Operator
) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    player.live_pod(Stage.TRAIN)
    player.wait_for_phase("Training")  # prepare's result is recorded before its Job is removed
    player.shorten_lives()
    operator.stop()
    player.finish(Stage.TRAIN)
    eventually(lambda: not player.jobs(Stage.TRAIN), "the Job and its Pod are gone")
    operator.start()

    player.finish_from(Stage.TRAIN)

    player.wait_for_phase("Succeeded")
    assert player.row(Stage.TRAIN)["reason"] == "Cached"


def test_a_foreign_job_with_the_same_name_stalls_the_object_until_it_is_gone(player: StagePlayer) -> None:
    player.apply(suspend=True)
    player.wait_for_phase("Suspended")
    digest = player.object["status"]["stages"][0]["digest"]
    name = names.job_name("sensor-faults", Stage.PREPARE, digest)
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "other", "image": "other:1"}]}}
    foreign = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": player.namespace}}
    player.kube.apply({**foreign, "spec": {"suspend": True, "template": template}})

    player.apply()
    stalled = player.wait_for_condition("Stalled", "JobNameTaken")
    player.kube.delete("batch/v1", "Job", player.namespace, name)
    eventually(lambda: not player.jobs(), "the name is free")
    player.apply(retryLimit=2)
    player.finish_from(Stage.PREPARE)

    assert stalled["message"] == (
        f"prepare: Job {name} in namespace {player.namespace} does not belong to this object; delete it or give this "
        "object another name"
    )
    player.wait_for_phase("Succeeded")
    assert condition(player.object, "Stalled") is None


def test_a_recreated_object_gets_jobs_of_its_own(player: StagePlayer) -> None:
    player.apply()
    old, pod = player.live_pod(Stage.PREPARE)
    # The old Job still exists when the new object is created.
    held = {"metadata": {"finalizers": ["edgetune.dev/test"]}}
    player.kube.merge("batch/v1", "Job", player.namespace, old["metadata"]["name"], held)
    player.kube.delete(*OBJECT, player.namespace, "sensor-faults")
    eventually(lambda: player.kube.get(*OBJECT, player.namespace, "sensor-faults") is None, "the object is gone")
    player.wait_for_deletion(old)
    player.apply()
    waiting = player.wait_for_condition("Reconciling", "Pending")

    player.kube.merge("batch/v1", "Job", player.namespace, old["metadata"]["name"], {"metadata": {"finalizers": None}})
    player.remove_pod(pod)
    player.finish_from(Stage.PREPARE)

    name = old["metadata"]["name"]
    assert waiting["message"] == f"prepare: waiting until Job {name} of an earlier object with this name is gone"
    player.wait_for_phase("Succeeded")
    assert uids(player)[name] != old["metadata"]["uid"]


def test_an_object_created_before_the_operator_started_is_reconciled(player: StagePlayer, operator: Operator) -> None:
    operator.stop()
    player.apply()
    operator.start()

    player.finish_from(Stage.PREPARE)

    player.wait_for_phase("Succeeded")


def test_an_operator_killed_before_its_status_write_finds_its_own_job(player: StagePlayer, operator: Operator) -> None:
    player.apply()
    job, _ = player.live_pod(Stage.PREPARE)
    operator.kill()
    path = f"{player.kube.path(*OBJECT, player.namespace, 'sensor-faults')}/status"

    def clear_status() -> bool:
        # A write of the killed operator may still arrive.
        unwritten = {**player.object, "status": {"observedGeneration": -1}}
        return player.kube.request("PUT", path, unwritten).accepted

    eventually(clear_status, "the status is empty")
    operator.start()

    player.finish_from(Stage.PREPARE)

    player.wait_for_phase("Succeeded")
    assert uids(player)[job["metadata"]["name"]] == job["metadata"]["uid"]
    assert len(player.jobs()) == len(Stage)
