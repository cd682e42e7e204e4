"""Deletion with the artifacts on a real control plane: real finalizers, Jobs, garbage collector and namespaces."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from edgetune_contract.clean_up import CleanUpRequest, CleanUpResult
from edgetune_contract.request import Failure
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from support.kube import condition, pod_ended
from support.stage_player import OBJECT, Operator, StagePlayer

pytestmark = pytest.mark.slow

_NAME = "sensor-faults"
_DONE = CleanUpResult(removed_objects=7, removed_bytes=4200, shared_stages=1)


def eventually(player: StagePlayer, holds: Callable[[], Any], what: str, limit_seconds: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + limit_seconds
    while not holds():
        if time.monotonic() > deadline:
            found = player.kube.get(*OBJECT, player.namespace, _NAME)
            raise TimeoutError(f"not within {limit_seconds:.0f} s: {what}; the object: {found}")
        time.sleep(0.1)


def wait_until_gone(player: StagePlayer, limit_seconds: float = 60) -> None:
    eventually(
        player, lambda: player.kube.get(*OBJECT, player.namespace, _NAME) is None, "the object is gone", limit_seconds
    )


def wait_for_finalizer(player: StagePlayer) -> None:
    player.wait(lambda found: names.FINALIZER in found["metadata"].get("finalizers", ()), "it has the finalizer")


def delete(player: StagePlayer, propagation: str = "Background") -> None:
    path = player.kube.path(*OBJECT, player.namespace, _NAME)
    assert player.kube.request("DELETE", path, {"propagationPolicy": propagation}).accepted


def release(player: StagePlayer, config_map: str) -> None:
    """Remove the finalizer of a ConfigMap that is being deleted."""
    player.kube.wait(
        "v1",
        "ConfigMap",
        player.namespace,
        config_map,
        lambda found: found["metadata"].get("deletionTimestamp") is not None,
        "it is deleted",
        limit_seconds=120,  # the garbage collector discovers new resources every 30 s
    )
    player.kube.merge("v1", "ConfigMap", player.namespace, config_map, {"metadata": {"finalizers": None}})


def clean_up_jobs(player: StagePlayer) -> list[dict[str, Any]]:
    return player.kube.list("batch/v1", "Job", player.namespace, f"{names.STAGE_LABEL}={names.CLEAN_UP}")


def last_event(player: StagePlayer, reason: str) -> dict[str, Any]:
    """The only Event with a reason, once it exists: it is posted after the object is gone."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        events = player.kube.list("v1", "Event", player.namespace)
        found[:] = [event for event in events if event["reason"] == reason]
        return bool(found)

    eventually(player, is_there, f"an Event {reason}")
    (event,) = found
    return event


def finish_clean_up(player: StagePlayer, result: CleanUpResult = _DONE, exit_code: int = 0) -> dict[str, Any]:
    """End the clean-up's Pod; returns its Job."""
    job, pod = player.live_pod(names.CLEAN_UP)
    player.end_pod(pod, pod_ended(exit_code, result.encode().decode()))
    return job


