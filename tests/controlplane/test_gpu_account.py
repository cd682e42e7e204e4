"""GPU time of attempts whose end no operator observed, on a real API server with real Jobs."""

from datetime import UTC, datetime
from typing import Any

from edgetune_contract.stages import ExitCode, Stage
from edgetune_contract.values.times import seconds_between, timestamp
from support.kube import pod_ended, pod_running
from support.stage_player import OBJECT, Operator, StagePlayer


def start(player: StagePlayer, pod: dict[str, Any]) -> str:
    """The container of a training's Pod starts now; the operator has seen it. Returns the time."""
    now = timestamp(datetime.now(UTC))
    running = pod_running()
    running["containerStatuses"][0]["state"]["running"]["startedAt"] = now
    player.end_pod(pod, running)
    seen = pod["metadata"]["name"]
    player.wait(lambda _: player.row(Stage.TRAIN).get("gpuAttempt", {}).get("pod") == seen, f"{seen} is seen")
    return now


def is_deleted(item: dict[str, Any]) -> bool:
    return item["metadata"].get("deletionTimestamp") is not None


def total(player: StagePlayer) -> dict[str, Any]:
    found: dict[str, Any] = player.object["status"]["gpu"]["total"]
    return found


def test_an_attempt_that_is_gone_when_the_operator_comes_back_is_estimated_until_the_next_pod(
    player: StagePlayer, operator: Operator
) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    _, pod = player.live_pod(Stage.TRAIN)
    began = start(player, pod)
    operator.stop()
    player.end_pod(pod, pod_ended(ExitCode.INTERRUPTED))
    player.remove_pod(pod)
    _, following = player.live_pod(Stage.TRAIN)
    operator.start()

    player.wait(lambda found: found["status"]["gpu"]["total"]["estimatedSeconds"] > 0, "the attempt is estimated")
    seconds = seconds_between(began, following["metadata"]["creationTimestamp"])
    assert (total(player)["seconds"], total(player)["estimatedSeconds"]) == (seconds, seconds)
    row = player.row(Stage.TRAIN)
    assert (row["gpuSeconds"], row["activeSeconds"]) == (seconds, seconds)


def test_an_edit_keeps_the_gpu_time_of_the_object(player: StagePlayer) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    player.fail(Stage.TRAIN, ExitCode.DIVERGED, "the loss is not finite")
    player.wait_for_phase("Failed")
    player.apply(lora={"rank": 8})
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")

    assert player.row(Stage.TRAIN)["gpuSeconds"] == 60
    assert (total(player)["seconds"], total(player)["failedSeconds"]) == (120, 60)
    (entry, _) = player.object["status"]["history"]
    assert entry["gpu"]["seconds"] == 60


def test_an_attempt_that_the_deletion_of_the_object_stops_is_in_its_account(player: StagePlayer) -> None:
    player.apply()
    player.finish(Stage.PREPARE)
    _, pod = player.live_pod(Stage.TRAIN)
    player.bind(pod)
    start(player, pod)
    held = {"metadata": {"finalizers": ["example.com/backup"]}}
    player.kube.merge(*OBJECT, player.namespace, "sensor-faults", held)

    player.kube.delete(*OBJECT, player.namespace, "sensor-faults")
    player.kube.wait("v1", "Pod", player.namespace, pod["metadata"]["name"], is_deleted, "the Pod is stopped")
    player.end_pod(pod, pod_ended(ExitCode.INTERRUPTED))  # it ran for 60 s, as the played kubelet says
    player.remove_pod(pod)
    player.wait(lambda found: found["status"]["gpu"]["total"]["seconds"] > 0, "the attempt is counted")

    assert player.object["status"]["phase"] == "Deleting"
    assert (total(player)["seconds"], total(player).get("estimatedSeconds", 0)) == (60, 0)
    player.kube.merge(*OBJECT, player.namespace, "sensor-faults", {"metadata": {"finalizers": []}})
