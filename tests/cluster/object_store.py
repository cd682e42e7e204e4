"""The S3 server of a cluster: versitygw, with a folder behind it."""

from cluster import binaries
from cluster.folders import RunFolder
from cluster.network import NODE_ADDRESS, Network
from cluster.processes import Daemon

PORT = 7070
# Reached by Pods at the node's address: there is no DNS in the cluster.
ENDPOINT = f"http://{NODE_ADDRESS}:{PORT}"
ACCESS_KEY_ID = "edgetune"
SECRET_ACCESS_KEY = "edgetune-secret"
BUCKET = "edgetune"
_READY_LIMIT_SECONDS = 30


def start(run: RunFolder, network: Network) -> None:
    """Start the server with one empty bucket, and wait until it answers."""
    metadata = run.path / "s3" / "metadata"
    for folder in (run.buckets / BUCKET, metadata):
        folder.mkdir(parents=True, exist_ok=True)
    server = Daemon(run.path, "versitygw")
    server.start(
        [
            *network.prefix,
            binaries.binary("versitygw"),
            f"--port={NODE_ADDRESS}:{PORT}",
            f"--access={ACCESS_KEY_ID}",
            f"--secret={SECRET_ACCESS_KEY}",
            "--quiet",
            "posix",
            # Metadata in files of its own: not each file system has extended attributes.
            f"--sidecar={metadata}",
            run.buckets,
        ]
    )
    server.wait_until(lambda: network.accepts(NODE_ADDRESS, PORT), _READY_LIMIT_SECONDS)


def stop(run: RunFolder) -> None:
    """Stop the server. Asked politely, it would wait for clients that keep their connections."""
    Daemon(run.path, "versitygw").stop(limit_seconds=1)
