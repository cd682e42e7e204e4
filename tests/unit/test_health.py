"""Probes: alive while no pass hangs, ready while the operator can work; and what one without a cluster says."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgetune_operator.health import serving_health
from support.operator_process import free_ports, running_operator
from support.probes import ask


@pytest.mark.parametrize(
    ("oldest_pass", "waits_for", "healthz", "readyz"),
    [
        (0.25, "", (200, '{"oldestPassSeconds": 0.25}'), (200, "ready")),
        (301.0, "", (503, "a pass has been going on for 301 s"), (200, "ready")),
        (0.0, "no CRD", (200, '{"oldestPassSeconds": 0.0}'), (503, "not ready: no CRD")),
    ],
)
def test_a_hanging_pass_fails_liveness_and_a_missing_cluster_fails_readiness(
    oldest_pass: float, waits_for: str, healthz: tuple[int, str], readyz: tuple[int, str]
) -> None:
    (port,) = free_ports(1)

    async def probes() -> tuple[tuple[int, str], tuple[int, str]]:
        async with serving_health(port, lambda: oldest_pass, 300, lambda: waits_for):
            return await asyncio.to_thread(ask, port, "/healthz"), await asyncio.to_thread(ask, port, "/readyz")

    assert asyncio.run(probes()) == (healthz, readyz)


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
        deadline = time.monotonic() + 30
        while "does not answer" not in ask(health, "/readyz")[1]:
            assert time.monotonic() < deadline, operator.log.read_text(encoding="utf-8")
            time.sleep(0.1)
        assert ask(health, "/healthz")[0] == 200
        assert ask(health, "/readyz")[0] == 503
        assert operator.process.poll() is None

        operator.process.terminate()
        assert operator.process.wait(timeout=15) == 0

    assert "not ready: the API server does not answer" in operator.log.read_text(encoding="utf-8")


def test_an_operator_without_profiles_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgetune_operator", "--profiles", str(tmp_path / "none.yaml")]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 1
    assert "none.yaml: No such file or directory" in done.stderr
