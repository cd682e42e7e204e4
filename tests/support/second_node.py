"""A second node that is always ready and takes no Pods: a control plane that has lost all nodes gives up none."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from support.kube import Kube

NAME = "second-node"
_HEARTBEAT_SECONDS = 2
_LEASES = "kube-node-lease"


@contextmanager
def second_node(kube: Kube) -> Iterator[None]:
    """The node, until the block ends; this process gives its signs of life."""
    # It is cordoned before the scheduler sees it ready.
    kube.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME}, "spec": {"unschedulable": True}})
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(kube, ended), name=NAME, daemon=True)
    _renew_lease(kube)
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "it is played by a test"}
    kube.set_status("v1", "Node", None, NAME, {"conditions": [ready]})
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()
        kube.delete("v1", "Node", None, NAME)
        kube.delete("coordination.k8s.io/v1", "Lease", _LEASES, NAME)


def _beat(kube: Kube, ended: threading.Event) -> None:
    while not ended.wait(_HEARTBEAT_SECONDS):
        _renew_lease(kube)


def _renew_lease(kube: Kube) -> None:
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    kube.apply(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NAME, "namespace": _LEASES},
            "spec": {"holderIdentity": NAME, "leaseDurationSeconds": 40, "renewTime": now},
        }
    )
