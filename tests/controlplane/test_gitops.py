"""From a commit to what is live, on a real API server: reverts, roll-backs, patience, retries, lost statuses."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cluster.processes import wait_for
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from edgetune_operator.decisions.causes.patience import PATIENCE
from support.kstatus import KStatus, kstatus
from support.kube import condition, pod_running, pod_waiting
from support.scenario import request_of
from support.stage_player import OBJECT, Operator, StagePlayer

pytestmark = pytest.mark.slow

REVISIONS = tuple(digit * 64 for digit in "123")


def stages_of_jobs(player: StagePlayer) -> list[str]:
    """Stages of the existing Jobs, oldest first."""
    return [job["metadata"]["labels"][names.STAGE_LABEL] for job in player.jobs()]


def remove_jobs(player: StagePlayer) -> None:
    """The time to live of the ended Jobs expires."""
    player.shorten_lives()
    assert wait_for(lambda: not player.jobs(), 60), "the ended Jobs are still there"


def publish_two_versions(player: StagePlayer) -> tuple[str, str]:
    """Two recipes are trained and published, and their Jobs are gone; their versions."""
    versions = []
    for spec in ({}, {"lora": {"rank": 8}}):
        player.apply(**spec)
        player.finish(Stage.PREPARE)
        player.finish_from(Stage.TRAIN)
        player.wait_for_phase("Succeeded")
        versions.append(player.object["status"]["live"]["version"])
        remove_jobs(player)
    first, second = versions
    return first, second


def since(player: StagePlayer, age: timedelta) -> None:
    """Let the present wait have begun some time ago."""
    begun = (datetime.now(UTC) - age).isoformat(timespec="seconds").replace("+00:00", "Z")
    player.kube.set_status(*OBJECT, player.namespace, "sensor-faults", {"waitingSince": begun})


def test_a_revert_and_a_roll_back_create_no_job_with_a_gpu(player: StagePlayer) -> None:
    first, second = publish_two_versions(player)

    player.apply()
    player.finish(Stage.PREPARE)
    player.finish(Stage.PUBLISH)
    reverted = player.wait_for_phase("Succeeded")["status"]
    assert stages_of_jobs(player) == ["prepare", "publish"]
    assert (reverted["live"]["version"], player.stages.pointer) == (first, first)
    remove_jobs(player)

    player.apply(publish={"pin": second}, suspend=True)
    player.finish(Stage.PUBLISH)
    pinned = player.wait(lambda found: found["status"].get("live", {}).get("version") == second, "the pin is live")
    assert stages_of_jobs(player) == ["publish"]
    assert (condition(pinned, "Ready") or {})["reason"] == "Pinned"
    assert kstatus(pinned) is KStatus.CURRENT


def test_a_pin_with_suspend_is_healthy_while_the_training_has_failed_and_alone_retries_nothing(
    player: StagePlayer,
) -> None:
    first, _ = publish_two_versions(player)
    player.apply(lora={"rank": 4}, retryLimit=0)
    player.finish(Stage.PREPARE)
    player.fail(Stage.TRAIN, ExitCode.DIVERGED, "the loss is not finite")
    failed = player.wait_for_phase("Failed")
    assert kstatus(failed) is KStatus.FAILED
    trained = [job["metadata"]["uid"] for job in player.jobs(Stage.TRAIN)]

    player.apply(lora={"rank": 4}, retryLimit=0, publish={"pin": first}, suspend=True)
    player.finish(Stage.PUBLISH)
    pinned = player.wait_for_phase("Succeeded")
    player.apply(lora={"rank": 4}, retryLimit=0, publish={"pin": first}, suspend=False)
    alone = player.wait_for_phase("Failed")

    assert kstatus(pinned) is KStatus.CURRENT
    assert (condition(pinned, "Ready") or {})["reason"] == "Pinned"
    assert (condition(alone, "Stalled") or {})["message"] == "train: the loss is not finite"
    assert alone["status"]["live"]["version"] == first == player.stages.pointer
    assert [job["metadata"]["uid"] for job in player.jobs(Stage.TRAIN)] == trained


def test_a_pin_to_a_version_that_was_deleted_says_so_and_keeps_what_is_live(player: StagePlayer) -> None:
    first, second = publish_two_versions(player)
    player.apply(lora={"rank": 8}, publish={"pin": first}, suspend=True)
    player.fail(Stage.PUBLISH, ExitCode.INVALID, f"spec.publish.pin: sensor-faults has no version {first[:12]}")
    stalled = player.wait_for_condition("Stalled", "InvalidInput")

    assert "has no version" in stalled["message"]
    assert player.object["status"]["live"]["version"] == second
    assert (condition(player.object, "Available") or {})["status"] == "True"


def test_patience_is_counted_from_the_status_and_outlives_a_restart(player: StagePlayer, operator: Operator) -> None:
    player.apply()
    _, pod = player.live_pod(Stage.PREPARE)
    player.end_pod(pod, pod_waiting("ImagePullBackOff", "Back-off pulling image"))
    player.wait_for_condition("Reconciling", "ImagePullBackOff")
    patient = player.object
    operator.stop()
    since(player, PATIENCE - timedelta(seconds=30))
    operator.start()
    player.wait(lambda found: "waitingSince" in found["status"], "the status is read")
    assert kstatus(player.object) is KStatus.IN_PROGRESS

    # Nothing but the end of the five minutes wakes the operator.
    since(player, PATIENCE - timedelta(seconds=5))
    player.wait_for_condition("Stalled", "ImagePullBackOff")
    stalled = player.object
    player.end_pod(pod, pod_running())
    player.wait_for_condition("Reconciling", "JobRunning")

    assert (kstatus(patient), kstatus(stalled)) == (KStatus.IN_PROGRESS, KStatus.FAILED)
    assert (patient["status"]["phase"], stalled["status"]["phase"]) == ("Preparing", "Stalled")
    assert "waitingSince" not in player.object["status"]


def test_a_token_that_is_removed_while_it_waits_is_handled_once(player: StagePlayer) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    job, pod = player.live_pod(Stage.TRAIN)
    player.end_pod(pod, pod_running())
    player.wait_for_condition("Reconciling", "JobRunning")
    player.request_retry("by hand")
    player.wait(lambda found: found["status"].get("pendingRetries") == ["by hand"], "the token is seen")
    annotations = {"annotations": {names.RETRY_REQUESTED_ANNOTATION: None}}
    player.kube.merge(*OBJECT, player.namespace, "sensor-faults", {"metadata": annotations})

    player.finish_pod(job, pod)
    player.finish(Stage.PREPARE)
    player.finish_from(Stage.MERGE)
    done = player.wait_for_phase("Succeeded")["status"]

    assert (done["lastHandledRetry"], done["handledRetries"], done.get("pendingRetries")) == (
        "by hand",
        ["by hand"],
        None,
    )


def test_a_retry_by_commit_is_not_ready_until_it_is_handled(player: StagePlayer) -> None:
    player.apply()
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")
    remove_jobs(player)

    player.apply(retry="2026-11-28")
    assert kstatus(player.object) is KStatus.IN_PROGRESS
    player.live_pod(Stage.PREPARE)
    player.wait(lambda found: found["status"].get("lastHandledRetry") == "2026-11-28", "the token is handled")
    assert kstatus(player.object) is KStatus.IN_PROGRESS
    player.finish(Stage.PREPARE)
    player.wait_for_phase("Succeeded")

    assert kstatus(player.object) is KStatus.CURRENT
    assert stages_of_jobs(player) == ["prepare"]


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN, Stage.PUBLISH])
def test_an_object_that_is_pruned_and_applied_again_finds_what_is_live(player: StagePlayer, stage: Stage) -> None:
    player.apply()
    player.finish_from(Stage.PREPARE)
    live = player.wait_for_phase("Succeeded")["status"]["live"]
    remove_jobs(player)
    player.apply(lora={"rank": 8})
    for earlier in list(Stage)[: list(Stage).index(stage)]:
        player.finish(earlier)
    player.live_pod(stage)

    player.kube.delete(*OBJECT, player.namespace, "sensor-faults")
    assert wait_for(lambda: not player.jobs(), 60), "the Jobs of the pruned object are still there"
    player.apply(lora={"rank": 8})
    unknown = player.wait_for_condition("Available", "StoreNotRead")
    player.finish(Stage.PREPARE)
    player.wait_for_condition("Available", "Published")
    found = player.object["status"]["live"]
    remaining = [Stage.PUBLISH] if stage is Stage.PUBLISH else list(Stage)[1:]
    for each in remaining:
        player.finish(each)
    player.wait_for_phase("Succeeded")

    assert unknown["status"] == "Unknown"
    assert found == live
    assert ("train" in stages_of_jobs(player)) == (stage is not Stage.PUBLISH)


def test_only_the_last_of_three_pins_by_a_bot_is_trained(player: StagePlayer) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    _, pod = player.live_pod(Stage.TRAIN)
    player.end_pod(pod, pod_running())
    for revision in REVISIONS:
        player.stages.data = f"data {revision[0]}"
        player.apply(dataset={"train": {"uri": "s3://datasets/sensor/train.jsonl", "revision": revision}})
    player.wait(lambda _: not any(job["spec"].get("suspend") for job in player.jobs()), "the edits are seen")

    def last_prepare() -> dict[str, Any] | None:
        jobs = [job for job in player.jobs(Stage.PREPARE) if "deletionTimestamp" not in job["metadata"]]
        found = [job for job in jobs if request_of(job).parameters.dataset.train.revision == REVISIONS[-1]]
        return found[0] if found else None

    assert wait_for(lambda: last_prepare() is not None, 60), "prepare does not run for the last revision"
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")

    trained = [request_of(job) for job in player.jobs(Stage.TRAIN)]
    assert [each.parameters.dataset.train.revision for each in trained] == [REVISIONS[-1]]
