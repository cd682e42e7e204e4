"""Folders of the test cluster."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE_VARIABLE = "EDGETUNE_CACHE_DIR"
# The path of a socket may have at most 107 bytes.
_LONGEST_FOLDER = 80


def cache_folder() -> Path:
    """Folder for files that are built once: $EDGETUNE_CACHE_DIR, or edgetune in the user's cache folder.

    All clones share it: programs have their pinned versions in their names, and layers of images are stored by content.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "edgetune"


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock, so that of several processes one makes what `name` stands for and the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class RunFolder:
    """The folder of one cluster. Everything that the cluster creates elsewhere has the cluster's name."""

    path: Path

    def __post_init__(self) -> None:
        if len(str(self.path)) > _LONGEST_FOLDER:
            raise ValueError(
                f"{self.path}: the path is too long for the sockets in it; use at most {_LONGEST_FOLDER} characters"
            )

    @property
    def name(self) -> str:
        """Name of the network namespace, the CNI network and the cgroup, different for each cluster."""
        return f"edgetune-{hashlib.sha256(str(self.path).encode()).hexdigest()[:6]}"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def programs(self) -> Path:
        """Folder of kubectl and helm for this cluster."""
        return self.path / "bin"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.path / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def containerd_socket(self) -> Path:
        return self.path / "containerd.sock"

    @property
    def containerd_root(self) -> Path:
        """Content and snapshots of images, kept when the cluster is stopped, so that the next one starts faster."""
        return self.path / "containerd"

    @property
    def left_up_by(self) -> Path:
        """A file that exists while `make cluster` leaves the cluster running; it has the path of the repository."""
        return self.path / "left-up-by"

    @property
    def buckets(self) -> Path:
        """Folder behind the S3 server: <bucket>/<key>."""
        return self.path / "s3" / "data"
