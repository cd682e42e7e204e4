"""An MLflow server: calls of its REST API, each bounded in time and in the size of its answer, and never repeated."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

from edgetune_jobs.tracking.settings import TrackingSettings

_CONNECT_SECONDS = 3.0
_LARGEST_ANSWER = 32 * 2**20
_LONGEST_REASON = 200
# Too early, too many requests, and what servers and proxies answer while they start.
_TRANSIENT = (408, 425, 429)
NOT_FOUND, EXISTS = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"


class TrackerFailed(Exception):
    """A call failed; the message says why, in the words of one line."""

    def __init__(self, reason: str, *, is_final: bool, code: str = "") -> None:
        """
        Args:
            reason: why.
            is_final: whether the same call would fail again.
            code: MLflow's name of the error; empty without one.
        """
        super().__init__(reason)
        self.is_final = is_final
        self.code = code


class _Login(AuthBase):
    """Sets the header of the credentials. Without it, requests would take those of a .netrc file."""

    def __init__(self, settings: TrackingSettings) -> None:
        self._header = ""
        if settings.token:
            self._header = f"Bearer {settings.token}"
        elif settings.username:
            pair = f"{settings.username}:{settings.password}".encode()
            self._header = f"Basic {base64.b64encode(pair).decode()}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._header:
            request.headers["Authorization"] = self._header
        return request


class MlflowServer:
    """Calls of one server. Not thread-safe."""

    def __init__(self, settings: TrackingSettings) -> None:
        """
        Raises:
            TrackerFailed: the address is not that of a server.
        """
        if settings.problem:
            raise TrackerFailed(settings.problem, is_final=True)
        self._settings = settings
        self._session = requests.Session()
        self._session.auth = _Login(settings)

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """The answer to a call that changes nothing.

        Raises:
            TrackerFailed: there is none.
        """
        return self._call("GET", path, params=query)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a call with a body.

        Raises:
            TrackerFailed: there is none.
        """
        return self._call("POST", path, json=body)

    def _call(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            with self._session.request(
                method,
                f"{self._settings.uri}/api/2.0/mlflow/{path}",
                timeout=(_CONNECT_SECONDS, self._settings.answer_seconds),
                # Credentials are for the address that was given, and for no other.
                allow_redirects=False,
                stream=True,
                **content,
            ) as response:
                text = response.raw.read(_LARGEST_ANSWER, decode_content=True)
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise TrackerFailed(
                self._cleaned(_words_for(error, self._settings.answer_seconds)), is_final=False
            ) from None
        return self._parsed(response, text)

    def _parsed(self, response: requests.Response, text: bytes) -> dict[str, Any]:
        status = response.status_code
        if 300 <= status < 400:
            raise TrackerFailed(f"it redirects (HTTP {status}), which is not followed: set its address", is_final=True)
        try:
            answer = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            answer = None
        values: dict[str, Any] = answer if isinstance(answer, dict) else {}
        if status in (401, 403):
            raise TrackerFailed(f"it refuses the credentials (HTTP {status})", is_final=True)
        if status >= 400:
            code, message = str(values.get("error_code", "")), str(values.get("message", ""))
            said = f": {self._cleaned(message)}" if message else ""
            is_final = status < 500 and status not in _TRANSIENT
            raise TrackerFailed(f"it answers HTTP {status}{said}", is_final=is_final, code=code)
        if not isinstance(answer, dict):
            raise TrackerFailed("its answer is not that of an MLflow server: check its address", is_final=True)
        return values

    def _cleaned(self, text: str) -> str:
        return self._settings.without_secrets(" ".join(text.split()))[:_LONGEST_REASON]


def _words_for(error: Exception, answer_seconds: float) -> str:
    """Why no answer came, without the library's repetition of the address."""
    match error:
        case requests.exceptions.SSLError():
            return "its certificate is not trusted: set caBundleConfigMap in the profile, or REQUESTS_CA_BUNDLE"
        case requests.exceptions.ConnectTimeout():
            return f"it cannot be reached within {_CONNECT_SECONDS:g} s"
        case requests.exceptions.Timeout() | requests.exceptions.ReadTimeout():
            return f"it did not answer within {answer_seconds:g} s"
        case requests.exceptions.ProxyError():
            return "its proxy cannot be reached"
        case requests.exceptions.ConnectionError():
            refused = "Connection refused" in str(error)
            return "it refuses connections" if refused else f"it cannot be reached: {_innermost(error)}"
    return f"{type(error).__name__}: {error}"


def _innermost(error: BaseException) -> str:
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}"
