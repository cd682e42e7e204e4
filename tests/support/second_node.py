"""A second node that is always ready and accepts no Pods: if all nodes are lost, a control plane evicts no Pod."""

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
    """The node, inside the context; this process sends its heartbeats."""
    # It is cordoned before it is ready.
    kube.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME}, "spec": {"unschedulable": True}})
    ended = threading.Event()
    heartbeat = threading.Thread(target=_send_heartbeats, args=(kube, ended), name=NAME, daemon=True)
    _renew_lease(kube)
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "simulated by a test"}
    kube.set_status("v1", "Node", None, NAME, {"conditions": [ready]})
    heartbeat.start()
    try:
        yield
    finally:
        ended.set()
        heartbeat.join()
        kube.delete("v1", "Node", None, NAME)
        kube.delete("coordination.k8s.io/v1", "Lease", _LEASES, NAME)


def _send_heartbeats(kube: Kube, ended: threading.Event) -> None:
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
