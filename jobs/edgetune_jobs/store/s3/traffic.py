"""Counts the bytes of objects that an S3 client moves."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Traffic:
    """Bytes of request and response bodies, with those of repeated requests. Thread-safe."""

    sent: int = 0
    received: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def count(self, client: Any) -> None:
        """Count all requests of a boto3 S3 client from now on."""
        client.meta.events.register("before-send.s3", self._on_request)
        client.meta.events.register("after-call.s3.GetObject", self._on_object)

    def _on_request(self, request: Any, **_: object) -> None:
        headers = request.headers
        # Over TLS, a body is sent in chunks, with its checksum after it: only its own length is known before.
        size = headers.get("Content-Length", headers.get("X-Amz-Decoded-Content-Length", 0))
        with self._guard:
            self.sent += int(size)

    def _on_object(self, parsed: Mapping[str, Any], **_: object) -> None:
        # The body of a failed request has no such field.
        with self._guard:
            self.received += int(parsed.get("ContentLength", 0))
