"""What the operator's cache must hold for the objects of a cluster: the same cache, filled by this process."""

import json
import tracemalloc
from pathlib import Path

from edgetune_operator.api import names
from edgetune_operator.cluster.cache import Cache, Kind
from support.kube import Kube


def cache_bytes(kubeconfig: Path, namespace: str) -> int:
    """Bytes that a cache allocates for all objects, Jobs and Pods of a namespace."""
    kube = Kube.from_kubeconfig(kubeconfig)
    kinds = {Kind.OBJECT: (names.API_VERSION, names.KIND), Kind.JOB: ("batch/v1", "Job"), Kind.POD: ("v1", "Pod")}
    # One text an item: each is parsed on its own, as the events of a watch are.
    texts = [(kind, json.dumps(item)) for kind, listed in kinds.items() for item in kube.list(*listed, namespace)]
    cache = Cache()
    tracemalloc.start()
    for kind, text in texts:
        cache.put(kind, json.loads(text))
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return allocated
