"""Exports to an OCI registry. The tag is written last: until then, nobody sees the model."""

import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urljoin, urlsplit

from edgetune_contract.digest import canonical_json
from edgetune_jobs.errors import AccessDenied, InvalidInput, StageError, TransientError
from edgetune_jobs.publishing.export.bundle import Bundle
from edgetune_jobs.publishing.export.modelpack import MANIFEST_TYPE, config_of, manifest_of
from edgetune_jobs.store.files import fingerprint_of_bytes, require_free_space

SCHEME = "oci://"

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"{SCHEME}(?P<host>[A-Za-z0-9.-]+(?::\d+)?)/(?P<repository>{_PART}(?:/{_PART})*)"
    r":(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})"
)
_LOCAL = ("localhost", "127.0.0.1")
_TIMEOUT_SECONDS = 60
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Reference:
    """A tag in a repository of a registry."""

    host: str
    """With its port, if it has one."""

    repository: str
    tag: str

    @property
    def is_local(self) -> bool:
        """Whether the registry runs on this machine, where it has no certificate, as docker and oras assume too."""
        return self.host.partition(":")[0] in _LOCAL

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/{self.repository}:{self.tag}"


def parse_reference(text: str) -> Reference:
    """The reference in an oci:// URI.

    Raises:
        InvalidInput: it is not one.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a target: give oci://REGISTRY/REPOSITORY:TAG, in small letters before the tag"
        )
    return Reference(match["host"], match["repository"], match["tag"])


def export_to_registry(bundle: Bundle, reference: Reference) -> str:
    """Push a model in the layout of ModelPack; where it is then, with its digest.

    Args:
        bundle: the model.
        reference: repository and tag; what the tag named before is replaced.

    Raises:
        AccessDenied: the registry refuses the credentials.
        InvalidInput: it refuses the repository or the model, or the package oras is not installed.
        TransientError: it does not answer, or the disk is full.
        DamagedObject: a file has other content than the version says.
    """
    registry = _Registry(reference)
    config = config_of(bundle)
    manifest = canonical_json(manifest_of(bundle, config))
    with tempfile.TemporaryDirectory(prefix="edgetune-export-") as folder:
        scratch = Path(folder) / "file"
        require_free_space(scratch.parent, max(entry.bytes for entry in bundle.entries))
        for entry in bundle.entries:
            if not registry.has_blob(entry.sha256):
                bundle.place(entry, scratch)
                registry.push_blob(scratch, entry.sha256)
        scratch.write_bytes(config)
        registry.push_blob(scratch, fingerprint_of_bytes(config).sha256)
    return f"{reference}@sha256:{registry.push_manifest(manifest)}"


class _Registry:
    """Requests to a repository. oras finds the credentials, and gets tokens for them.

    Its own requests would read each file into memory, and repeat what is refused for two minutes.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._base = f"{'http' if reference.is_local else 'https'}://{reference.host}/v2/"
        self._headers: dict[str, str] = {}
        self._client = self._connect()

    def has_blob(self, sha256: str) -> bool:
        """Whether the repository has this content already."""
        return self._ask("HEAD", self._url(f"blobs/sha256:{sha256}"), missing_is_fine=True).status_code == 200

    def push_blob(self, file: Path, sha256: str) -> None:
        """Upload a file, whose SHA-256 the registry compares."""
        begun = self._ask("POST", self._url("blobs/uploads/"))
        place = urljoin(begun.url, begun.headers.get("Location", ""))
        place += f"{'&' if urlsplit(place).query else '?'}digest={quote(f'sha256:{sha256}')}"
        with file.open("rb") as content:
            self._ask("PUT", place, content, {"Content-Type": "application/octet-stream"})

    def push_manifest(self, manifest: bytes) -> str:
        """Write the tag; the SHA-256 of the manifest.

        Raises:
            TransientError: the registry has stored something else.
        """
        written = fingerprint_of_bytes(manifest).sha256
        url = self._url(f"manifests/{self._reference.tag}")
        answer = self._ask("PUT", url, manifest, {"Content-Type": MANIFEST_TYPE})
        stored = answer.headers.get("Docker-Content-Digest", f"sha256:{written}")
        if stored != f"sha256:{written}":
            raise TransientError(f"{self._reference}: the registry has stored {stored} instead of sha256:{written}")
        return written

    def _connect(self) -> Any:
        """A client of oras with the credentials of `docker login` or `oras login`."""
        try:
            from oras.container import Container
            from oras.logger import logger
            from oras.provider import Registry
        except ImportError as error:
            raise InvalidInput("oci:// needs the package oras: pip install 'edgetune[oci]'") from error
        logger.set_level(logging.CRITICAL)  # what it would say is in the errors below
        reference = self._reference
        challenge = self._challenge()
        backend = "basic" if challenge.lower().startswith("basic") else "token"
        client = Registry(hostname=reference.host, insecure=reference.is_local, auth_backend=backend)
        try:
            client.auth.load_configs(Container(f"{reference.host}/{reference.repository}:{reference.tag}"))
        except (OSError, ValueError) as error:
            raise InvalidInput(f"the credentials of `docker login` cannot be read: {error}") from error
        return client

    def _challenge(self) -> str:
        """How the registry wants requests to be authenticated; empty if it does not."""
        import requests

        try:
            answer = requests.get(self._base, timeout=_TIMEOUT_SECONDS)
        except requests.RequestException as error:
            raise self._unreachable(error) from error
        return answer.headers.get("WWW-Authenticate", "") if answer.status_code == 401 else ""

    def _ask(
        self,
        method: str,
        url: str,
        content: "IO[bytes] | bytes | None" = None,
        headers: Mapping[str, str] | None = None,
        *,
        missing_is_fine: bool = False,
    ) -> Any:
        """The answer to a request, which is sent again with a token if the registry wants one."""
        import requests

        try:
            answer = self._send(method, url, content, headers)
            if answer.status_code == 401 and self._authenticate(answer):
                answer = self._send(method, url, content, headers)
        except requests.RequestException as error:
            raise self._unreachable(error) from error
        if answer.status_code >= 400 and not (missing_is_fine and answer.status_code == 404):
            raise self._refused(answer)
        return answer

    def _authenticate(self, answer: Any) -> bool:
        """Whether a challenge has an answer: a token, also for other rights than the last one, or a password."""
        is_refused = "Authorization" in self._headers
        try:
            headers, is_authenticated = self._client.auth.authenticate_request(answer, {}, refresh=is_refused)
        except AttributeError:  # oras looks for a password that was not found
            return False
        if is_authenticated:
            self._headers = headers
        return bool(is_authenticated)

    def _send(self, method: str, url: str, content: Any, headers: Mapping[str, str] | None) -> Any:
        if hasattr(content, "seek"):
            content.seek(0)
        # A registry may send uploads to another host, which gets no token.
        own = self._headers if urlsplit(url).netloc == self._reference.host else {}
        return self._client.session.request(
            method, url, data=content, headers={**own, **(headers or {})}, timeout=_TIMEOUT_SECONDS
        )

    def _url(self, path: str) -> str:
        return f"{self._base}{self._reference.repository}/{path}"

    def _refused(self, answer: Any) -> StageError:
        status, where = answer.status_code, str(self._reference)
        if status == 401:
            return AccessDenied(
                f"{where}: the registry accepts no credentials that are here (401): run `docker login "
                f"{self._reference.host}` with an account that may push"
            )
        if status == 403:
            return AccessDenied(f"{where}: the registry refuses the push (403): use an account that may push there")
        if status == 404:
            return InvalidInput(f"{where}: the registry has no such repository (404): create it, or correct its name")
        said = f"{status} {answer.reason}{_message(answer)}"
        if status == 429 or status >= 500:
            return TransientError(f"{where}: the registry answered {said}; try again later")
        return InvalidInput(f"{where}: the registry refused the model: {said}")

    def _unreachable(self, error: Exception) -> TransientError:
        return TransientError(f"{self._reference}: cannot reach the registry: {error}")


def _message(answer: Any) -> str:
    """What the registry says about a refusal, in the form of the OCI distribution specification."""
    try:
        errors = answer.json()["errors"]
        said = "; ".join(str(error["message"]) for error in errors)
    except (ValueError, KeyError, TypeError):
        return ""
    return f": {said[:_LONGEST_MESSAGE]}" if said else ""
