"""A server with the part of the Hugging Face hub's protocol that downloads of models need."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_LARGE_FILE_SUFFIXES = (".safetensors", ".bin")


@dataclass
class FakeHub:
    """A running hub with one model at one commit. Its fields may be changed while it runs."""

    endpoint: str
    repository: str
    commit: str
    files: dict[str, bytes]
    error: tuple[int, str] | None = None
    """Status and error code for all answers."""

    needs_token: str | None = None
    altered: dict[str, bytes] = field(default_factory=dict)
    """Content by file name that is sent instead of that in the file list."""

    fetched: list[str] = field(default_factory=list)
    """Names of files whose content was requested."""


@contextmanager
def running_hub(repository: str, commit: str, files: Mapping[str, bytes]) -> Iterator[FakeHub]:
    """A hub on a free port, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if self._send_error():
                return
            if path in (f"/api/models/{repository}/revision/{name}" for name in (commit, "main")):
                content = json.dumps(_model_info(hub)).encode()
                self._send(200, {"Content-Type": "application/json"}, content)
                return
            name = path.removeprefix(f"/{repository}/resolve/{commit}/")
            if name in hub.files:
                if self.command == "GET":
                    hub.fetched.append(name)
                content = hub.altered.get(name, hub.files[name])
                etag = _lfs(hub.files[name])["sha256"] if _is_large(name) else _blob_id(hub.files[name])
                self._send(200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, content)
                return
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")

        do_HEAD = do_GET  # noqa: N815 - name of the base class

        def log_message(self, *_: Any) -> None:
            pass

        def _send_error(self) -> bool:
            if hub.needs_token and self.headers.get("Authorization") != f"Bearer {hub.needs_token}":
                self._send(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b"")
                return True
            if hub.error is not None:
                status, code = hub.error
                self._send(status, {"X-Error-Code": code} if code else {}, b"")
                return True
            return False

        def _send(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}", repository, commit, dict(files))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _model_info(hub: FakeHub) -> dict[str, Any]:
    siblings = []
    for name, content in hub.files.items():
        sibling = {"rfilename": name, "size": len(content), "blobId": _blob_id(content)}
        siblings.append(sibling | ({"lfs": _lfs(content)} if _is_large(name) else {}))
    return {"id": hub.repository, "modelId": hub.repository, "sha": hub.commit, "siblings": siblings}


def _is_large(name: str) -> bool:
    return name.endswith(_LARGE_FILE_SUFFIXES)


def _lfs(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 135}


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
