"""A client for tests: plain requests to the cluster of a kubeconfig, and changes to its Pods."""

import base64
import json
import os
import ssl
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import yaml

Document = dict[str, Any]

_FIELD_MANAGER = "edgetune-tests"
_REQUEST_LIMIT_SECONDS = 30
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
_POLL_SECONDS = 0.2

# Only for failures. What takes a second or two on a quiet machine took more than a minute beside other work.
LIMIT_SECONDS = 180.0


@dataclass(frozen=True)
class Reply:
    """The API server's response."""

    code: int
    body: Document

    @property
    def accepted(self) -> bool:
        return self.code < 300

    @property
    def message(self) -> str:
        """The server's message if it refused."""
        return str(self.body.get("message", ""))


class Refused(AssertionError):
    """The API server refused a request that a test expects to succeed."""


@dataclass
class Kube:
    """The API server as one user sees it."""

    url: str
    context: ssl.SSLContext
    headers: Mapping[str, str] = field(default_factory=dict)
    _plurals: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Self:
        """The cluster and user of a kubeconfig's current context, with a token or a client certificate."""
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        with tempfile.TemporaryDirectory() as folder:
            trusted = ssl.create_default_context(cafile=_file(cluster, "certificate-authority", Path(folder)))
            if "token" not in user:
                files = (_file(user, field, Path(folder)) for field in ("client-certificate", "client-key"))
                trusted.load_cert_chain(*files)
        headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        return cls(cluster["server"], trusted, headers)

    def impersonate(self, user: str) -> "Kube":
        """The API server as another user sees it, with that user's own rights and groups."""
        return Kube(self.url, self.context, {**self.headers, "Impersonate-User": user})

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Reply:
        """Send one request; a refusal is a reply and not an exception."""
        request = urllib.request.Request(  # noqa: S310 - the URL is the cluster's own
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={**self.headers, "Content-Type": content_type, "Accept": accept},
        )
        try:
            with urllib.request.urlopen(  # noqa: S310
                request, timeout=_REQUEST_LIMIT_SECONDS, context=self.context
            ) as response:
                return Reply(response.status, _document(response.read()))
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, _document(error.read()))

    def apply(self, manifest: Mapping[str, Any]) -> Document:
        """Create or change an object, as `kubectl apply --server-side` does."""
        metadata = manifest["metadata"]
        path = self.path(manifest["apiVersion"], manifest["kind"], metadata.get("namespace"), metadata["name"])
        query = f"?fieldManager={_FIELD_MANAGER}&force=true"
        return self._accepted("PATCH", path + query, manifest, "application/apply-patch+yaml")

    def get(self, api_version: str, kind: str, namespace: str | None, name: str) -> Document | None:
        """An object; None if there is none."""
        path = self.path(api_version, kind, namespace, name)
        reply = self.request("GET", path)
        if reply.code == 404:
            return None
        return self._checked(reply, "GET", path).body

    def list(self, api_version: str, kind: str, namespace: str | None = None, selector: str = "") -> list[Document]:
        """Objects in a namespace, or in all, that match a label selector."""
        path = self.path(api_version, kind, namespace)
        if selector:
            path += f"?labelSelector={urllib.parse.quote(selector)}"
        items: list[Document] = self._accepted("GET", path)["items"]
        return items

    def watch(self, api_version: str, kind: str, selector: str = "") -> Iterator[Document]:
        """Objects of all namespaces that match a label selector, first as they are and then at each change."""
        path = f"{self.path(api_version, kind)}?watch=true&labelSelector={urllib.parse.quote(selector)}"
        request = urllib.request.Request(self.url + path, headers=dict(self.headers))  # noqa: S310 - the cluster's own
        with urllib.request.urlopen(request, context=self.context) as response:  # noqa: S310
            yield from (json.loads(line)["object"] for line in response)

    def columns(self, api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any]:
        """An object's columns in `kubectl get`, by their titles."""
        table = self.request("GET", self.path(api_version, kind, namespace, name), accept=_TABLE).body
        titles = [column["name"] for column in table["columnDefinitions"]]
        return dict(zip(titles, table["rows"][0]["cells"], strict=True))

    def merge(
        self, api_version: str, kind: str, namespace: str | None, name: str, patch: Mapping[str, Any]
    ) -> Document:
        """Change some fields of an object."""
        path = self.path(api_version, kind, namespace, name)
        return self._accepted("PATCH", path, patch, "application/merge-patch+json")

    def delete(
        self, api_version: str, kind: str, namespace: str | None, name: str, grace_seconds: int | None = None
    ) -> None:
        """Delete an object, with its own grace period unless one is given; does nothing if it is gone."""
        path = self.path(api_version, kind, namespace, name)
        grace = {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        reply = self.request("DELETE", path, {"propagationPolicy": "Background", **grace})
        if reply.code != 404:
            self._checked(reply, "DELETE", path)

    def logs(self, namespace: str, pod: str) -> str:
        """Log of a Pod's container."""
        reply = self.request("GET", f"{self.path('v1', 'Pod', namespace, pod)}/log")
        # A log is plain text, which `_document` returns as the message.
        return reply.message

    def evict(self, namespace: str, pod: str, grace_seconds: int | None = None) -> None:
        """Evict a Pod through the Eviction API, as `kubectl drain` does."""
        eviction: Document = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": namespace},
        }
        if grace_seconds is not None:
            eviction["deleteOptions"] = {"gracePeriodSeconds": grace_seconds}
        self._accepted("POST", f"{self.path('v1', 'Pod', namespace, pod)}/eviction", eviction)

    def set_status(
        self, api_version: str, kind: str, namespace: str | None, name: str, status: Mapping[str, Any]
    ) -> Document:
        """Write an object's status in place of the responsible component, such as the kubelet."""
        path = f"{self.path(api_version, kind, namespace, name)}/status"
        return self._accepted("PATCH", path, {"status": status}, "application/merge-patch+json")

    def wait(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        name: str,
        condition: Callable[[Document], bool],
        what: str,
        limit_seconds: float = LIMIT_SECONDS,
    ) -> Document:
        """Wait until an object exists and a condition holds for it.

        Raises:
            TimeoutError: the limit is exceeded; the message has the object's status.
        """
        deadline = time.monotonic() + limit_seconds
        while True:
            found = self.get(api_version, kind, namespace, name)
            if found is not None and condition(found):
                return found
            if time.monotonic() > deadline:
                status = "not found" if found is None else json.dumps(found.get("status"), indent=1)
                raise TimeoutError(f"{kind} {name}: not within {limit_seconds:.0f} s: {what}; status: {status}")
            time.sleep(_POLL_SECONDS)

    def wait_until_gone(
        self, api_version: str, kind: str, namespace: str | None, selector: str, limit_seconds: float = LIMIT_SECONDS
    ) -> None:
        """Wait until no object matches a label selector.

        Raises:
            TimeoutError: the limit is exceeded; the message has the names of the remaining objects.
        """
        deadline = time.monotonic() + limit_seconds
        while left := self.list(api_version, kind, namespace, selector):
            if time.monotonic() > deadline:
                named = ", ".join(found["metadata"]["name"] for found in left)
                raise TimeoutError(f"{kind} {named}: still exists after {limit_seconds:.0f} s")
            time.sleep(_POLL_SECONDS)

    def path(self, api_version: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
        """Path of an object, or of all objects of a kind."""
        prefix = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        if (api_version, kind) not in self._plurals:
            for resource in self._accepted("GET", prefix)["resources"]:
                if "/" not in resource["name"]:
                    self._plurals[api_version, resource["kind"]] = resource["name"]
        parts = [prefix, *(("namespaces", namespace) if namespace else ()), self._plurals[api_version, kind]]
        return "/".join([*parts, *((name,) if name else ())])

    def _accepted(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Document:
        return self._checked(self.request(method, path, body, content_type), method, path).body

    @staticmethod
    def _checked(reply: Reply, method: str, path: str) -> Reply:
        if not reply.accepted:
            raise Refused(f"{method} {path}: {reply.code} {reply.message}")
        return reply


def pod_waiting(reason: str, message: str = "") -> Document:
    """Status of a Pod whose container waits, for `Kube.set_status`."""
    state = {"waiting": {"reason": reason, "message": message}}
    container = {"name": "stage", "image": "", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {"phase": "Pending", "containerStatuses": [container]}


def pod_running() -> Document:
    """Status of a Pod whose container is running, for `Kube.set_status`."""
    started = pod_waiting("")
    started["containerStatuses"][0]["state"] = {"running": {"startedAt": _now()}, "waiting": None}
    return {**started, "phase": "Running"}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def pod_ended(exit_code: int, message: str = "", reason: str = "", *, container: str = "stage") -> Document:
    """Status of a Pod whose container has ended, for `Kube.set_status`."""
    terminated = {
        "exitCode": exit_code,
        "message": message,
        "reason": reason or ("Completed" if exit_code == 0 else "Error"),
        "startedAt": "2026-01-01T00:00:00Z",
        "finishedAt": "2026-01-01T00:01:00Z",
    }
    state = {"name": container, "image": "", "imageID": "", "ready": False, "restartCount": 0}
    return {
        "phase": "Succeeded" if exit_code == 0 else "Failed",
        "containerStatuses": [{**state, "state": {"terminated": terminated}}],
    }


def audit_events(path: Path) -> list[Document]:
    """Events of the API server's audit log, one for each answered request."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def install_crd(kube: "Kube", crd: Document) -> None:
    """Apply a CRD and wait until its objects are served."""
    kube.apply(crd)
    kube.wait(
        crd["apiVersion"],
        crd["kind"],
        None,
        crd["metadata"]["name"],
        lambda found: (condition(found, "Established") or {}).get("status") == "True",
        "the CRD is established",
    )
    group, version = crd["spec"]["group"], crd["spec"]["versions"][0]["name"]
    deadline = time.monotonic() + _REQUEST_LIMIT_SECONDS
    while not kube.request("GET", f"/apis/{group}/{version}").accepted:  # published by another controller
        assert time.monotonic() < deadline, f"{group}/{version} is not served"
        time.sleep(_POLL_SECONDS)


def condition(document: Mapping[str, Any], condition_type: str) -> Document | None:
    """A condition in an object's status; None if it is absent."""
    conditions: list[Document] = (document.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == condition_type), None)


def _named(entries: list[Document], name: str) -> Document:
    return next(entry for entry in entries if entry["name"] == name)


def _file(entry: Mapping[str, Any], field: str, folder: Path) -> str:
    """Path of a file that a kubeconfig references or contains."""
    if field in entry:
        return str(entry[field])
    path = folder / field
    path.write_bytes(base64.b64decode(entry[f"{field}-data"]))
    return os.fspath(path)


def _document(content: bytes) -> Document:
    try:
        body: Document = json.loads(content)
    except json.JSONDecodeError:
        # Logs, and responses for a path that is not served, are plain text.
        return {"message": content.decode(errors="replace")}
    return body if isinstance(body, dict) else {"message": content.decode(errors="replace")}