def test_an_object_with_policy_delete_is_kept_until_its_artifacts_are_removed(player: StagePlayer) -> None:
    player.apply(deletionPolicy="Delete")
    player.finish_from(Stage.PREPARE)
    finished = player.wait_for_phase("Succeeded")
    assert finished["metadata"]["finalizers"] == [names.FINALIZER]

    delete(player)
    found = player.wait_for_phase("Deleting")
    job, _ = player.live_pod(names.CLEAN_UP)
    assert (condition(found, "Reconciling") or {})["reason"] == "CleaningUp"
    environment = {each["name"]: each["value"] for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert CleanUpRequest.decode(environment["EDGETUNE_REQUEST"]).name == _NAME
    finish_clean_up(player)

    wait_until_gone(player)
    event = last_event(player, "CleanedUp")
    assert event["type"] == "Normal"
    assert event["message"] == "removed 7 objects (4,200 bytes); kept the output of 1 stage, which other objects use"
    assert last_event(player, "CleaningUp")["type"] == "Normal"
    assert len(clean_up_jobs(player)) == 1


def test_the_clean_up_starts_after_the_training_is_stopped_and_its_pod_gone(player: StagePlayer) -> None:
    player.apply(deletionPolicy="Delete")
    player.finish(Stage.PREPARE)
    _, pod = player.live_pod(Stage.TRAIN)
    # As a kubelet does during the grace period: the Pod exists until its container has ended.
    path = player.kube.path("v1", "Pod", player.namespace, pod["metadata"]["name"])
    held = {"metadata": {"finalizers": ["test/still-writing"]}}
    assert player.kube.request("PATCH", path, held, "application/merge-patch+json").accepted

    delete(player)
    message = "waiting until the stages' Jobs are gone"
    player.wait(lambda found: message in ((condition(found, "CleanedUp") or {}).get("message") or ""), message)
    time.sleep(1)
    assert clean_up_jobs(player) == []

    released = {"metadata": {"finalizers": None}}
    assert player.kube.request("PATCH", path, released, "application/merge-patch+json").accepted
    player.remove_pod(pod)
    finish_clean_up(player)
    wait_until_gone(player)


def test_a_failed_clean_up_releases_the_object_with_a_warning(player: StagePlayer) -> None:
    player.apply(deletionPolicy="Delete")
    player.live_pod(Stage.PREPARE)
    delete(player)
    failure = Failure.brief(ExitCode.DENIED, "AccessDenied", "these credentials lack s3:DeleteObject")
    finish_clean_up(player, CleanUpResult(failure=failure), ExitCode.DENIED)

    wait_until_gone(player)
    event = last_event(player, "CleanUpFailed")
    store = f"s3://artifacts/edgetune/{player.namespace}"
    assert event["type"] == "Warning"
    assert event["message"] == (
        f"{store}/models/{_NAME}/ and the stage outputs marked in {store}/uses/*/*/{_NAME} are left; the next object "
        "of this name that is deleted with Delete removes them. The clean-up failed: AccessDenied: these credentials "
        "lack s3:DeleteObject"
    )


def test_a_clean_up_that_never_ends_times_out(player: StagePlayer) -> None:
    player.apply(deletionPolicy="Delete")
    player.live_pod(Stage.PREPARE)
    delete(player)
    player.live_pod(names.CLEAN_UP)

    # The start of the deletion is set back, since the clock cannot be changed.
    status = player.wait_for_phase("Deleting")["status"]
    (condition({"status": status}, "CleanedUp") or {})["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    player.kube.set_status(*OBJECT, player.namespace, _NAME, status)

    wait_until_gone(player)
    assert "it timed out after 780 s" in last_event(player, "CleanUpFailed")["message"]
    eventually(player, lambda: clean_up_jobs(player) == [], "the clean-up's Job is stopped")


def test_a_clean_up_refused_by_a_quota_starts_when_the_quota_is_removed(player: StagePlayer) -> None:
    player.apply(deletionPolicy="Delete")
    player.live_pod(Stage.PREPARE)
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": player.namespace}}
    hard = {"count/jobs.batch": "0"}
    player.kube.apply({**quota, "spec": {"hard": hard}})
    player.kube.set_status("v1", "ResourceQuota", player.namespace, "none", {"hard": hard, "used": hard})
    player.wait_for_dry_run(403)

    delete(player)
    found = player.wait(
        lambda found: (condition(found, "CleanedUp") or {}).get("reason") == "QuotaTooSmall", "the clean-up is refused"
    )
    assert "exceeded quota: none" in (condition(found, "CleanedUp") or {})["message"]

    player.kube.delete("v1", "ResourceQuota", player.namespace, "none")
    player.wait_for_dry_run(201)
    finish_clean_up(player)
    wait_until_gone(player)


def test_a_foreground_deletion_does_not_delete_the_clean_up_job(player: StagePlayer) -> None:
    player.apply(deletionPolicy="Delete")
    player.finish(Stage.PREPARE)
    player.live_pod(Stage.TRAIN)
    # Other dependents are deleted slowly; after each, the garbage collector processes the remaining ones again.
    owner = {"apiVersion": OBJECT[0], "kind": OBJECT[1], "name": _NAME, "uid": player.object["metadata"]["uid"]}
    for name in ("first", "second"):
        metadata = {
            "name": name,
            "namespace": player.namespace,
            "finalizers": ["test/slow"],
            "ownerReferences": [{**owner, "blockOwnerDeletion": True}],
        }
        player.kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})

    delete(player, propagation="Foreground")
    job, _ = player.live_pod(names.CLEAN_UP)
    release(player, "first")
    time.sleep(2)
    assert "foregroundDeletion" in player.object["metadata"]["finalizers"]
    assert [found["metadata"]["uid"] for found in clean_up_jobs(player)] == [job["metadata"]["uid"]]
    finish_clean_up(player)
    assert last_event(player, "CleanedUp")["type"] == "Normal"

    release(player, "second")
    wait_until_gone(player)


