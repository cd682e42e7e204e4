"""The node: containerd, kubelet and kube-proxy, with real containers."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster import binaries
from cluster.cgroups import Cgroups
from cluster.controlplane import POD_NETWORK, ControlPlane
from cluster.dns import DOMAIN
from cluster.folders import RunFolder
from cluster.images import PAUSE
from cluster.mounts import unmount_below
from cluster.network import NODE_ADDRESS, Network
from cluster.processes import Daemon, wait_for

# Used in place of GPUs where nothing counts them: a stage that requests GPUs must see them.
ACCELERATOR = "example.com/accelerator"
GPU = "nvidia.com/gpu"
RUNTIME_WITHOUT_GPUS = "without-gpus"
"""Container runtime, by the name of its handler, in which a stage that requested GPUs does not look for them."""

# Patch of a node's status that advertises what the node does not have.
ACCELERATOR_OFFER = json.dumps({"status": {kind: {ACCELERATOR: "2", GPU: "1"} for kind in ("capacity", "allocatable")}})
# containerd calls it with `create --bundle FOLDER`; a real node's runtime adds its GPUs to the same file.
_RUNTIME_WITHOUT_GPUS = """#!/bin/sh
for word; do
  [ "$before" = --bundle ] && sed -i s/EDGETUNE_GPUS=1/EDGETUNE_GPUS=0/ "$word/config.json"
  before=$word
done
exec runc "$@"
"""
_CONTAINERD_LIMIT_SECONDS = 30
_READY_LIMIT_SECONDS = 120
_TASKS_LIMIT_SECONDS = 30
_POD_SUBNET = "10.244.0.0/24"
# CNI plugins store the addresses in use here, and the kubelet puts links for log collectors there.
_CNI_STATE = Path("/var/lib/cni")
_CONTAINER_LOG_LINKS = Path("/var/log/containers")
# The kubelet puts the socket for device plugins here, even with another root folder.
_KUBELET_STATE = Path("/var/lib/kubelet")


@dataclass(frozen=True)
class Node:
    """The node of one cluster."""

    run: RunFolder
    network: Network
    plane: ControlPlane

    def start_containerd(self) -> None:
        """Start containerd and wait until it answers."""
        self._runtime_without_gpus.write_text(_RUNTIME_WITHOUT_GPUS, encoding="utf-8")
        self._runtime_without_gpus.chmod(0o755)
        configuration = self.run.path / "containerd.toml"
        configuration.write_text(self._containerd_configuration(), encoding="utf-8")
        networks = self.run.path / "cni"
        networks.mkdir(exist_ok=True)
        (networks / "10-edgetune.conflist").write_text(json.dumps(self._network_configuration()), encoding="utf-8")
        containerd = Daemon(self.run.path, "containerd")
        containerd.start([*self.network.prefix, "containerd", "--config", configuration])
        containerd.wait_until(lambda: self._ctr("version") is not None, _CONTAINERD_LIMIT_SECONDS)

    def start_kubelet(self) -> None:
        """Start the kubelet, wait until the node is ready, and advertise GPUs."""
        cgroup = self._cgroups.make()
        configuration = self.run.path / "kubelet.json"
        configuration.write_text(json.dumps(self._kubelet_configuration(cgroup)), encoding="utf-8")
        if not _KUBELET_STATE.exists():
            self._made_kubelet_state.touch()
        kubelet = Daemon(self.run.path, "kubelet")
        kubelet.start(
            [
                *self.network.prefix,
                binaries.binary("kubelet"),
                f"--config={configuration}",
                f"--kubeconfig={self.plane.kubeconfig('kubelet')}",
                f"--root-dir={self.run.path / 'kubelet'}",
                f"--cert-dir={self.run.path / 'kubelet' / 'pki'}",
                f"--hostname-override={self.plane.node_name}",
                f"--node-ip={NODE_ADDRESS}",
            ]
        )
        kubelet.wait_until(self.is_ready, _READY_LIMIT_SECONDS)
        self.offer_accelerators()

    def start_kube_proxy(self) -> None:
        """Start kube-proxy, so that service addresses work."""
        Daemon(self.run.path, "kube-proxy").start(
            [
                *self.network.prefix,
                binaries.binary("kube-proxy"),
                f"--kubeconfig={self.plane.kubeconfig('kube-proxy')}",
                f"--hostname-override={self.plane.node_name}",
                f"--cluster-cidr={POD_NETWORK}",
                "--proxy-mode=iptables",
                # The cluster must not change limits of the whole machine.
                "--conntrack-max-per-core=0",
                "--conntrack-min=0",
            ]
        )

    def stop_kubelet(self) -> None:
        """Stop the kubelet. Containers keep running; the node is lost after the control plane's grace period."""
        Daemon(self.run.path, "kubelet").stop()

    def is_ready(self) -> bool:
        """Whether the node accepts Pods."""
        found = self.plane.kubectl("get", "node", self.plane.node_name, "-o", "json")
        if found is None:
            return False
        node = json.loads(found)
        conditions = {condition["type"]: condition["status"] for condition in node["status"].get("conditions", [])}
        return conditions.get("Ready") == "True" and not node["spec"].get("taints")

    def offer_accelerators(self) -> None:
        """Advertise accelerators that the node does not have. A restarted kubelet removes them."""
        node = self.plane.node_name
        patched = self.plane.kubectl("patch", "node", node, "--subresource=status", "-p", ACCELERATOR_OFFER)
        if patched is None:
            raise RuntimeError("cannot patch the node's status to advertise accelerators")

    def stop(self) -> None:
        """Delete all Pods, so that they leave nothing behind, then stop the kubelet and kube-proxy."""
        if Daemon(self.run.path, "kubelet").pid is not None:
            self.plane.kubectl("delete", "pods", "--all-namespaces", "--all", "--grace-period=1", "--wait=false")
            wait_for(lambda: not self._ctr("tasks", "list", "-q") and not self._pod_networks(), _TASKS_LIMIT_SECONDS)
        for name in ("kubelet", "kube-proxy"):
            Daemon(self.run.path, name).stop(limit_seconds=5)
        self._kill_tasks()

    def stop_containerd(self) -> None:
        """Stop containerd and remove the node's remains from the machine."""
        Daemon(self.run.path, "containerd").stop(limit_seconds=10)
        self._kill_shims()
        self._kill_processes_of_pods()
        unmount_below(self.run.path)
        self._remove_network_state()
        for link in _CONTAINER_LOG_LINKS.glob("*.log"):
            if link.is_symlink() and self.run.path in link.readlink().parents:
                link.unlink()
        _remove_if_empty(_CONTAINER_LOG_LINKS)
        if self._made_kubelet_state.exists():
            shutil.rmtree(_KUBELET_STATE, ignore_errors=True)
        self._cgroups.remove()

    @property
    def _runtime_without_gpus(self) -> Path:
        return self.run.path / RUNTIME_WITHOUT_GPUS

    @property
    def _cgroups(self) -> Cgroups:
        return Cgroups(self.run.name)

    @property
    def _made_kubelet_state(self) -> Path:
        """A file that exists if the machine had no kubelet before."""
        return self.run.path / "made-kubelet-state"

    def _ctr(self, *arguments: str) -> str | None:
        return _output(["ctr", "--address", str(self.run.containerd_socket), "--namespace", "k8s.io", *arguments])

    def _pod_networks(self) -> list[Path]:
        return list((self.run.path / "state" / "io.containerd.grpc.v1.cri" / "netns").glob("cni-*"))

    def _is_deleted(self, task: str) -> bool:
        return self._ctr("tasks", "delete", task) is not None

    def _kill_tasks(self) -> None:
        """Kill containers that the kubelet did not stop because it was not running or had too little time."""
        for task in (self._ctr("tasks", "list", "-q") or "").split():
            self._ctr("tasks", "kill", "--signal", "SIGKILL", "--all", task)
            wait_for(partial(self._is_deleted, task), 5)
        for container in (self._ctr("containers", "list", "-q") or "").split():
            self._ctr("containers", "delete", container)

    def _kill_shims(self) -> None:
        """Kill shims that outlived their containerd, identified by this cluster's socket in their command line."""
        for command_line in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # the process has ended
                words = command_line.read_bytes().split(b"\0")
                if b"containerd-shim" in words[0] and str(self.run.containerd_socket).encode() in words:
                    os.kill(int(command_line.parent.name), signal.SIGKILL)

    def _kill_processes_of_pods(self) -> None:
        """Kill processes in the Pods' cgroup, which outlive a killed containerd."""
        for pid in self._cgroups.processes():
            with contextlib.suppress(ProcessLookupError):  # the process has ended
                os.kill(pid, signal.SIGKILL)

    def _remove_network_state(self) -> None:
        """Remove the addresses and results that the CNI plugins stored."""
        shutil.rmtree(_CNI_STATE / "networks" / self.run.name, ignore_errors=True)
        results = _CNI_STATE / "results"
        for cached in results.glob(f"{self.run.name}-*-eth0"):
            sandbox = cached.name.removeprefix(f"{self.run.name}-").removesuffix("-eth0")
            (results / f"cni-loopback-{sandbox}-lo").unlink(missing_ok=True)
            cached.unlink()
        for folder in (_CNI_STATE / "networks", results, _CNI_STATE):
            _remove_if_empty(folder)

    def _containerd_configuration(self) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""version = 2
