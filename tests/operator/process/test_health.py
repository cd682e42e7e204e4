"""Probes: alive while passes are made, ready while the operator can work; also without a cluster."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgetune_operator.process.controller import Vitals
from edgetune_operator.process.health import Health, serving_health
from support.operator_process import free_ports, running_operator
from support.probes import ask, has_ipv6

STUCK = "an object has waited for its pass for 301 s and no passes are completing"


def vitals_of(oldest_pass: float = 0.0, last_pass: float | None = 0.0, queue_wait: float = 0.0) -> Vitals:
    """Vitals; by default, a pass has just ended and nothing waits."""
    return Vitals(oldest_pass, last_pass, queue_wait)


def probes(health: Health, why_not_ready: str = "") -> list[tuple[int, str]]:
    """Responses of /healthz and /readyz."""
    (port,) = free_ports(1)

    async def responses() -> list[tuple[int, str]]:
        async with serving_health(port, health, lambda: why_not_ready):
            return [await asyncio.to_thread(ask, port, path) for path in ("/healthz", "/readyz")]

    return asyncio.run(responses())


@pytest.mark.parametrize(
    ("vitals", "problem"),
    [
        (vitals_of(oldest_pass=299.0), ""),
        (vitals_of(oldest_pass=301.0), "a pass has been running for 301 s"),
        (vitals_of(last_pass=301.0), ""),
        (vitals_of(last_pass=2.0, queue_wait=301.0), ""),
        (vitals_of(last_pass=301.0, queue_wait=301.0), STUCK),
        (vitals_of(last_pass=None, queue_wait=301.0), STUCK),
    ],
    ids=["busy", "hung pass", "idle", "long queue", "stuck queue", "queue that never moved"],
)
def test_liveness_fails_only_if_a_restart_helps(vitals: Vitals, problem: str) -> None:
    assert Health(lambda: vitals, 300).problem() == problem


def test_probes_report_the_passes_and_why_the_operator_is_not_ready() -> None:
    running = '{"oldestPassSeconds": 0.25, "lastPassSeconds": 1.5, "queueWaitSeconds": 0.0}'
    started = '{"oldestPassSeconds": 0.0, "lastPassSeconds": null, "queueWaitSeconds": 0.0}'
    not_ready = (503, "not ready: no CRD")

    assert probes(Health(lambda: vitals_of(0.25, 1.5), 300)) == [(200, running), (200, "ready")]
    assert probes(Health(lambda: vitals_of(last_pass=None), 300), "no CRD") == [(200, started), not_ready]
    assert probes(Health(lambda: vitals_of(301.0), 300))[0] == (503, "a pass has been running for 301 s")


def test_an_ended_worker_fails_liveness() -> None:
    async def worker() -> None:
        raise AssertionError("a bug")

    async def problems() -> list[str]:
        health = Health(vitals_of, 300)
        health.tasks = [asyncio.create_task(worker(), name="a worker")]
        before = health.problem()
        await asyncio.wait(health.tasks)
        return [before, health.problem()]

    assert asyncio.run(problems()) == ["", "a worker has ended"]


def kubeconfig(folder: Path, server: str) -> Path:
    """A kubeconfig for an API server."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "none", "cluster": {"server": server}}],
        "users": [{"name": "nobody", "user": {"token": "t"}}],
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "nobody"}}],
        "current-context": "none",
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def test_an_operator_without_an_api_server_is_alive_and_not_ready(tmp_path: Path) -> None:
    health, metrics, unused = free_ports(3)
    ports = ("--health-port", str(health), "--metrics-port", str(metrics))
    config = kubeconfig(tmp_path, f"http://127.0.0.1:{unused}")

    with running_operator(tmp_path, config, {}, *ports) as operator:
        deadline = time.monotonic() + 90
        while "does not answer" not in ask(health, "/readyz")[1]:
            assert time.monotonic() < deadline, operator.log.read_text(encoding="utf-8")
            time.sleep(0.1)
        assert ask(health, "/healthz")[0] == 200
        assert ask(health, "/readyz")[0] == 503
        for host in ("127.0.0.1", "[::1]") if has_ipv6() else ("127.0.0.1",):
            assert (ask(health, "/healthz", host)[0], ask(metrics, "/metrics", host)[0]) == (200, 200)
        assert operator.process.poll() is None

        operator.process.terminate()
        assert operator.process.wait(timeout=30) == 0

    assert "not ready: the API server does not answer" in operator.log.read_text(encoding="utf-8")


def test_an_operator_without_profiles_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgetune_operator", "--profiles", str(tmp_path / "none.yaml")]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 1
    assert "none.yaml: No such file or directory" in done.stderr
