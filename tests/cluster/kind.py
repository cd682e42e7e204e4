"""The same cluster with kind, on machines with Docker: its node is a container, and its S3 server runs outside."""

import ipaddress
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import binaries
from cluster.controlplane import AUDIT_POLICY
from cluster.folders import REPOSITORY, RunFolder
from cluster.images import DOCKERFILES, given_release
from cluster.lifecycle import Report, write_programs
from cluster.node import ACCELERATOR_OFFER
from cluster.object_store import Gateway
from cluster.processes import stop_all
from cluster.requirements import NotPossibleHere

_PROGRAMS = ("kubectl", "helm", "versitygw")
_AUDIT_FOLDER = "/etc/edgetune"
_READY_LIMIT = "180s"


@dataclass(frozen=True)
class KindCluster:
    """A cluster of one node, without access to the node itself, for example to stop its kubelet."""

    run: RunFolder
    report: Report = print

    has_images_by_digest = False
    """`kind load docker-image` keeps the tags only."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """Empty: every process on this machine can reach the API server."""
        return ()

    @property
    def object_store(self) -> Gateway:
        return Gateway(self.run, self.prefix, self._host_address())

    def ensure_possible(self) -> None:
        """Check that the cluster can run on this machine.

        Raises:
            NotPossibleHere: kind or Docker is missing.
        """
        for program in ("kind", "docker"):
            if shutil.which(program) is None:
                raise NotPossibleHere(f"there is no {program} on the PATH")
        if subprocess.run(["docker", "info"], check=False, capture_output=True).returncode != 0:
            raise NotPossibleHere("docker is installed, but does not answer `docker info`")

    def is_up(self) -> bool:
        """Whether kind lists this cluster."""
        return self.run.name in _run("kind", "get", "clusters").split()

    def build(self) -> None:
        """Build programs and images."""
        if given_release():
            raise RuntimeError("RELEASE is tested on a real node only: leave out CLUSTER=kind")
        binaries.build(_PROGRAMS)
        for name, dockerfile in DOCKERFILES.items():
            self.report(f"building {name}")
            _run("docker", "build", "--quiet", "--tag", name, "--file", str(REPOSITORY / dockerfile), str(REPOSITORY))

    def up(self) -> None:
        """Start everything; if a part does not start, stop the others."""
        self.down()
        self.build()
        try:
            self._start()
        except BaseException:
            self.down()
            raise

    def reload_images(self) -> None:
        """Rebuild the images of a running cluster and load them."""
        self.build()
        self._load_images()

    def down(self, *, keep_logs: bool = False, keep_images: bool = True) -> None:
        """Delete the cluster. kind keeps neither logs nor images of a cluster; Docker's images are kept."""
        del keep_logs, keep_images
        _run("kind", "delete", "cluster", "--name", self.run.name)
        stop_all(self.run.path)
        shutil.rmtree(self.run.path, ignore_errors=True)

    def image_digest(self, name: str) -> str:
        """Digest that distinguishes an image from an earlier one of the same name."""
        return _run("docker", "image", "inspect", "--format", "{{.Id}}", name).strip()

    def audit_log(self) -> Path:
        """The API server's current audit log."""
        self.run.audit_log.parent.mkdir(parents=True, exist_ok=True)
        _run("docker", "cp", f"{self._node}:{_AUDIT_FOLDER}/audit.log", str(self.run.audit_log))
        return self.run.audit_log

    @property
    def _node(self) -> str:
        return f"{self.run.name}-control-plane"

    def _start(self) -> None:
        self.run.path.mkdir(parents=True, exist_ok=True)
        policy, configuration = self.run.path / "audit-policy.json", self.run.path / "kind.json"
        policy.write_text(json.dumps(AUDIT_POLICY), encoding="utf-8")
        configuration.write_text(json.dumps(_configuration(policy)), encoding="utf-8")
        create = ("kind", "create", "cluster", "--name", self.run.name, "--config", str(configuration))
        _run(*create, "--kubeconfig", str(self.run.kubeconfig), "--wait", _READY_LIMIT)
        self.object_store.start()
        self._load_images()
        kubectl = (str(binaries.binary("kubectl")), f"--kubeconfig={self.run.kubeconfig}")
        _run(*kubectl, "patch", "node", self._node, "--subresource=status", "--patch", ACCELERATOR_OFFER)
        write_programs(self.run, self.prefix)

    def _load_images(self) -> None:
        for name in DOCKERFILES:
            self.report(f"loading {name}")
            _run("kind", "load", "docker-image", name, "--name", self.run.name)

    @staticmethod
    def _host_address() -> str:
        """This machine's address in the network of kind's containers, at which Pods reach the S3 server."""
        networks = json.loads(_run("docker", "network", "inspect", "kind"))
        gateways: list[str] = [entry["Gateway"] for entry in networks[0]["IPAM"]["Config"] if "Gateway" in entry]
        return next(address for address in gateways if ipaddress.ip_address(address).version == 4)


def _configuration(policy: Path) -> dict[str, Any]:
    """One node, whose API server writes an audit log into the node's file system."""
    arguments = {
        "audit-policy-file": f"{_AUDIT_FOLDER}/{policy.name}",
        "audit-log-path": f"{_AUDIT_FOLDER}/audit.log",
    }
    volume = {"name": "audit", "hostPath": _AUDIT_FOLDER, "mountPath": _AUDIT_FOLDER, "pathType": "DirectoryOrCreate"}
    patch = {"kind": "ClusterConfiguration", "apiServer": {"extraArgs": arguments, "extraVolumes": [volume]}}
    mount = {"hostPath": str(policy), "containerPath": f"{_AUDIT_FOLDER}/{policy.name}", "readOnly": True}
    node = {"role": "control-plane", "kubeadmConfigPatches": [json.dumps(patch)], "extraMounts": [mount]}
    return {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": [node]}


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
