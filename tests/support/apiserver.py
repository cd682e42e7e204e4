"""A real kube-apiserver with its etcd on free loopback ports, for tests that ask it for its verdict."""

import json
import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cluster.binaries import find

REPOSITORY = Path(__file__).parents[2]
BINARIES_VARIABLE = "EDGETUNE_KUBE_BIN"
BINARIES = ("etcd", "kube-apiserver")
# A cold start takes about 5 s on two idle cores.
_START_LIMIT_SECONDS = 120
_TOKEN = "test-admin"


def find_program(name: str) -> Path | None:
    """A program of the control plane: in $EDGETUNE_KUBE_BIN, or of the pinned version in the cache."""
    if BINARIES_VARIABLE in os.environ:
        path = Path(os.environ[BINARIES_VARIABLE]) / name
        return path if path.is_file() else None
    return find(name)


def find_binaries() -> dict[str, Path] | None:
    """etcd and kube-apiserver by name; None if one of them is missing."""
    found = {name: path for name in BINARIES if (path := find_program(name)) is not None}
    return found if len(found) == len(BINARIES) else None


@dataclass(frozen=True)
class Reply:
    """What the API server answered."""

    code: int
    body: dict[str, Any]

    @property
    def accepted(self) -> bool:
        return self.code < 300

    @property
    def message(self) -> str:
        """The server's sentence when it refused."""
        return str(self.body.get("message", ""))


@dataclass(frozen=True)
class ApiServer:
    """A running API server and the way to talk to it as its administrator."""

    url: str
    certificate: Path

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, accept: str = "application/json"
    ) -> Reply:
        """Send one request; a refusal is a reply, not an exception."""
        request = urllib.request.Request(  # noqa: S310 - the URL is this server's own
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {_TOKEN}", "Content-Type": "application/json", "Accept": accept},
        )
        context = ssl.create_default_context(cafile=str(self.certificate))
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310
                return Reply(answer.status, json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, _body(error.read()))

    def install_crd(self, crd: Mapping[str, Any]) -> None:
        """Create the CRD and wait until its objects are served.

        Raises:
            AssertionError: the server refuses it, or finds that its schema is not structural.
        """
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        reply = self.request("POST", f"{crds}?fieldValidation=Strict", crd)
        assert reply.accepted, reply.message
        deadline = time.monotonic() + 30
        while True:
            conditions = self.request("GET", f"{crds}/{crd['metadata']['name']}").body["status"].get("conditions") or []
            truths = {condition["type"]: condition for condition in conditions}
            assert truths.get("NonStructuralSchema", {}).get("status") != "True", truths["NonStructuralSchema"][
                "message"
            ]
            spec = crd["spec"]
            served = self.request(
                "GET", f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
            )
            if truths.get("Established", {}).get("status") == "True" and served.accepted:
                return
            assert time.monotonic() < deadline, f"the CRD is not established: {conditions}"
            time.sleep(0.1)

    def write_kubeconfig(self, path: Path) -> None:
        """Write a kubeconfig for kubectl."""
        cluster = {"server": self.url, "certificate-authority": str(self.certificate)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": _TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config), encoding="utf-8")


@contextmanager
def running_apiserver(binaries: Mapping[str, Path], folder: Path) -> Iterator[ApiServer]:
    """Start etcd and kube-apiserver below `folder`; both are gone afterwards.

    Raises:
        RuntimeError: a process ended, or the server was not ready in time; with the end of its log.
    """
    etcd_port, peer_port, port = _free_ports(3)
    key, public_key = folder / "service-account.key", folder / "service-account.pub"
    _openssl("genrsa", "-out", str(key), "2048")
    _openssl("rsa", "-in", str(key), "-pubout", "-out", str(public_key))
    tokens = folder / "tokens.csv"
    tokens.write_text(f'{_TOKEN},admin,admin,"system:masters"\n', encoding="utf-8")
    etcd_url = f"http://127.0.0.1:{etcd_port}"
    etcd = [
        str(binaries["etcd"]),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={etcd_url}",
        f"--advertise-client-urls={etcd_url}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        "--unsafe-no-fsync",
    ]
    apiserver = [
        str(binaries["kube-apiserver"]),
        f"--etcd-servers={etcd_url}",
        f"--cert-dir={folder / 'certificates'}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={public_key}",
        f"--service-account-signing-key-file={key}",
        f"--token-auth-file={tokens}",
        "--authorization-mode=RBAC",
    ]
    server = ApiServer(f"https://127.0.0.1:{port}", folder / "certificates" / "apiserver.crt")
    # The API server is stopped before its etcd: without it, it would hang for a minute.
    with _running(etcd, folder / "etcd.log"), _running(apiserver, folder / "apiserver.log") as process:
        _wait_until_ready(server, process, folder / "apiserver.log")
        yield server


def _body(content: bytes) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(content)
    except json.JSONDecodeError:
        # A path that is not served is answered in plain text.
        return {"message": content.decode(errors="replace")}
    return body


def _wait_until_ready(server: ApiServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT_SECONDS
    while not _is_ready(server):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"kube-apiserver is not ready:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def _is_ready(server: ApiServer) -> bool:
    if not server.certificate.exists():
        return False
    try:
        # The namespace is the last thing that an object needs and the server makes by itself.
        return server.request("GET", "/api/v1/namespaces/default").accepted
    except OSError:
        return False


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with ExitStack() as stack:
        output: IO[bytes] = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
