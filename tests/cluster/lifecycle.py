"""Start and stop of a cluster: the order in which its parts start, and stop without leaving anything behind."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import binaries, images
from cluster.controlplane import ControlPlane, Listeners
from cluster.dns import ClusterDns
from cluster.folders import RunFolder
from cluster.mounts import unmount_below
from cluster.network import NODE_ADDRESS, Network
from cluster.node import Node
from cluster.object_store import Gateway
from cluster.processes import Daemon, stop_all
from cluster.requirements import ensure_node_possible

_DAEMONS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "versitygw",
    "containerd",
    "kube-proxy",
    "coredns",
    "kubelet",
)
Report = Callable[[str], None]


@dataclass(frozen=True)
class Cluster:
    """A whole cluster in its run folder."""

    run: RunFolder
    report: Report = print

    has_images_by_digest = True
    """The node has its images by the names that the packaged chart has."""

    @property
    def network(self) -> Network:
        return Network(self.run.name)

    @property
    def prefix(self) -> tuple[str, ...]:
        """Prefix of commands that run in the cluster's network."""
        return self.network.prefix

    @property
    def plane(self) -> ControlPlane:
        return ControlPlane(self.run.path, Listeners(NODE_ADDRESS), self.network.prefix)

    @property
    def node(self) -> Node:
        return Node(self.run, self.network, self.plane)

    @property
    def object_store(self) -> Gateway:
        return Gateway(self.run, self.prefix, NODE_ADDRESS)

    def ensure_possible(self) -> None:
        """Check that the cluster can run on this machine; install missing packages.

        Raises:
            NotPossibleHere: no Linux, no root, no namespaces, or no packages.
        """
        ensure_node_possible()

    def is_up(self) -> bool:
        """Whether all of its processes run, not only some that an earlier stop left behind."""
        return all(Daemon(self.run.path, name).pid is not None for name in _DAEMONS)

    def up(self) -> None:
        """Start everything; if a part does not start, stop the others and keep the logs."""
        self.down()
        names = self.build()
        try:
            self._start(names)
        except BaseException:
            self.down(keep_logs=True)
            raise
        write_programs(self.run, self.prefix)

    def build(self) -> tuple[str, ...]:
        """Build programs and images into the cache; return the names of the images."""
        binaries.build(binaries.OF_CLUSTER)
        return images.build_all()

    def reload_images(self) -> None:
        """Rebuild the images of a running cluster and load the changed ones."""
        images.ContainerImages(self.run).load(self.build())

    def _start(self, names: tuple[str, ...]) -> None:
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.network.create()
        self.report("starting the control plane")
        self.plane.prepare()
        self.plane.start_api_server()
        self.plane.start_controllers()
        self.object_store.start()
        self.report("starting the node")
        self.node.start_containerd()
        images.ContainerImages(self.run).load(names)
        self.node.start_kube_proxy()
        ClusterDns(self.plane, NODE_ADDRESS).start()
        self.node.start_kubelet()

    def down(self, *, keep_logs: bool = False, keep_images: bool = True) -> None:
        """Stop everything and remove its files, in an order in which each part can finish.

        This also works if the cluster is not running, or only partly.
        """
        if not self.run.path.exists():
            return
        self.plane.stop_controllers()
        self.node.stop()
        self.plane.stop_api_server()
        self.object_store.stop()
        self.node.stop_containerd()
        stop_all(self.run.path)
        self.network.delete()
        unmount_below(self.run.path)
        kept = {self.run.containerd_root} if keep_images else set()
        kept |= {self.run.logs} if keep_logs else set()
        for entry in self.run.path.iterdir():
            if entry in kept:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        if not kept:
            self.run.path.rmdir()

    def image_digest(self, name: str) -> str:
        """Digest that distinguishes an image from an earlier one of the same name."""
        digest: str = images.Layout().descriptor(name)["digest"]
        return digest

    def audit_log(self) -> Path:
        """The API server's current audit log."""
        return self.run.audit_log


def write_programs(run: RunFolder, prefix: Sequence[str]) -> None:
    """Write wrappers of kubectl and helm that enter the cluster's network and use its kubeconfig."""
    run.programs.mkdir(exist_ok=True)
    for name in ("kubectl", "helm"):
        wrapper = run.programs / name
        command = " ".join([*prefix, str(binaries.binary(name))])
        wrapper.write_text(f'#!/bin/sh\nKUBECONFIG={run.kubeconfig} exec {command} "$@"\n', encoding="utf-8")
        wrapper.chmod(0o755)