root = "{self.run.containerd_root}"
state = "{self.run.path / "state"}"
[grpc]
  address = "{self.run.containerd_socket}"
[{cri}]
  sandbox_image = "{PAUSE}"
  # Without this, no sandbox would start on machines without CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[{cri}.cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{self.run.path / "cni"}"
[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.{RUNTIME_WITHOUT_GPUS}]
  runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.{RUNTIME_WITHOUT_GPUS}.options]
  BinaryName = "{self._runtime_without_gpus}"
"""

    def _network_configuration(self) -> dict[str, object]:
        ipam = {"type": "host-local", "ranges": [[{"subnet": _POD_SUBNET}]], "routes": [{"dst": "0.0.0.0/0"}]}
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "0.4.0", "name": self.run.name, "plugins": [bridge, ports]}

    def _kubelet_configuration(self, cgroup: str) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.plane.authority)},
            },
            "authorization": {"mode": "Webhook"},
            "failCgroupV1": False,
            "failSwapOn": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup,
            "enforceNodeAllocatable": ["pods"],
            "clusterDomain": DOMAIN,
            "clusterDNS": [NODE_ADDRESS],
            "resolvConf": "",
            "containerRuntimeEndpoint": f"unix://{self.run.containerd_socket}",
            "podLogsDir": str(self.run.logs / "pods"),
            # The machine's other users share the disk and must not cause evictions.
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            # Several heartbeats within the control plane's grace period for nodes.
            "nodeStatusUpdateFrequency": "5s",
            "nodeLeaseDurationSeconds": 10,
        }


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is in use or does not exist
        folder.rmdir()


def _output(command: list[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
