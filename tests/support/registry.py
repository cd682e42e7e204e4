"""A real OCI registry for tests, distribution: built once into the cache, started on a free port over a folder."""

import base64
import json
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.binaries import find
from support.server_process import free_port, running

# Found before a test sets HOME, below which the cache is.
_PROGRAM = find("registry")
# The password "secret", hashed by bcrypt as htpasswd does.
_USER, _PASSWORD = "pusher", "secret"
_HASH = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"


@dataclass(frozen=True)
class OciRegistry:
    """A running registry."""

    host: str
    """With its port."""

    folder: Path
    """Folder of its data."""

    def manifest(self, repository: str, tag: str) -> tuple[dict[str, Any], str]:
        """The manifest of a tag, and its digest."""
        answer = self._get(f"{repository}/manifests/{tag}", {"Accept": "application/vnd.oci.image.manifest.v1+json"})
        return json.loads(answer.read()), answer.headers["Docker-Content-Digest"]

    def blob(self, repository: str, digest: str) -> bytes:
        """The content with this digest."""
        content: bytes = self._get(f"{repository}/blobs/{digest}", {}).read()
        return content

    def _get(self, path: str, headers: Mapping[str, str]) -> Any:
        request = urllib.request.Request(f"http://{self.host}/v2/{path}", headers=dict(headers))
        return urllib.request.urlopen(request, timeout=10)  # noqa: S310 - own URL


@contextmanager
def running_registry(folder: Path, *, with_password: bool = False) -> Iterator[OciRegistry]:
    """A registry with its data below `folder`, until the block ends; with a password, for the user of `docker_login`.

    Without the program in the cache, the test is skipped.
    """
    if _PROGRAM is None:
        pytest.skip("no registry in the cache: run `make programs`")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    configuration: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of the tests"},
    }
    if with_password:
        (folder / "htpasswd").write_text(f"{_USER}:{_HASH}\n")
        configuration["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(configuration))
    command = [str(_PROGRAM), "serve", str(folder / "config.yml")]
    with running(command, f"http://127.0.0.1:{port}/v2/", folder / "registry.log"):
        yield OciRegistry(f"127.0.0.1:{port}", folder / "data")


def docker_login(home: Path, host: str, password: str = _PASSWORD) -> None:
    """Write the credentials for a registry into a home folder, as `docker login` does."""
    (home / ".docker").mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{_USER}:{password}".encode()).decode()
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
