"""Up and down: the order in which a cluster's parts start, and in which they end without leaving anything."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster import binaries, images, object_store
from cluster.controlplane import ControlPlane, Listeners
from cluster.folders import RunFolder
from cluster.mounts import unmount_below
from cluster.network import NODE_ADDRESS, Network
from cluster.node import Node
from cluster.processes import Daemon

_DAEMONS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "versitygw",
    "containerd",
    "kube-proxy",
    "kubelet",
)
Report = Callable[[str], None]


@dataclass(frozen=True)
class Cluster:
    """A whole cluster in its run folder."""

    run: RunFolder
    report: Report = print

    @property
    def network(self) -> Network:
        return Network(self.run.name)

    @property
    def plane(self) -> ControlPlane:
        return ControlPlane(self.run.path, Listeners(NODE_ADDRESS), self.network.prefix)

    @property
    def node(self) -> Node:
        return Node(self.run, self.network, self.plane)

    def is_up(self) -> bool:
        """Whether it runs: all of its processes, not only some that an earlier end has left."""
        return all(Daemon(self.run.path, name).pid is not None for name in _DAEMONS)

    def up(self) -> None:
        """Start everything; what cannot be started whole is taken down again, but for its logs."""
        self.down()
        programs = binaries.build(binaries.OF_CLUSTER)
        names = images.build_all()
        try:
            self._start(names)
        except BaseException:
            self.down(keep_logs=True)
            raise
        self._write_programs(programs)

    def reload_images(self) -> None:
        """Build the images of a running cluster again, and bring in what has changed."""
        images.ContainerImages(self.run).load(images.build_all())

    def _start(self, names: tuple[str, ...]) -> None:
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.network.create()
        self.report("starting the control plane")
        self.plane.prepare()
        self.plane.start_api_server()
        self.plane.start_controllers()
        object_store.start(self.run, self.network)
        self.report("starting the node")
        self.node.start_containerd()
        images.ContainerImages(self.run).load(names)
        self.node.start_kube_proxy()
        self.node.start_kubelet()

    def down(self, *, keep_logs: bool = False, keep_images: bool = True) -> None:
        """Stop everything that runs and remove what it has left, in the order that lets each part finish.

        A cluster that is not up, or only in part, is taken down all the same.
        """
        if not self.run.path.exists():
            return
        self.plane.stop_controllers()
        self.node.stop()
        self.plane.stop_api_server()
        object_store.stop(self.run)
        self.node.stop_containerd()
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

    def _write_programs(self, programs: Mapping[str, Path]) -> None:
        """kubectl and helm for people: they enter the cluster's network and know its kubeconfig."""
        self.run.programs.mkdir(exist_ok=True)
        for name in ("kubectl", "helm"):
            wrapper = self.run.programs / name
            prefix = " ".join(self.network.prefix)
            wrapper.write_text(
                f'#!/bin/sh\nKUBECONFIG={self.run.kubeconfig} exec {prefix} {programs[name]} "$@"\n', encoding="utf-8"
            )
            wrapper.chmod(0o755)
