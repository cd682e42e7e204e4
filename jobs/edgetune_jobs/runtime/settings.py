"""Environment variables of a stage's process: its settings, and those that it sets for the libraries."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.runtime.nodes.place import NodePlace
from edgetune_jobs.store.sources.model_cache import ModelCache
from edgetune_jobs.tracking.settings import TrackingSettings


@dataclass(frozen=True)
class Settings:
    """The environment of a stage's process."""

    request: str
    """EDGETUNE_REQUEST: the request as JSON."""

    work_folder: Path
    """EDGETUNE_WORK_DIR: folder for temporary files."""

    termination_log: Path
    """EDGETUNE_TERMINATION_LOG: file to write the result to."""

    credentials_folder: Path | None
    """EDGETUNE_CREDENTIALS_DIR: mounted Secret with files AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HF_TOKEN, …"""

    metrics_port: int
    """EDGETUNE_METRICS_PORT: Prometheus port while training; 0 for none."""

    cache: ModelCache | None
    """EDGETUNE_MODEL_CACHE_DIR and EDGETUNE_MODEL_CACHE_BYTES: folder and size of the cache of base models."""

    deadline_seconds: int | None
    """EDGETUNE_DEADLINE_SECONDS: seconds that the stage's earlier Jobs have left of the deadline. A Pod does not know
    what earlier attempts of its own Job took: it has at most this time."""

    image: str
    """EDGETUNE_IMAGE: reference of the container image, as in the Pod; empty outside a container."""

    gpus: int = 0
    """EDGETUNE_GPUS: number of GPUs that the container was given, all of which it must see; 0: it uses what it sees."""

    gpu_bytes: int | None = None
    """EDGETUNE_GPU_BYTES: memory of the GPU that train will have, for prepare; unset if it is not known."""

    ranks: int = 0
    """EDGETUNE_RANKS: number of processes that train together, also on one GPU or a CPU; 0: one for each GPU."""

    place: NodePlace = field(default_factory=NodePlace)
    """EDGETUNE_NODES, EDGETUNE_RENDEZVOUS and JOB_COMPLETION_INDEX: which node of a training this container is."""

    signing_key: Path | None = None
    """EDGETUNE_SIGNING_KEY: PEM file with the private key, for publish; unset if nothing is signed."""

    tracking: TrackingSettings | None = None
    """EDGETUNE_MLFLOW_URI and the variables beside it: where train and publish track the run; None for nowhere."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Settings with their defaults.

        Raises:
            InvalidInput: EDGETUNE_METRICS_PORT is not a port, or EDGETUNE_GPUS, EDGETUNE_RANKS, EDGETUNE_GPU_BYTES,
                EDGETUNE_DEADLINE_SECONDS or EDGETUNE_MODEL_CACHE_BYTES not a number; or this is no node of a training.
        """
        port = environment.get("EDGETUNE_METRICS_PORT", "8080")
        if not port.isdecimal() or int(port) > 65535:
            raise InvalidInput(f"EDGETUNE_METRICS_PORT: {port!r} is not a port; use 1 to 65535, or 0 for none")
        gpus = environment.get("EDGETUNE_GPUS", "0")
        if not gpus.isdecimal():
            raise InvalidInput(f"EDGETUNE_GPUS: {gpus!r} is not a number of GPUs")
        ranks = environment.get("EDGETUNE_RANKS", "0")
        if not ranks.isdecimal():
            raise InvalidInput(f"EDGETUNE_RANKS: {ranks!r} is not a number of processes")
        deadline = environment.get("EDGETUNE_DEADLINE_SECONDS")
        if deadline and not deadline.isdecimal():
            raise InvalidInput(f"EDGETUNE_DEADLINE_SECONDS: {deadline!r} is not a number of seconds; use digits only")
        gpu_bytes = environment.get("EDGETUNE_GPU_BYTES")
        if gpu_bytes and not gpu_bytes.isdecimal():
            raise InvalidInput(f"EDGETUNE_GPU_BYTES: {gpu_bytes!r} is not a number of bytes; use digits only")
        credentials, key = environment.get("EDGETUNE_CREDENTIALS_DIR"), environment.get("EDGETUNE_SIGNING_KEY")
        return cls(
            request=environment.get("EDGETUNE_REQUEST", ""),
            work_folder=Path(environment.get("EDGETUNE_WORK_DIR", "/work")),
            termination_log=termination_log(environment),
            credentials_folder=Path(credentials) if credentials else None,
            metrics_port=int(port),
            cache=_cache(environment),
            deadline_seconds=int(deadline) if deadline else None,
            image=environment.get("EDGETUNE_IMAGE", ""),
            gpus=int(gpus),
            ranks=int(ranks),
            place=NodePlace.from_environment(environment),
            gpu_bytes=int(gpu_bytes) if gpu_bytes else None,
            signing_key=Path(key) if key else None,
            tracking=TrackingSettings.from_environment(environment),
        )


def _cache(environment: Mapping[str, str]) -> ModelCache | None:
    folder, size = environment.get("EDGETUNE_MODEL_CACHE_DIR"), environment.get("EDGETUNE_MODEL_CACHE_BYTES", "")
    if not folder:
        return None
    if not size.isdecimal():
        raise InvalidInput(f"EDGETUNE_MODEL_CACHE_BYTES: {size!r} is not a number of bytes; use digits only")
    return ModelCache(Path(folder), int(size))


def termination_log(environment: Mapping[str, str]) -> Path:
    """File to write the result to. Separate from Settings because it is needed when other settings are invalid."""
    return Path(environment.get("EDGETUNE_TERMINATION_LOG", "/dev/termination-log"))


def prepare_process(folder: Path, online: bool) -> None:
    """Set the environment variables of the libraries. Call it before any import of torch or huggingface_hub.

    Args:
        folder: for caches and temporary files of this process.
        online: whether huggingface_hub may connect to the hub.
    """
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    tempfile.tempdir = None  # cached before TMPDIR was set
    os.environ["HF_HOME"] = str(folder / "huggingface")
    os.environ["HF_HUB_OFFLINE"] = "0" if online else "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
    # Threads that spin while they wait slow down all others on shared or throttled cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
