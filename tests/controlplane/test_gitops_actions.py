"""Argo CD's actions of the example, run by gopher-lua: the API server accepts their patches, and the operator acts."""

from typing import Any

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from support.gitops_engines import Verdict, find_program, judge
from support.stage_player import OBJECT, StagePlayer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_program() is None, reason="no gitops-engines in the cache: run `make programs`"),
]


def verdict(player: StagePlayer) -> Verdict:
    """What Argo CD makes of the object."""
    (found,) = judge([player.object])
    return found


def act(player: StagePlayer, action: str) -> dict[str, Any]:
    """Run an action as Argo CD does, if it offers it; returns its patch."""
    (found,) = judge([player.object], action)
    assert action in found.actions, f"Argo CD offers {sorted(found.actions)}"
    assert found.patch is not None
    player.kube.merge(*OBJECT, player.namespace, "sensor-faults", found.patch)
    return found.patch


def test_suspend_and_resume_change_one_field_and_stop_and_continue_the_run(player: StagePlayer) -> None:
    # Lua has one kind of table: it would return this empty object as a list.
    player.apply(evaluation={"edge": {}})
    player.finish(Stage.PREPARE)
    player.live_pod(Stage.TRAIN)

    suspend = act(player, "suspend")
    player.wait_for_phase("Suspended")
    suspended = verdict(player)
    resume = act(player, "resume")
    player.live_pod(Stage.TRAIN)
    resumed = verdict(player)

    assert (suspend, resume) == ({"spec": {"suspend": True}}, {"spec": {"suspend": False}})
    assert (suspended.argo, sorted(suspended.actions)) == ("Suspended", ["resume"])
    assert (resumed.argo, sorted(resumed.actions)) == ("Progressing", ["suspend"])
    assert player.object["spec"]["evaluation"]["edge"] == {}


def test_retry_runs_what_failed_again(player: StagePlayer) -> None:
    player.apply()
    player.fail(Stage.PREPARE, ExitCode.INVALID, "line 7: no response")
    player.wait_for_phase("Failed")
    failed = verdict(player)

    patch = act(player, "retry")
    player.finish(Stage.PREPARE)
    player.live_pod(Stage.TRAIN)

    assert (failed.argo, sorted(failed.actions)) == ("Degraded", ["retry", "suspend"])
    assert failed.message == "prepare: line 7: no response"
    token = player.object["status"]["lastHandledRetry"]
    assert patch == {"metadata": {"annotations": {names.RETRY_REQUESTED_ANNOTATION: token}}}
    assert token.startswith("Argo CD 20")


def test_pin_previous_goes_back_to_the_version_before_and_unpin_returns(player: StagePlayer) -> None:
    player.apply()
    player.finish_from(Stage.PREPARE)
    first = player.wait_for_phase("Succeeded")["status"]["publication"]["version"]
    one_version = verdict(player)
    player.apply(lora={"rank": 8})
    player.finish_from(Stage.PREPARE)
    second = player.wait_for_phase("Succeeded")["status"]["publication"]["version"]

    patch = act(player, "pin-previous")
    player.finish(Stage.PUBLISH)
    player.wait_for_condition("Ready", "Pinned")
    pinned, version = verdict(player), player.object["status"]["publication"]["version"]
    back = act(player, "unpin")
    player.finish(Stage.PUBLISH)
    player.wait_for_condition("Ready", "Published")

    assert one_version.actions == {"retry", "suspend"}
    assert patch == {"spec": {"publish": {"pin": first}}}
    assert (pinned.argo, version) == ("Healthy", first)
    assert {"pin-previous", "unpin"} <= pinned.actions
    assert back == {"spec": {"publish": {"pin": None}}}
    assert player.object["status"]["publication"]["version"] == second
    assert verdict(player).actions == {"pin-previous", "retry", "suspend"}
