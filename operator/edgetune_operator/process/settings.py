"""Settings of the operator process, from its command line; the chart writes them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """How the operator runs."""

    profiles: Path
    """YAML file with the profiles."""

    namespaces: tuple[str, ...]
    """Namespaces to watch; empty is all of the cluster."""

    workers: int
    """Passes at a time."""

    poll_seconds: float
    """Time between two readings of a training's progress."""

    health_port: int
    """Port of /healthz and /readyz."""

    metrics_port: int
    """Port of /metrics."""

    max_pass_age_seconds: float
    """A pass that does not end for this long makes the operator unhealthy."""

    log_json: bool
    """Logs as JSON lines, or as text for people."""

    verbose: bool
    """Log details."""


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from a command line; prints usage and exits with 2 if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m edgetune_operator", description="The LoraFineTune operator.")
    parser.add_argument("--profiles", type=Path, required=True, help="YAML file with the profiles")
    parser.add_argument(
        "--namespace", action="append", default=[], help="namespace to watch (repeatable; default: all)"
    )
    parser.add_argument("--workers", type=int, default=16, help="passes at a time")
    parser.add_argument("--poll-seconds", type=float, default=5.0, help="time between two readings of progress")
    parser.add_argument("--health-port", type=int, default=8080, help="port of /healthz and /readyz")
    parser.add_argument("--metrics-port", type=int, default=9090, help="port of /metrics")
    parser.add_argument("--max-pass-age-seconds", type=float, default=300.0, help="unhealthy if a pass takes longer")
    parser.add_argument("--log-format", choices=("json", "text"), default="json", help="format of the logs")
    parser.add_argument("--verbose", action="store_true", help="log details")
    given = parser.parse_args(arguments)
    return Settings(
        profiles=given.profiles,
        namespaces=tuple(given.namespace),
        workers=given.workers,
        poll_seconds=given.poll_seconds,
        health_port=given.health_port,
        metrics_port=given.metrics_port,
        max_pass_age_seconds=given.max_pass_age_seconds,
        log_json=given.log_format == "json",
        verbose=given.verbose,
    )
