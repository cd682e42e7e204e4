"""The S3 server of a cluster: versitygw, with a folder behind it."""

import subprocess
from dataclasses import dataclass

from cluster import binaries
from cluster.folders import RunFolder
from cluster.processes import Daemon

ACCESS_KEY_ID = "edgetune"
SECRET_ACCESS_KEY = "edgetune-secret"
BUCKET = "edgetune"
_READY_LIMIT_SECONDS = 30


@dataclass(frozen=True)
class Gateway:
    """One S3 server for the cluster's buckets; several servers may serve the same buckets."""

    run: RunFolder
    prefix: tuple[str, ...]
    """Prefix of commands that run in the cluster's network, such as `nsenter --net=…`."""

    address: str
    """Address at which Pods reach the server; the cluster may have no DNS."""

    name: str = "versitygw"
    port: int = 7070

    @property
    def endpoint(self) -> str:
        """URL for Pods and for processes in the cluster's network."""
        return f"http://{self.address}:{self.port}"

    def start(self) -> None:
        """Start the server with one bucket, and wait until it answers."""
        metadata = self.run.path / "s3" / "metadata"
        for folder in (self.run.buckets / BUCKET, metadata):
            folder.mkdir(parents=True, exist_ok=True)
        self._daemon.start(
            [
                *self.prefix,
                binaries.binary("versitygw"),
                f"--port={self.address}:{self.port}",
                f"--access={ACCESS_KEY_ID}",
                f"--secret={SECRET_ACCESS_KEY}",
                "--quiet",
                "posix",
                # Metadata in separate files, because not every file system has extended attributes.
                f"--sidecar={metadata}",
                self.run.buckets,
            ]
        )
        self._daemon.wait_until(self._accepts, _READY_LIMIT_SECONDS)

    def stop(self) -> None:
        """Stop the server. The limit is short because it would wait for clients that keep their connections."""
        self._daemon.stop(limit_seconds=1)

    def _accepts(self) -> bool:
        probe = [*self.prefix, "bash", "-c", f"exec 3<>/dev/tcp/{self.address}/{self.port}"]
        return subprocess.run(probe, check=False, capture_output=True).returncode == 0

    @property
    def _daemon(self) -> Daemon:
        return Daemon(self.run.path, self.name)
