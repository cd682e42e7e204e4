"""The cluster's DNS: CoreDNS, which answers for the host names of Services and of Pods behind headless ones."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import binaries
from cluster.controlplane import ControlPlane
from cluster.processes import Daemon

DOMAIN = "cluster.local"
_START_LIMIT_SECONDS = 60
_ANSWER_LIMIT_SECONDS = 5
_STARTED = "CoreDNS-"
"""What it logs, with its version, once its server listens."""


@dataclass(frozen=True)
class ClusterDns:
    """CoreDNS of a control plane, as a process."""

    plane: ControlPlane
    address: str
    port: int = 53

    def start(self) -> None:
        """Start it, and wait until it answers: it has read the Services by then."""
        self._corefile.write_text(self._configuration(), encoding="utf-8")
        daemon = Daemon(self.plane.folder, "coredns")
        daemon.start([*self.plane.prefix, binaries.binary("coredns"), "-conf", self._corefile])
        # This process may be in another network.
        daemon.wait_until(lambda: _STARTED in daemon.log.read_text(encoding="utf-8"), _START_LIMIT_SECONDS)

    def stop(self) -> None:
        """Stop it."""
        Daemon(self.plane.folder, "coredns").stop()

    def resolve(self, name: str) -> list[str]:
        """IPv4 addresses of a name; none if it has none, or if nothing answers. In the cluster's own network only."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(_ANSWER_LIMIT_SECONDS)
            try:
                asking.connect((self.address, self.port))
                asking.send(_question(name))
                return _addresses(asking.recv(4096))
            except OSError:
                return []

    @property
    def _corefile(self) -> Path:
        return self.plane.folder / "Corefile"

    def _configuration(self) -> str:
        return f"""{DOMAIN}:{self.port} {{
    bind {self.address}
    errors
    kubernetes {DOMAIN} {{
        kubeconfig {self.plane.kubeconfig()}
    }}
}}
"""


_HEADER = bytes.fromhex("0001 0100 0001 0000 0000 0000")
_A_IN_INTERNET = bytes.fromhex("0001 0001")


def _question(name: str) -> bytes:
    """A query for the IPv4 addresses of a name (RFC 1035)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return _HEADER + labels + b"\0" + _A_IN_INTERNET


def _addresses(answer: bytes) -> list[str]:
    """IPv4 addresses in an answer to `_question`."""
    count, place = int.from_bytes(answer[6:8]), _after_name(answer, len(_HEADER)) + len(_A_IN_INTERNET)
    found: list[str] = []
    for _ in range(count):
        place = _after_name(answer, place)
        kind, length = int.from_bytes(answer[place : place + 2]), int.from_bytes(answer[place + 8 : place + 10])
        data = answer[place + 10 : place + 10 + length]
        found += [_dotted(data)] if kind == 1 else []
        place += 10 + length
    return found


def _after_name(answer: bytes, place: int) -> int:
    while answer[place]:
        if answer[place] >= 0xC0:  # a pointer to a name before
            return place + 2
        place += answer[place] + 1
    return place + 1


def _dotted(address: Sequence[int]) -> str:
    return ".".join(map(str, address))
