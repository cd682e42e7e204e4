"""What a stage's process finds in its environment, and what it sets there for the libraries."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgetune_jobs.errors import InvalidInput


@dataclass(frozen=True)
class Settings:
    """The environment of a stage's process."""

    request: str
    """EDGETUNE_REQUEST: the request as JSON."""

    work_folder: Path
    """EDGETUNE_WORK_DIR: everything temporary goes below it."""

    termination_log: Path
    """EDGETUNE_TERMINATION_LOG: the result is written to it."""

    credentials_folder: Path | None
    """EDGETUNE_CREDENTIALS_DIR: mounted Secret with files AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HF_TOKEN, …"""

    metrics_port: int
    """EDGETUNE_METRICS_PORT: Prometheus port while training; 0 is none."""

    image: str
    """EDGETUNE_IMAGE: reference of the container image, as the Pod names it; empty outside of a container."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Settings with their defaults.

        Raises:
            InvalidInput: EDGETUNE_METRICS_PORT is no port.
        """
        port = environment.get("EDGETUNE_METRICS_PORT", "8080")
        if not port.isdecimal() or int(port) > 65535:
            raise InvalidInput(f"EDGETUNE_METRICS_PORT is {port!r}: give a port from 1 to 65535, or 0 for none")
        credentials = environment.get("EDGETUNE_CREDENTIALS_DIR")
        return cls(
            request=environment.get("EDGETUNE_REQUEST", ""),
            work_folder=Path(environment.get("EDGETUNE_WORK_DIR", "/work")),
            termination_log=termination_log(environment),
            credentials_folder=Path(credentials) if credentials else None,
            metrics_port=int(port),
            image=environment.get("EDGETUNE_IMAGE", ""),
        )


def termination_log(environment: Mapping[str, str]) -> Path:
    """Where the result goes; known even when other settings are wrong."""
    return Path(environment.get("EDGETUNE_TERMINATION_LOG", "/dev/termination-log"))


def prepare_process(folder: Path, online: bool) -> None:
    """Set what the libraries read from the environment. Call it before anything imports torch or huggingface_hub.

    Args:
        folder: caches and temporary files of this process go here.
        online: whether the Hugging Face hub may be asked.
    """
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    tempfile.tempdir = None  # it was looked up before TMPDIR was set
    os.environ["HF_HOME"] = str(folder / "huggingface")
    os.environ["HF_HUB_OFFLINE"] = "0" if online else "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # Threads that spin while they wait steal the time of the others on shared or throttled cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
