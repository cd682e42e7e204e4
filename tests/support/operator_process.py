"""The operator as a process on this machine, for tests on a cluster that does not run it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support.kube import Kube

_STOP_LIMIT_SECONDS = 30


@dataclass(frozen=True)
class OperatorProcess:
    """A running operator."""

    process: "subprocess.Popen[bytes]"
    log: Path


@contextmanager
def running_operator(
    folder: Path, kubeconfig: Path, profiles: Mapping[str, Any], *arguments: str
) -> Iterator[OperatorProcess]:
    """An operator for all namespaces, with the user of a kubeconfig. Its log is kept in the folder.

    Args:
        profiles: profiles by name, as in the chart's values.
        arguments: additional command-line arguments.
    """
    file = folder / "profiles.yaml"
    file.write_text(yaml.safe_dump({"profiles": dict(profiles)}), encoding="utf-8")
    # The same identity each time: after a test kills an operator, the next one does not wait for its Lease to expire.
    command = [sys.executable, "-m", "edgetune_operator", "--profiles", str(file), "--log-format", "text"]
    command += ["--identity=tests/operator", *arguments]
    with _running(command, kubeconfig, folder / "operator.log") as operator:
        yield operator


@contextmanager
def running_installed_operator(
    folder: Path, kubeconfig: Path, deployment: Mapping[str, Any], profiles: str, python: Sequence[str] = ()
) -> Iterator[OperatorProcess]:
    """The operator with the command and arguments of its Deployment, and free ports. Its log is kept in the folder.

    Args:
        deployment: the chart's manifest.
        profiles: text of the profiles file.
        python: options of the interpreter, such as a profiler.
    """
    file = folder / "profiles.yaml"
    file.write_text(profiles, encoding="utf-8")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    ports = [f"--{use}-port={port}" for use, port in zip(("health", "metrics"), free_ports(2), strict=True)]
    arguments = [*container["command"][1:], *container["args"], f"--profiles={file}", *ports]
    with _running([sys.executable, *python, *arguments], kubeconfig, folder / "operator.log") as operator:
        yield operator


@contextmanager
def _running(command: Sequence[str], kubeconfig: Path, log: Path) -> Iterator[OperatorProcess]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env={**os.environ, "KUBECONFIG": str(kubeconfig)}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield OperatorProcess(process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=_STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def service_account_kubeconfig(kube: Kube, kubeconfig: Path, namespace: str, account: str) -> Path:
    """A kubeconfig for a service account, written beside that of a user who is allowed to create its token."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    reply = kube.request("POST", path, {"spec": {"expirationSeconds": 3600}})
    if not reply.accepted:
        raise AssertionError(f"no token for service account {namespace}/{account}: {reply.message}")
    config = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
    config["users"][0]["user"] = {"token": reply.body["status"]["token"]}
    own = kubeconfig.with_name(f"{account}.kubeconfig")
    own.write_text(yaml.safe_dump(config), encoding="utf-8")
    return own


def free_ports(count: int) -> list[int]:
    """Unused TCP ports."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
