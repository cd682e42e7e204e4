"""Kueue on a control plane: its own chart's manifests, and its controller as a process with the chart's rights.

A process needs no image and no node, so that tests with and without a node use the same Kueue. The API server reaches
its webhooks and its visibility API through Services of type ExternalName. The certificate, which Kueue itself makes, is
written to its folder as a kubelet would mount the Secret.
"""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster import binaries
from cluster.controlplane import ControlPlane, free_ports
from cluster.folders import cache_folder, locked
from cluster.processes import Daemon

NAMESPACE = "kueue-system"
API_VERSION = "kueue.x-k8s.io/v1beta2"
_START_LIMIT_SECONDS = 240
_SECRET = "kueue-webhook-server-cert"
# Kueue's Pod and its configuration; everything else of the chart is applied.
_NOT_APPLIED = ("Deployment", "ConfigMap")


def chart() -> Path:
    """Folder of Kueue's chart, in the version of the program, from the same Go module."""
    version = binaries.version("kueue")
    folder = cache_folder() / f"kueue-chart-{version}"
    with locked(cache_folder(), folder.name):
        if not folder.is_dir():
            draft = folder.with_name(f".{folder.name}")
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(binaries.module("sigs.k8s.io/kueue", version) / "charts" / "kueue", draft)
            draft.rename(folder)
    return folder


def start(plane: ControlPlane) -> None:
    """Install Kueue on a control plane that serves, start its controller, and wait until it admits Jobs.

    In a cluster with its own network, this process must be in it.
    """
    webhook, health, visibility = free_ports(3)
    _apply(plane, list(_manifests(webhook, visibility)))
    _certificates(plane).mkdir(exist_ok=True)
    _write_configuration(plane, webhook, health, visibility)
    resume(plane)


def resume(plane: ControlPlane) -> None:
    """Start the controller of an installed Kueue, and wait until it admits Jobs."""
    daemon = Daemon(plane.folder, "kueue")
    daemon.start(
        [
            *plane.prefix,
            # It writes the certificate of its visibility API into its working directory.
            *("env", f"--chdir={plane.folder}", binaries.binary("kueue")),
            f"--config={_configuration(plane)}",
            f"--kubeconfig={plane.kubeconfig('kueue')}",
        ]
    )
    daemon.wait_until(lambda: _mount_certificates(plane), _START_LIMIT_SECONDS)
    daemon.wait_until(lambda: _serves(plane), _START_LIMIT_SECONDS)


def stop(plane: ControlPlane) -> None:
    """Stop the controller; its webhooks remain, and refuse Jobs."""
    Daemon(plane.folder, "kueue").stop()


def _manifests(webhook: int, visibility: int) -> Iterator[dict[str, Any]]:
    command = [binaries.binary("helm"), "template", "kueue", chart(), "--namespace", NAMESPACE]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    for manifest in yaml.safe_load_all(done.stdout):
        if manifest is None or manifest["kind"] in _NOT_APPLIED:
            continue
        if manifest["kind"] == "Service":
            manifest["spec"] = {"type": "ExternalName", "externalName": "localhost"}
        for client in _webhook_clients(manifest):
            client["service"]["port"] = webhook
        if manifest["kind"] == "APIService":
            manifest["spec"]["service"]["port"] = visibility
        yield manifest


def _webhook_clients(node: Any) -> Iterator[dict[str, Any]]:
    """All `clientConfig` of a manifest that name a Service."""
    if isinstance(node, list):
        for item in node:
            yield from _webhook_clients(item)
    elif isinstance(node, dict):
        if isinstance(node.get("clientConfig"), dict) and "service" in node["clientConfig"]:
            yield node["clientConfig"]
        for value in node.values():
            yield from _webhook_clients(value)


def _apply(plane: ControlPlane, manifests: list[dict[str, Any]]) -> None:
    file = plane.folder / "kueue-manifests.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}), encoding="utf-8")
    command = ("apply", "--server-side", "--force-conflicts", "-f", str(file))
    deadline = time.monotonic() + _START_LIMIT_SECONDS
    # A request can take longer than kubectl waits while other tests start their own control planes.
    while plane.kubectl(*command) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the manifests of Kueue's chart are refused; see {plane.folder / 'logs'}")


def _configuration(plane: ControlPlane) -> Path:
    return plane.folder / "kueue.json"


def _certificates(plane: ControlPlane) -> Path:
    return plane.folder / "kueue-certificates"


def _write_configuration(plane: ControlPlane, webhook: int, health: int, visibility: int) -> None:
    configuration = {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": webhook, "certDir": str(_certificates(plane))},
        "visibilityServer": {"bindAddress": "127.0.0.1", "bindPort": visibility},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": True},
        "integrations": {"frameworks": ["batch/job"]},
        # As docs/queues.md advises for queues that cover GPUs only.
        "resources": {"excludeResourcePrefixes": ["cpu", "memory", "ephemeral-storage"]},
    }
    _configuration(plane).write_text(json.dumps(configuration), encoding="utf-8")


def _mount_certificates(plane: ControlPlane) -> bool:
    """Write the files of the Secret; whether it has them yet."""
    found = plane.kubectl("get", "secret", _SECRET, "-n", NAMESPACE, "-o", "json")
    data = json.loads(found).get("data") or {} if found else {}
    if "tls.crt" not in data:
        return False
    for name, content in data.items():
        (_certificates(plane) / name).write_bytes(base64.b64decode(content))
    return True


def _serves(plane: ControlPlane) -> bool:
    """Whether its webhooks answer: one of them completes a ClusterQueue."""
    queue = {"apiVersion": API_VERSION, "kind": "ClusterQueue", "metadata": {"name": "trial"}, "spec": {}}
    file = plane.folder / "kueue-trial.json"
    file.write_text(json.dumps(queue), encoding="utf-8")
    return plane.kubectl("create", "--dry-run=server", "-f", str(file)) is not None
