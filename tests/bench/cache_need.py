"""What the operator's cache must hold for the objects of a cluster: the same cache, filled by this process."""

import json
import tracemalloc
from pathlib import Path

from edgetune_operator import names
from edgetune_operator.cache import Cache
from support.kube import Kube


def cache_bytes(kubeconfig: Path, namespace: str) -> int:
    """Bytes that a cache allocates for all objects, Jobs and Pods of a namespace."""
    kube = Kube.from_kubeconfig(kubeconfig)
    kinds = ((names.API_VERSION, names.KIND), ("batch/v1", "Job"), ("v1", "Pod"))
    # One text an item: each is parsed on its own, as the events of a watch are.
    objects, jobs, pods = ([json.dumps(item) for item in kube.list(*kind, namespace)] for kind in kinds)
    cache = Cache()
    tracemalloc.start()
    for text in objects:
        cache.put_object(json.loads(text))
    for text in jobs:
        cache.put_job(json.loads(text))
    for text in pods:
        cache.put_pod(json.loads(text))
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return allocated