def test_the_finalizer_follows_the_policy_and_no_stage_is_rerun(player: StagePlayer) -> None:
    player.apply()
    player.finish_from(Stage.PREPARE)
    retained = player.wait_for_phase("Succeeded")
    assert "finalizers" not in retained["metadata"]

    player.apply(deletionPolicy="Delete")
    wait_for_finalizer(player)
    player.apply(deletionPolicy="Retain")
    player.wait(lambda found: not found["metadata"].get("finalizers"), "the finalizer is removed")

    player.wait(lambda found: found["status"]["observedGeneration"] == 3, "the last edit is observed")
    assert player.object["status"]["phase"] == "Succeeded"
    assert len(player.kube.list("batch/v1", "Job", player.namespace)) == len(Stage)


def test_setting_retain_during_the_deletion_releases_the_object(player: StagePlayer) -> None:
    player.apply(deletionPolicy="Delete")
    player.live_pod(Stage.PREPARE)
    delete(player)
    player.live_pod(names.CLEAN_UP)

    player.kube.merge(*OBJECT, player.namespace, _NAME, {"spec": {"deletionPolicy": "Retain"}})

    wait_until_gone(player)
    assert "spec.deletionPolicy is now Retain" in last_event(player, "ArtifactsRetained")["message"]


def test_an_object_whose_profile_is_missing_is_released_at_once(player: StagePlayer) -> None:
    player.apply(deletionPolicy="Delete", profile="removed")
    wait_for_finalizer(player)
    delete(player)

    wait_until_gone(player)
    assert "profile 'removed' not found" in last_event(player, "CleanUpSkipped")["message"]
    assert clean_up_jobs(player) == []


def test_an_object_deleted_while_the_operator_is_down_is_cleaned_up_after_its_start(
    player: StagePlayer, operator: Operator
) -> None:
    player.apply(deletionPolicy="Delete")
    wait_for_finalizer(player)
    _, pod = player.live_pod(Stage.PREPARE)
    operator.stop()
    delete(player)
    operator.start()

    eventually(player, lambda: clean_up_jobs(player), "the clean-up has started")
    stages = player.kube.list("batch/v1", "Job", player.namespace, f"{names.STAGE_LABEL}={Stage.PREPARE}")
    assert stages == []
    assert player.kube.get("v1", "Pod", player.namespace, pod["metadata"]["name"]) is None
    finish_clean_up(player)
    wait_until_gone(player)


def test_the_deletion_of_a_namespace_is_not_blocked(player: StagePlayer) -> None:
    # Without a Pod, which would be deleted first and wait for its kubelet.
    player.apply(deletionPolicy="Delete", suspend=True)
    wait_for_finalizer(player)

    player.kube.delete("v1", "Namespace", None, player.namespace)

    eventually(
        player, lambda: player.kube.get("v1", "Namespace", None, player.namespace) is None, "the namespace is gone", 90
    )
