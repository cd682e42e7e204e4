"""Where a device reads a model from: a folder, an HTTP server or a bucket. Reads only, from any byte on."""

import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import closing
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from edgetune_contract.request import StoreLocation

_CHUNK_BYTES = 2**20
_TIMEOUT_SECONDS = 60
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
# OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_WRONG_TIME = (9, 10)
_SAFE_IN_PATH = "/%:@!$&'()*+,;=~"

Chunks = Generator[tuple[int, bytes], None, None]
"""Parts of an object in order, each with the position of its first byte."""


class PullError(Exception):
    """A model cannot be pulled. The device keeps the version that it has."""


class Disturbed(PullError):
    """Network or service failed; the same request may succeed later."""


class Damaged(PullError):
    """An object has other content than its document says."""


class Missing(PullError):
    """There is no such object."""


class Origin(Protocol):
    """A store, read by keys."""

    uri: str

    def chunks(self, key: str, start: int = 0) -> Chunks:
        """An object from byte `start`, which must be within it, or from byte 0 if the server ignores ranges.

        A connection that is cut may look like the object's end.

        Raises:
            Disturbed: network or service failed, also after some chunks.
            Damaged: the object ends before `start`.
            Missing: there is no such object.
            PullError: it may not be read.
        """
        ...


def read_whole(origin: Origin, key: str, most_bytes: int) -> bytes:
    """A small object.

    Raises:
        Disturbed: network or service failed.
        Damaged: it is larger than `most_bytes`.
        Missing: there is no such object.
        PullError: it may not be read.
    """
    data = bytearray()
    with closing(origin.chunks(key)) as chunks:
        for _, chunk in chunks:
            data += chunk
            if len(data) > most_bytes:
                raise Damaged(f"{origin.uri}/{key} is damaged: it has more than {most_bytes:,} bytes")
    return bytes(data)


def open_origin(root: str) -> Origin:
    """The origin at a URI: file://, http://, https:// or s3://.

    Raises:
        PullError: it is no address, or has a password.
    """
    if root.startswith("s3://"):
        return _Bucket(root)
    return _Folder(root) if root.startswith("file://") else _Server(root)


class _Folder:
    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._folder = Path(unquote(urlsplit(uri).path))

    def chunks(self, key: str, start: int = 0) -> Chunks:
        try:
            with (self._folder / key).open("rb") as file:
                file.seek(start)
                yield from _read(file, start)
        except FileNotFoundError:
            raise _missing(self, key) from None
        except OSError as error:
            raise PullError(f"{self.uri}/{key}: {error.strerror}") from error


class _Server:
    """An HTTP server that gives files without credentials. Proxies come from https_proxy, http_proxy and no_proxy."""

    def __init__(self, uri: str) -> None:
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise PullError(f"{uri} is not an address: {error}") from error
        if "@" in parts.netloc:
            raise PullError(f"pull reads {parts.scheme}:// without credentials: leave out what is before @")
        self.uri = parts._replace(path=quote(parts.path, safe=_SAFE_IN_PATH)).geturl()

    def chunks(self, key: str, start: int = 0) -> Chunks:
        uri = f"{self.uri}/{quote(key)}"
        headers = {"Cache-Control": "no-cache"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            # The address is http:// or https://, by `open_origin`.
            request = urllib.request.Request(uri, headers=headers)  # noqa: S310 - see above
            opener = urllib.request.build_opener(_SecureRedirects)
            with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                if (encoding := answer.headers.get("Content-Encoding", "identity")) != "identity":
                    raise PullError(f"{uri} comes with Content-Encoding {encoding}: let the server send it as it is")
                yield from _read(answer, start if answer.status == http.client.PARTIAL_CONTENT else 0)
        except urllib.error.HTTPError as error:
            raise self._refused(key, error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # of an address that a redirect names
            raise Disturbed(f"cannot read {uri}: {_reason(error)}") from error

    def _refused(self, key: str, error: urllib.error.HTTPError) -> PullError:
        error.close()
        if error.code in (404, 410):
            return _missing(self, key)
        answer = f"{self.uri}/{key}: the server answered {error.code} {error.reason}"
        if error.code in _TRANSIENT:
            return Disturbed(answer)
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _too_short(self, key)
        if error.code in (401, 403):
            return PullError(f"{answer}; pull reads https:// without credentials: allow that, or use s3://")
        return PullError(answer)


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but none from https:// to http://: the document would come without TLS."""

    def redirect_request(self, request: Any, answer: Any, *details: Any) -> urllib.request.Request | None:
        target = str(details[-1])
        if request.full_url.startswith("https://") and not target.startswith("https://"):
            answer.close()
            raise PullError(f"{request.full_url} redirects to {target}: use an address that stays with https://")
        return super().redirect_request(request, answer, *details)


class _Bucket:
    """A bucket, with credentials, region and AWS_ENDPOINT_URL as the AWS command line finds them."""

    def __init__(self, uri: str) -> None:
        from edgetune_jobs.store.s3.client import split_uri

        self.uri = uri
        self._bucket, self._prefix = split_uri(uri)

    @cached_property
    def _client(self) -> Any:
        from edgetune_jobs.store.s3.client import create_client

        return create_client(StoreLocation(uri=self.uri), credentials=None)

    def chunks(self, key: str, start: int = 0) -> Chunks:
        from edgetune_jobs.errors import StageError, TransientError
        from edgetune_jobs.store.s3.client import has_no_valid_credentials, s3_errors

        request = {"Bucket": self._bucket, "Key": f"{self._prefix}/{key}".lstrip("/")}
        if start:
            request["Range"] = f"bytes={start}-"
        try:
            with s3_errors(f"{self.uri}/{key}"):
                answer = self._client.get_object(**request)
                with closing(answer["Body"]) as body:
                    yield from _read(body, start if "ContentRange" in answer else 0)
        except StageError as error:
            if has_no_valid_credentials(error.__cause__):
                raise PullError(
                    f"{self.uri}/{key}: this device has no valid credentials ({error.__cause__}); set "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to those of a user who may read it"
                ) from error
            if isinstance(error, TransientError):
                raise Disturbed(str(error)) from error
            code = (getattr(error.__cause__, "response", None) or {}).get("Error", {}).get("Code")
            if code == "NoSuchKey":
                raise _missing(self, key) from error
            if code == "InvalidRange":
                raise _too_short(self, key) from error
            raise PullError(f"{error}; {_clock()}" if code == "RequestTimeTooSkewed" else str(error)) from error


def _read(file: Any, position: int) -> Chunks:
    while chunk := file.read(_CHUNK_BYTES):
        yield position, chunk
        position += len(chunk)


def _missing(origin: Origin, key: str) -> Missing:
    return Missing(f"there is nothing at {origin.uri}/{key}; check the address, and whether the model was published")


def _too_short(origin: Origin, key: str) -> PullError:
    return Damaged(f"{origin.uri}/{key} is damaged: it is shorter than expected; run `edgetune verify` on it")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError) and reason.verify_code in _WRONG_TIME:
        return f"{reason.verify_message}; {_clock()}"
    return str(reason) or type(reason).__name__


def _clock() -> str:
    now = datetime.now(UTC)
    return f"this device's clock says {now:%Y-%m-%d %H:%M} UTC: if that is wrong, set it"
