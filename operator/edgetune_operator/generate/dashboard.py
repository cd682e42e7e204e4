"""The Grafana dashboard of the chart: GPU time by team, waits, failures, scores, bytes and the operator itself."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DASHBOARD_PATH = "charts/edgetune/files/dashboard.json"

_TEAMS = '{namespace=~"$namespace"}'
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One panel: a title, queries with their legends, and how they are drawn."""

    title: str
    queries: dict[str, str]
    """PromQL by legend."""

    unit: str = "short"
    kind: str = "timeseries"
    """Type of the panel in Grafana. All but a time series show the value at the end of the range."""

    description: str = ""


def _wait(share: str) -> str:
    rate = f"sum by (namespace, le) (rate(edgetune_gpu_wait_seconds_bucket{_TEAMS}[$__rate_interval]))"
    return f"histogram_quantile({share}, {rate})"


_WASTE = (
    f"sum by (cause) (increase(edgetune:gpu_waste_seconds:total{_TEAMS}[$__range]))"
    f" / scalar(sum(increase(edgetune:gpu_seconds:total{_TEAMS}[$__range])))"
)

PANELS = (
    Panel(
        "GPU-hours by team",
        {"{{namespace}}": f"sum by (namespace) (increase(edgetune:gpu_seconds:total{_TEAMS}[$__range])) / 3600"},
        "h",
        "bargauge",
        "Of attempts that ended in the range. Needs the chart's rules.",
    ),
    Panel(
        "Cost by team",
        {
            "{{namespace}}, {{currency}}": (
                f"sum by (namespace, currency) (increase(edgetune:gpu_cost:total{_TEAMS}[$__range]))"
            )
        },
        kind="bargauge",
        description="At the prices of the profiles.",
    ),
    Panel(
        "GPU time without progress",
        {"{{cause}}": _WASTE},
        "percentunit",
        "bargauge",
        "Share of the GPU time: failed attempts, repeated steps, loading; and, besides it, waiting with a GPU.",
    ),
    Panel("Running GPUs by team", {"{{namespace}}": f"sum by (namespace) (edgetune_gpus_running{_TEAMS})"}),
    Panel(
        "Wait for a GPU",
        {"{{namespace}}, median": _wait("0.5"), "{{namespace}}, 90 %": _wait("0.9")},
        "s",
        description="From the request of a GPU to the start of the container: queue, scheduling and image.",
    ),
    Panel("Objects by phase", {"{{phase}}": "sum by (phase) (edgetune_objects)"}),
    Panel(
        "Failed stages by reason",
        {
            "{{stage}}: {{reason}}": (
                f"sum by (stage, reason) (increase(edgetune_stage_failures_total{_TEAMS}[$__range])) > 0"
            )
        },
        kind="bargauge",
    ),
    Panel(
        "Scores",
        {"{{namespace}}/{{name}}, {{model}}": f"max by (namespace, name, model) (edgetune_score{_TEAMS})"},
        "percentunit",
        "bargauge",
        "Of each object's last evaluation.",
    ),
    Panel(
        "Bytes moved by stages",
        {
            "{{stage}}, {{kind}}": (
                f"sum by (stage, kind) (increase(edgetune_moved_bytes_total{_TEAMS}[$__rate_interval]))"
            )
        },
        "bytes",
        description="To and from the store, and from the cache of base models.",
    ),
    Panel(
        "Interrupted attempts", {"{{stage}}": "sum by (stage) (increase(edgetune_preemptions_total[$__rate_interval]))"}
    ),
    Panel("Passes", {"{{result}}": "sum by (result) (rate(edgetune_passes_total[$__rate_interval]))"}, "ops"),
    Panel("Objects waiting for a pass", {"waiting": "sum(edgetune_queue_depth)"}),
)


def dashboard() -> str:
    """Text of the dashboard as Grafana imports it."""
    document = {
        "uid": "edgetune",
        "title": "Edgetune",
        "tags": ["edgetune"],
        "schemaVersion": 39,
        "editable": True,
        "time": {"from": "now-7d", "to": "now"},
        "templating": {"list": [_SOURCE_VARIABLE, _NAMESPACE_VARIABLE]},
        "panels": list(_panels()),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


_SOURCE_VARIABLE = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
_NAMESPACE_VARIABLE = {
    "name": "namespace",
    "label": "Namespace",
    "type": "query",
    "datasource": _SOURCE,
    "query": "label_values(edgetune_gpu_seconds_total, namespace)",
    "refresh": 2,
    "includeAll": True,
    "allValue": ".*",
    "multi": True,
    "current": {"text": "All", "value": "$__all"},
}


def _panels() -> Iterator[dict[str, Any]]:
    for number, panel in enumerate(PANELS):
        at_end = panel.kind != "timeseries"
        yield {
            "id": number + 1,
            "type": panel.kind,
            "title": panel.title,
            "description": panel.description,
            "datasource": _SOURCE,
            "gridPos": {
                "x": number % _COLUMNS * _WIDTH,
                "y": number // _COLUMNS * _HEIGHT,
                "w": _WIDTH,
                "h": _HEIGHT,
            },
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "expr": query,
                    "legendFormat": legend,
                    "instant": at_end,
                    "range": not at_end,
                }
                for index, (legend, query) in enumerate(panel.queries.items())
            ],
        }
