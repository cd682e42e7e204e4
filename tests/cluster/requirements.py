"""Requirements of a real node on this machine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

# Programs, by name on the PATH or by path, and the Debian packages that have them.
PROGRAMS: Mapping[str, str] = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "skopeo": "skopeo",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
_INSTALL_LIMIT_SECONDS = 600


class NotPossibleHere(Exception):
    """This machine cannot run a node; the message says why, in one sentence."""


def ensure_node_possible(programs: Mapping[str, str] = PROGRAMS) -> None:
    """Check that this machine can run a node, and install missing packages.

    Args:
        programs: programs that a node needs, and the Debian packages that have them.

    Raises:
        NotPossibleHere: no Linux, no root, no namespaces, or no packages.
    """
    if not sys.platform.startswith("linux"):
        raise NotPossibleHere("a real node needs Linux")
    if os.geteuid() != 0:
        raise NotPossibleHere("a real node needs root, to create network namespaces, mounts and cgroups")
    if _missing_packages(programs):
        _install(programs)
    if subprocess.run(["unshare", "--net", "--mount", "true"], check=False, capture_output=True).returncode != 0:
        raise NotPossibleHere("a real node needs network and mount namespaces, which this machine does not allow")


def _missing_packages(programs: Mapping[str, str]) -> list[str]:
    return sorted({package for program, package in programs.items() if shutil.which(program) is None})


def _install(programs: Mapping[str, str]) -> None:
    packages = _missing_packages(programs)
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise NotPossibleHere(f"a real node needs {names}, and there is no apt-get to install them with")
    print(f"installing {names}", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", *packages]):
        done = subprocess.run(
            command, env=environment, check=False, capture_output=True, text=True, timeout=_INSTALL_LIMIT_SECONDS
        )
    if done.returncode != 0 or _missing_packages(programs):
        raise NotPossibleHere(
            f"a real node needs {names}, and apt-get cannot install them: {done.stderr[-500:].strip()}"
        )
