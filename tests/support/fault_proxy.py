"""A proxy in front of a real HTTP server that injects faults of networks and services."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_CONNECTION_HEADERS = frozenset(("connection", "expect", "keep-alive", "transfer-encoding"))


@dataclass
class Fault:
    """The effects on matching requests, applied in the order of the fields."""

    method: str
    path_part: str
    """Part of the path and query string."""

    times: int = 1_000_000
    """Number of matching requests that are affected."""

    after: int = 0
    """Number of matching requests that pass first."""

    before_forwarding: Callable[[], None] | None = None
    """Called when the request has arrived."""

    status: int | None = None
    """Status to answer without forwarding the request."""

    without_request_header: str | None = None
    """Header to remove from the request, as the client writes it."""

    forwarded: bool = True
    """False: the connection is closed without forwarding the request."""

    after_forwarding: Callable[[], None] | None = None
    """Called when the server has answered, before the client gets the answer."""

    loses_answer: bool = False
    """The request is forwarded, but the connection is closed before the answer."""

    cut_after: int | None = None
    """The answer's body ends after this many bytes, fewer than its header says."""

    flip_byte: int | None = None
    """Index of a byte of the answer's body to change."""

    without_header: str | None = None
    """Header to remove from the answer, in lower case."""

    seen: int = field(default=0, init=False)

    def takes(self, method: str, path: str) -> bool:
        """Whether this request is affected; counts matching requests."""
        if method != self.method or self.path_part not in path:
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


@dataclass
class FaultProxy:
    """A running proxy. Faults may be added and cleared at any time; the first matching one applies to a request."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request, in the order of arrival."""

    authorizations: set[str] = field(default_factory=set)
    """All headers Authorization; empty for a request without one."""

    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, method: str, path: str) -> Fault | None:
        """Record a request; the fault that applies to it, if any."""
        with self._lock:
            self.requests.append((method, path))
            return next((fault for fault in self.faults if fault.takes(method, path)), None)


@contextmanager
def running_proxy(target: str) -> Iterator[FaultProxy]:
    """A proxy in front of the server at the URL `target`, on a free port, until the block ends."""
    server = _Server(urlsplit(target).netloc)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        """Host and port of the real server."""

        self.proxy = FaultProxy(f"http://127.0.0.1:{self.server_port}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed
            self.close_connection = True
            return
        self.server.proxy.authorizations.add(self.headers.get("Authorization", ""))
        fault = self.server.proxy.record(self.command, self.path)
        if fault is None:
            self._answer(*self._forward(body))
        else:
            self._fail(fault, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request  # noqa: N815 - names of the base class

    def log_message(self, *_: Any) -> None:
        pass

    def _fail(self, fault: Fault, body: bytes) -> None:
        if fault.before_forwarding is not None:
            fault.before_forwarding()
        if fault.status is not None:
            self._answer(fault.status, [("Content-Length", "0")], b"")
            return
        if fault.without_request_header is not None:
            del self.headers[fault.without_request_header]
        answer = self._forward(body) if fault.forwarded else None
        if fault.after_forwarding is not None:
            fault.after_forwarding()
        if answer is None or fault.loses_answer:
            self.close_connection = True
            return
        status, headers, content = answer
        if fault.flip_byte is not None:
            position = fault.flip_byte
            content = content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        headers = [(name, value) for name, value in headers if name.lower() != fault.without_header]
        if fault.cut_after is not None:
            content = content[: fault.cut_after]
            self.close_connection = True
        self._answer(status, headers, content)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _CONNECTION_HEADERS}
        with closing(HTTPConnection(self.server.target, timeout=60)) as connection:
            connection.request(self.command, self.path, body=body, headers=headers)
            response = connection.getresponse()
            content = response.read()
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _CONNECTION_HEADERS]
        return response.status, kept, content

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        try:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if not any(name.lower() == "content-length" for name, _ in headers):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed
