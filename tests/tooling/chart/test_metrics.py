"""What the chart installs for Prometheus and Grafana, and that it finds what the operator serves."""

import json
import re

import pytest
import yaml
from prometheus_client import REGISTRY

from edgetune_operator import telemetry
from edgetune_operator.api import names
from support.apiserver import BINARIES_VARIABLE
from support.chart import (
    ALL_SWITCHES,
    CHART,
    find_helm,
    one,
    render,
)

pytestmark = pytest.mark.skipif(
    find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH: the chart is not tested"
)


def test_monitors_find_the_operator_and_running_trainings() -> None:
    manifests = render(ALL_SWITCHES)
    service = one(manifests, "Service")
    endpoints = one(manifests, "ServiceMonitor")["spec"]["endpoints"]
    trainings = one(manifests, "PodMonitor", "edgetune-train")["spec"]

    assert [endpoint["port"] for endpoint in endpoints] == ["metrics"]
    assert {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}["metrics"] == "metrics"
    assert trainings["selector"]["matchLabels"] == {names.MANAGED_BY_LABEL: names.MANAGER, names.STAGE_LABEL: "train"}
    assert trainings["namespaceSelector"] == {"any": True}
    assert trainings["podTargetLabels"] == [names.OWNER_LABEL]


def test_the_rules_and_the_dashboard_are_installed_unchanged() -> None:
    manifests = render(ALL_SWITCHES)
    files = CHART / "files"

    assert one(manifests, "PrometheusRule")["spec"] == yaml.safe_load((files / "rules.yaml").read_text("utf-8"))
    config = one(manifests, "ConfigMap", "edgetune-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["data"] == {"edgetune.json": (files / "dashboard.json").read_text("utf-8")}


def test_rules_and_dashboard_ask_for_nothing_but_what_the_operator_serves() -> None:
    files = CHART / "files"
    groups = yaml.safe_load((files / "rules.yaml").read_text("utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    panels = json.loads((files / "dashboard.json").read_text("utf-8"))["panels"]
    queries = [*(rule["expr"] for rule in rules), *(each["expr"] for panel in panels for each in panel["targets"])]
    served = {f"{family.name}{end}" for family in REGISTRY.collect() for end in ("", "_total", "_bucket")}

    asked = {name for query in queries for name in re.findall(r"\bedgetune[_:][a-z_:]+", query)}

    assert len(asked) > 10
    assert asked - served == {rule["record"] for rule in rules if "record" in rule}


def test_the_namespace_of_a_metric_is_that_of_its_object() -> None:
    assert one(render(ALL_SWITCHES), "ServiceMonitor")["spec"]["endpoints"][0]["honorLabels"] is True


def test_the_charts_test_reads_a_metric_that_the_operator_serves() -> None:
    script = one(render({}), "Pod", "edgetune-test")["spec"]["containers"][0]["args"][0]

    compile(script, "helm test", "exec")
    (family,) = telemetry.QUEUE_DEPTH.describe()
    assert f'"{family.name}"' in script
    assert 'os.environ["EDGETUNE_SERVICE_HOST"]' in script, "Kubernetes' variable with the Service's address"
