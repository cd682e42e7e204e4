"""The network namespace of a cluster. It has no route to the outside, so no traffic can leave it."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.controlplane import SERVICE_NETWORK

NODE_ADDRESS = "172.30.0.1"
_NODE_DEVICE = "node0"


@dataclass(frozen=True)
class Network:
    """A named network namespace."""

    name: str

    @property
    def path(self) -> Path:
        return Path("/run/netns") / self.name

    @property
    def prefix(self) -> tuple[str, ...]:
        """Prefix of commands that run inside. Not `ip netns exec`, which remounts /sys and so hides the cgroups."""
        return ("nsenter", f"--net={self.path}")

    def create(self) -> None:
        """Create the namespace, with the node's address on a bridge."""
        _ip("netns", "add", self.name)
        self._ip("link", "set", "lo", "up")
        self._ip("link", "add", _NODE_DEVICE, "type", "bridge")
        self._ip("address", "add", f"{NODE_ADDRESS}/32", "dev", _NODE_DEVICE)
        self._ip("link", "set", _NODE_DEVICE, "up")
        # The API server calls webhooks at service addresses, which kube-proxy's rules translate.
        self._ip("route", "add", SERVICE_NETWORK, "dev", _NODE_DEVICE)
        self.run("sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1")

    def delete(self) -> None:
        """Delete the namespace, if it exists."""
        if self.path.exists():
            _ip("netns", "delete", self.name)

    def run(self, *command: str) -> None:
        """Run a command inside, and wait for its end."""
        _run(*self.prefix, *command)

    def _ip(self, *arguments: str) -> None:
        _ip("-netns", self.name, *arguments)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
