"""Memory of the operator's cache for the objects of a cluster, measured by filling the same cache in this process."""

import json
import tracemalloc
from pathlib import Path

from edgetune_operator.api import names
from edgetune_operator.cluster.watch_cache import Cache, Kind
from support.kube import Kube


def cache_bytes(kubeconfig: Path, namespace: str) -> int:
    """Bytes that the cache allocates for all objects, Jobs and Pods of a namespace."""
    kube = Kube.from_kubeconfig(kubeconfig)
    kinds = {Kind.OBJECT: (names.API_VERSION, names.KIND), Kind.JOB: ("batch/v1", "Job"), Kind.POD: ("v1", "Pod")}
    # One text per item: each is parsed separately, like the events of a watch.
    texts = [(kind, json.dumps(item)) for kind, listed in kinds.items() for item in kube.list(*listed, namespace)]
    cache = Cache()
    tracemalloc.start()
    for kind, text in texts:
        cache.put(kind, json.loads(text))
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return allocated
