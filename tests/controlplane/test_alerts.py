"""The chart's alerts, evaluated by promtool on the series that a real operator serves."""

import json
import re
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.binaries import find
from cluster.controlplane import ControlPlane
from cluster.processes import wait_for
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.generate.dashboard import DASHBOARD_PATH
from support.apiserver import REPOSITORY
from support.kube import Kube, pod_running
from support.stage_player import STORE, Operator, StagePlayer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find("promtool") is None, reason="no promtool in the cache folder: run make programs"),
]

RULES = REPOSITORY / "charts" / "edgetune" / "files" / "rules.yaml"
PROFILES = {"default": {"store": STORE, "prices": {"currency": "EUR", "gpuHour": 60}}}
MINUTES = 120
# The recording has an object that is stalled; its alert fires after an hour.
ALWAYS = frozenset({"EdgetuneObjectsStalled"})

Series = Mapping[str, float]


@dataclass(frozen=True)
class Recording:
    """What the operator served: before and after a restart."""

    namespace: str
    before: Series
    after: Series


@pytest.fixture(scope="module")
def recording(control_plane: ControlPlane, operator: Operator) -> Recording:
    """Metrics of an operator with an object whose training has failed, and one whose spec its profile refuses."""
    operator.stop()
    operator.start(PROFILES)
    kube = Kube.from_kubeconfig(control_plane.kubeconfig())
    namespaces = [f"team-{secrets.token_hex(4)}" for _ in range(2)]
    for name in namespaces:
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        kube.wait("v1", "ServiceAccount", name, "default", lambda _: True, "the namespace has its service account")
    player, stalled = (StagePlayer(kube, name) for name in namespaces)
    stalled.apply(priority="unknown")
    stalled.wait_for_phase("Stalled")
    player.apply()
    player.finish(Stage.PREPARE)
    _, pod = player.live_pod(Stage.TRAIN)
    player.end_pod(pod, pod_running())
    player.wait(lambda _: "gpuAttempt" in player.row(Stage.TRAIN), "the training runs")
    player.fail_pod(pod, Stage.TRAIN, ExitCode.DIVERGED, "the loss is not finite")
    player.wait_for_phase("Failed")
    before = _served(operator, player.namespace)
    operator.stop()
    operator.start(PROFILES)
    return Recording(player.namespace, before, _served(operator, player.namespace))


def _served(operator: Operator, namespace: str) -> Series:
    """The operator's series, once they have the account of a namespace."""
    found: dict[str, float] = {}

    def is_complete() -> bool:
        found.clear()
        found.update(operator.metrics())
        spent = (name for name, value in found.items() if name.startswith("edgetune_gpu_seconds_total") and value)
        return any(f'namespace="{namespace}"' in name for name in spent)

    assert wait_for(is_complete, 60), f"no GPU time of {namespace}"
    return found


def promtool(folder: Path, command: str, document: Mapping[str, Any]) -> str:
    """What promtool finds wrong with a document; empty if nothing."""
    file = folder / "promtool.yaml"
    file.write_text(yaml.safe_dump(dict(document)), encoding="utf-8")
    tool = find("promtool")
    assert tool is not None
    done = subprocess.run([tool, command, "rules", file], capture_output=True, text=True, check=False, timeout=120)
    return f"{done.stdout}{done.stderr}" if done.returncode else ""


def firing(folder: Path, values: Mapping[str, str], expected: frozenset[str]) -> str:
    """What promtool says unless, at the end of two hours of samples every minute, exactly these alerts fire."""
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    query = {"expr": 'group by (alertname) (ALERTS{alertstate="firing"})', "eval_time": f"{MINUTES}m"}
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": text} for series, text in values.items()],
        "promql_expr_test": [{**query, "exp_samples": samples}],
    }
    return promtool(folder, "test", {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]})


def constant(series: Series) -> dict[str, str]:
    return {name: f"{value}x{MINUTES}" for name, value in series.items()}


def test_gpu_time_and_cost_survive_a_restart_of_the_operator(recording: Recording) -> None:
    def spent(series: Series) -> dict[str, float]:
        mine = f'namespace="{recording.namespace}"'
        return {name: value for name, value in series.items() if name.startswith("edgetune_gpu_") and mine in name}

    after = {name: value for name, value in spent(recording.after).items() if "wait_seconds" not in name}
    labels = f'name="sensor-faults",namespace="{recording.namespace}",profile="default",stage="train"'
    assert after[f"edgetune_gpu_seconds_total{{{labels}}}"] == 60
    assert after[f'edgetune_gpu_waste_seconds_total{{cause="failed",{labels}}}'] == 60
    assert after[f'edgetune_gpu_cost_total{{currency="EUR",{labels}}}'] == 1
    assert spent(recording.before).items() >= after.items()


