"""Probes: alive while passes are made, ready while the operator can work; and what one without a cluster says."""

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


def well(oldest_pass: float = 0.0, last_pass: float | None = 0.0, queue_wait: float = 0.0) -> Vitals:
    """Passes as they go; by default, one has just ended and nothing waits."""
    return Vitals(oldest_pass, last_pass, queue_wait)


def probes(health: Health, waits_for: str = "") -> list[tuple[int, str]]:
    """Answers of /healthz and /readyz."""
    (port,) = free_ports(1)

    async def answers() -> list[tuple[int, str]]:
        async with serving_health(port, health, lambda: waits_for):
            return [await asyncio.to_thread(ask, port, path) for path in ("/healthz", "/readyz")]

    return asyncio.run(answers())


@pytest.mark.parametrize(
    ("vitals", "complaint"),
    [
        (well(oldest_pass=299.0), ""),
        (well(oldest_pass=301.0), "a pass has been going on for 301 s"),
        (well(last_pass=301.0), ""),
        (well(last_pass=2.0, queue_wait=301.0), ""),
        (well(last_pass=301.0, queue_wait=301.0), "an object has waited for its pass for 301 s, and no pass is made"),
        (well(last_pass=None, queue_wait=301.0), "an object has waited for its pass for 301 s, and no pass is made"),
    ],
    ids=["busy", "hanging", "idle", "long queue", "queue that stands still", "queue that never moved"],
)
def test_only_what_a_restart_mends_fails_liveness(vitals: Vitals, complaint: str) -> None:
    assert Health(lambda: vitals, 300).complaint() == complaint


def test_probes_tell_how_the_passes_go_and_what_the_operator_waits_for() -> None:
    told = '{"oldestPassSeconds": 0.25, "lastPassSeconds": 1.5, "queueWaitSeconds": 0.0}'
    started = '{"oldestPassSeconds": 0.0, "lastPassSeconds": null, "queueWaitSeconds": 0.0}'

    assert probes(Health(lambda: well(0.25, 1.5), 300)) == [(200, told), (200, "ready")]
    assert probes(Health(lambda: well(last_pass=None), 300), "no CRD") == [(200, started), (503, "not ready: no CRD")]
    assert probes(Health(lambda: well(301.0), 300))[0] == (503, "a pass has been going on for 301 s")


def test_a_worker_that_has_ended_fails_liveness() -> None:
    async def worker() -> None:
        raise AssertionError("a bug")

    async def complaints() -> list[str]:
        health = Health(well, 300)
        health.tasks = [asyncio.create_task(worker(), name="a worker")]
        seen = [health.complaint()]
        await asyncio.wait(health.tasks)
        return [*seen, health.complaint()]

    assert asyncio.run(complaints()) == ["", "a worker has ended"]


def kubeconfig(folder: Path, server: str) -> Path:
    """A kubeconfig of an API server."""
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


def test_an_operator_without_an_api_server_lives_waits_and_says_so(tmp_path: Path) -> None:
    health, metrics, nobody = free_ports(3)
    ports = ("--health-port", str(health), "--metrics-port", str(metrics))
    config = kubeconfig(tmp_path, f"http://127.0.0.1:{nobody}")

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
