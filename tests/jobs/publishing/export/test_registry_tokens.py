"""A registry whose tokens are for one right and a short time: a new one is asked for when a request is refused."""

import base64
import itertools
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from edgetune_jobs.errors import AccessDenied
from edgetune_jobs.publishing.addresses import ModelAddress
from edgetune_jobs.publishing.export.bundle import bundle_of_store
from edgetune_jobs.publishing.export.registry import export_to_registry, parse_reference
from edgetune_jobs.store.folder_store import LocalFolderStore
from support.published import MODEL, PublishedModel
from support.registry import docker_login

REQUESTS_OF_A_TOKEN = 3


class TokenRegistry(ThreadingHTTPServer):
    """Takes everything that comes with a token of the right scope, which a password buys."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.left: dict[str, int] = {}
        """Requests that each token is good for."""

        self.numbers = itertools.count()
        self.pushed: dict[str, bytes] = {}


class _Handler(BaseHTTPRequestHandler):
    server: TokenRegistry

    def do_GET(self) -> None:
        if not self.path.startswith("/token"):
            self._challenge("pull")
            return
        if self.headers.get("Authorization") != f"Basic {base64.b64encode(b'pusher:secret').decode()}":
            self._answer(401)
            return
        (scope,) = parse_qs(urlsplit(self.path).query)["scope"]
        token = f"{scope.rpartition(':')[2]}-{next(self.server.numbers)}"
        self.server.left[token] = REQUESTS_OF_A_TOKEN
        self._answer(200, json.dumps({"token": token}).encode())

    def do_HEAD(self) -> None:
        if self._is_allowed("pull"):
            self._answer(404)

    def do_POST(self) -> None:
        if self._is_allowed("pull,push"):
            self._answer(202, location=f"{self.path}upload?state=1")

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self._is_allowed("pull,push"):
            self.server.pushed[self.path] = data
            self._answer(201)

    def _is_allowed(self, right: str) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token.startswith(f"{right}-") and self.server.left.get(token, 0):
            self.server.left[token] -= 1
            return True
        self._challenge(right)
        return False

    def _challenge(self, right: str) -> None:
        realm = f"http://127.0.0.1:{self.server.server_port}/token"
        self._answer(401, challenge=f'Bearer realm="{realm}",service="tests",scope="repository:team/model:{right}"')

    def _answer(self, status: int, body: bytes = b"", location: str = "", challenge: str = "") -> None:
        self.send_response(status)
        for name, value in (("Location", location), ("WWW-Authenticate", challenge)):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def registry() -> Iterator[TokenRegistry]:
    with TokenRegistry() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("password", ["secret", "wrong", None])
def test_tokens_are_renewed_for_each_right_and_after_their_time(
    registry: TokenRegistry, password: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = LocalFolderStore((tmp_path / "store").as_uri())
    document = PublishedModel(store, tmp_path / "local", has_cards=True).publish()
    bundle = bundle_of_store(store, ModelAddress(store.uri, MODEL, None), None)
    host = f"127.0.0.1:{registry.server_port}"
    reference = parse_reference(f"oci://{host}/team/model:v1")
    if password is not None:
        docker_login(tmp_path, host, password)

    if password != "secret":
        with pytest.raises(AccessDenied, match=r"accepts no credentials that are here \(401\)"):
            export_to_registry(bundle, reference)
        assert registry.pushed == {}
        return
    assert export_to_registry(bundle, reference).startswith(f"{reference}@sha256:")

    pushed = {path.partition("sha256%3A")[2]: data for path, data in registry.pushed.items()}
    for entry in document.edge.all_files:
        assert len(pushed[entry.sha256]) == entry.bytes
    manifest = json.loads(registry.pushed["/v2/team/model/manifests/v1"])
    assert [layer["size"] for layer in manifest["layers"]] == [entry.bytes for entry in bundle.entries]