def test_no_alert_fires_for_what_the_operator_served(recording: Recording, tmp_path: Path) -> None:
    assert firing(tmp_path, constant(recording.before), ALWAYS) == ""


CHANGES: Mapping[str, Mapping[str, str]] = {
    "EdgetuneDown": {"edgetune_leases_held": "_x120"},
    "EdgetuneNobodyReconciles": {"edgetune_leases_held": "0x120"},
    "EdgetuneScopeOfAnotherRelease": {"edgetune_scopes_of_others": "1x120"},
    "EdgetuneNamespaceUnreadable": {"edgetune_namespaces_failing": "2x120"},
    "EdgetunePassesFail": {r'edgetune_passes_total\{result="error"\}': "0+1x120"},
    "EdgetuneQueueGrows": {"edgetune_queue_depth": "5x120"},
    "EdgetuneObjectsStalled": {},
    "EdgetuneModelsRefused": {'edgetune_objects{phase="Refused"}': "1x120"},
    "EdgetuneStagesFail": {r"edgetune_stage_failures_total\{.*TrainingDiverged.*\}": "1+1x120"},
    "EdgetuneLongWaitForGpus": {r'edgetune_gpu_wait_seconds_bucket\{le="(86400.0|\+Inf)".*\}': "0+1x120"},
    "EdgetuneGpuTimeWasted": {
        r"edgetune_gpu_seconds_total\{.*\}": "60+600x120",
        r'edgetune_gpu_waste_seconds_total\{cause="failed".*\}': "60+200x120",
        r'edgetune_gpu_waste_seconds_total\{cause="lost_peer".*\}': "0+200x120",
    },
}
"""What makes each alert fire: values of series whose whole text matches an expression."""

# There is no refused object, and a phase without objects has no series.
NOT_SERVED = frozenset({'edgetune_objects{phase="Refused"}'})


@pytest.mark.parametrize("alert", CHANGES)
def test_each_alert_fires_alone_if_what_the_operator_serves_changes(
    alert: str, recording: Recording, tmp_path: Path
) -> None:
    values = constant(recording.before)
    for expression, changed in CHANGES[alert].items():
        matching = [
            series for series in (*values, *NOT_SERVED) if series == expression or re.fullmatch(expression, series)
        ]
        assert matching, f"the operator serves no {expression}"
        values |= dict.fromkeys(matching, changed)

    assert firing(tmp_path, values, ALWAYS | {alert}) == ""


def test_every_alert_is_tested() -> None:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]

    assert {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule} == set(CHANGES)


def test_a_restart_during_an_attempt_loses_nothing_of_the_recorded_gpu_time(tmp_path: Path) -> None:
    """Each Pod of the operator has its own series, and the attempt ended while none ran."""
    series = 'edgetune_gpu_seconds_total{namespace="a", name="b", profile="c", stage="train", pod="%s"}'
    labels = 'edgetune:gpu_seconds:total{namespace="a", name="b", profile="c", stage="train"}'
    query = (
        "last_over_time(edgetune:gpu_seconds:total[1h]) - on(namespace) min_over_time(edgetune:gpu_seconds:total[1h])"
    )
    expected = [{"expr": query, "eval_time": "1h", "exp_samples": [{"labels": '{namespace="a"}', "value": 100}]}]
    expected.append(
        {"expr": "edgetune:gpu_seconds:total", "eval_time": "1h", "exp_samples": [{"labels": labels, "value": 160}]}
    )
    test = {
        "interval": "1m",
        "input_series": [
            {"series": series % "old", "values": "60x20"},
            {"series": series % "new", "values": "_x30 160x40"},
        ],
        "promql_expr_test": expected,
    }
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}

    assert promtool(tmp_path, "test", document) == ""


def test_the_queries_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    panels = json.loads((REPOSITORY / DASHBOARD_PATH).read_text(encoding="utf-8"))["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    plain = [re.sub(r"\$__(range|rate_interval)", "5m", query).replace("$namespace", ".*") for query in queries]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(plain)]

    assert promtool(tmp_path, "check", {"groups": [{"name": "dashboard", "rules": rules}]}) == ""
