"""Settings of the operator process, from its command line, which the chart writes."""

import argparse
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Settings of the operator process."""

    profiles: Path
    """YAML file with the profiles."""

    namespaces: tuple[str, ...]
    """Namespaces to watch; empty watches the whole cluster."""

    identity: str
    """Holder of the Leases: `<release>/<process>`, different for each process of a release."""

    lease_namespace: str
    """Namespace of the Lease of operators that watch the whole cluster."""

    lease_seconds: float
    """Time without a renewal after which a standby takes a Lease, in seconds."""

    workers: int
    """Number of concurrent passes."""

    poll_seconds: float
    """Interval at which a training's progress is read, in seconds."""

    health_port: int
    """Port of /healthz and /readyz."""

    metrics_port: int
    """Port of /metrics."""

    max_pass_age_seconds: float
    """Age from which a running pass makes the operator unhealthy, in seconds."""

    log_json: bool
    """Whether logs are JSON lines; otherwise they are plain text."""

    verbose: bool
    """Whether to log details."""


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from a command line; prints the usage and exits with 2 if it is invalid."""
    parser = argparse.ArgumentParser(prog="python -m edgetune_operator", description="The LoraFineTune operator.")
    parser.add_argument("--profiles", type=Path, required=True, help="YAML file with the profiles")
    parser.add_argument(
        "--namespace", action="append", default=[], help="namespace to watch (repeatable; default: all)"
    )
    parser.add_argument(
        "--identity", default="", help="holder of the Leases, RELEASE/PROCESS (default: host name and a random part)"
    )
    parser.add_argument(
        "--lease-namespace", default="kube-system", help="namespace of the Lease without --namespace (kube-system)"
    )
    parser.add_argument(
        "--lease-seconds", type=float, default=15.0, help="a standby takes over after this time without a renewal (15)"
    )
    parser.add_argument("--workers", type=int, default=16, help="number of concurrent passes")
    parser.add_argument("--poll-seconds", type=float, default=5.0, help="interval at which progress is read")
    parser.add_argument("--health-port", type=int, default=8080, help="port of /healthz and /readyz")
    parser.add_argument("--metrics-port", type=int, default=9090, help="port of /metrics")
    parser.add_argument("--max-pass-age-seconds", type=float, default=300.0, help="unhealthy if one pass takes longer")
    parser.add_argument("--log-format", choices=("json", "text"), default="json", help="format of the logs")
    parser.add_argument("--verbose", action="store_true", help="log details")
    given = parser.parse_args(arguments)
    return Settings(
        profiles=given.profiles,
        namespaces=tuple(given.namespace),
        identity=given.identity or f"{socket.gethostname()}-{secrets.token_hex(4)}",
        lease_namespace=given.lease_namespace,
        lease_seconds=given.lease_seconds,
        workers=given.workers,
        poll_seconds=given.poll_seconds,
        health_port=given.health_port,
        metrics_port=given.metrics_port,
        max_pass_age_seconds=given.max_pass_age_seconds,
        log_json=given.log_format == "json",
        verbose=given.verbose,
    )
