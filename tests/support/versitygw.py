"""A real S3 server for tests, versitygw: built once into the cache, started on a free port over a folder."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.binaries import binary
from edgetune_contract.request import StoreLocation
from edgetune_jobs.store.s3.client import Credentials, create_client
from support.server_process import START_LIMIT_SECONDS, free_port, running


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket. `admin` has all permissions, `reader` may list and read the bucket."""

    endpoint: str
    folder: Path
    """Folder of the objects' files: <folder>/<bucket>/<key>."""

    bucket: str
    admin: Credentials
    reader: Credentials

    def location(self, prefix: str, endpoint: str | None = None, **fields: Any) -> StoreLocation:
        """A store below a prefix of the bucket, at the server or at a proxy in front of it."""
        return StoreLocation(
            uri=f"s3://{self.bucket}/{prefix}",
            endpoint=endpoint or self.endpoint,
            region="us-east-1",
            path_style=True,
            **fields,
        )

    def client(self, endpoint: str | None = None, credentials: Credentials | None = None, attempts: int = 2) -> Any:
        """A boto3 client."""
        return create_client(self.location("", endpoint), credentials or self.admin, attempts)

    def object_path(self, key: str) -> Path:
        """The file of an object, for tests that damage it."""
        return self.folder / self.bucket / key


@contextmanager
def running_server(folder: Path, bucket: str = "edgetune") -> Iterator[S3Server]:
    """A server with its data below `folder`, until the block ends."""
    for name in ("data", "metadata", "users"):
        (folder / name).mkdir(parents=True)
    admin, reader = Credentials("admin", "admin-secret"), Credentials("reader", "reader-secret")
    port = free_port()
    command = [str(binary("versitygw")), "--port", f"127.0.0.1:{port}", "--access", admin.access_key_id]
    command += ["--secret", admin.secret_access_key, "--quiet", "--iam-dir", str(folder / "users")]
    # The sidecar folder keeps metadata where the file system has no extended attributes.
    command += ["posix", "--sidecar", str(folder / "metadata"), str(folder / "data")]
    server = S3Server(f"http://127.0.0.1:{port}", folder / "data", bucket, admin, reader)
    with running(command, server.endpoint, folder / "server.log"):
        _create_bucket_and_reader(server)
        yield server


def _create_bucket_and_reader(server: S3Server) -> None:
    create_user(server, server.reader)
    server.client(attempts=5).create_bucket(Bucket=server.bucket)
    allow(server, server.bucket, server.reader, objects=["s3:GetObject"], bucket_actions=["s3:ListBucket"])


def create_user(server: S3Server, user: Credentials) -> None:
    """A user who may do nothing yet."""
    command = [str(binary("versitygw")), "admin", "--access", server.admin.access_key_id]
    command += ["--secret", server.admin.secret_access_key, "--endpoint-url", server.endpoint, "create-user"]
    command += ["--access", user.access_key_id, "--secret", user.secret_access_key, "--role", "user"]
    subprocess.run(command, check=True, capture_output=True, timeout=START_LIMIT_SECONDS)


def allow(
    server: S3Server, bucket: str, user: Credentials, objects: Sequence[str], bucket_actions: Sequence[str]
) -> None:
    """Replace a bucket's policy: the user may do this with its objects and with the bucket itself."""
    resource = f"arn:aws:s3:::{bucket}"
    principal = {"AWS": [user.access_key_id]}
    statements = [
        {"Effect": "Allow", "Principal": principal, "Action": objects, "Resource": [f"{resource}/*"]},
        {"Effect": "Allow", "Principal": principal, "Action": bucket_actions, "Resource": [resource]},
    ]
    policy = {"Version": "2012-10-17", "Statement": statements}
    server.client(attempts=5).put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))


def credentials_folder(folder: Path, credentials: Credentials) -> Path:
    """Write credentials into a new folder, as Kubernetes mounts a Secret; the folder."""
    secret = folder / f"secret-{credentials.access_key_id}"
    secret.mkdir()
    (secret / "AWS_ACCESS_KEY_ID").write_text(credentials.access_key_id)
    (secret / "AWS_SECRET_ACCESS_KEY").write_text(credentials.secret_access_key)
    return secret
