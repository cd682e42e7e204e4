"""What a stage used of its node and its network: for comparison with what its Job requested, and with a cache."""

import resource
import sys
from pathlib import Path

from edgetune_contract.request import Result
from edgetune_jobs.models.loading import peak_resident_bytes
from edgetune_jobs.store.files import list_files
from edgetune_jobs.store.s3.traffic import Traffic
from edgetune_jobs.store.sources.model_cache import ModelCache

USED_MEMORY = "usedMemoryBytes"
_METRICS = (USED_MEMORY, "usedStorageBytes", "downloadedBytes", "uploadedBytes", "cachedBytes")
_UNIT = 1 if sys.platform == "darwin" else 1024


def used(folder: Path) -> dict[str, float]:
    """Metrics of this process so far.

    usedMemoryBytes is the peak resident set of this process, or of the largest one that it started and that has ended.
    Pages of mapped files count, which the system can reclaim. usedStorageBytes is the size of all files below `folder`.
    """
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _UNIT
    return {
        USED_MEMORY: max(peak_resident_bytes(), started),
        "usedStorageBytes": sum((folder / name).stat().st_size for name in list_files(folder)),
    }


def moved(traffic: Traffic, cache: ModelCache | None) -> dict[str, float]:
    """Metrics of the bytes that this process has moved so far: to and from S3, and from the cache."""
    if not traffic.received and not traffic.sent:
        return {}  # the store is a folder
    cached = {"cachedBytes": cache.bytes_read} if cache is not None else {}
    return {"downloadedBytes": traffic.received, "uploadedBytes": traffic.sent, **cached}


def without_usage(result: Result) -> Result:
    """The result without what its stage used, for the message of prepare, which has little room for all stages."""
    kept = {name: value for name, value in result.metrics.items() if name not in _METRICS}
    return result.model_copy(update={"metrics": kept})
