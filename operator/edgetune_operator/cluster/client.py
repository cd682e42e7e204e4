"""The Kubernetes client: reads use the watch cache, writes go to the API server as plain dicts."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from edgetune_contract.values.times import timestamp
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.status.stage_status import ProgressStatus
from edgetune_operator.cluster.api_errors import (
    RequestFailed,
    is_refusal,
    message_of,
    refusal_reason,
    why_no_answer,
    why_no_events,
    why_no_workloads,
    why_not_served,
)
from edgetune_operator.cluster.event_sender import FAILURES, EventSender
from edgetune_operator.cluster.namespace_labels import NamespaceLabels
from edgetune_operator.cluster.progress import ProgressReader
from edgetune_operator.cluster.resync import NotServed, Page
from edgetune_operator.cluster.warning_events import SELECTOR, WarningEvents
from edgetune_operator.cluster.watch_cache import Cache, Kind, owner_of_job
from edgetune_operator.cluster.workloads import WORKLOADS, Workloads, read_queue
from edgetune_operator.decisions.observe import JobState, job_state
from edgetune_operator.decisions.reporting.events import EventDraft
from edgetune_operator.reconcile import JobRefused, StaleRead
from edgetune_operator.telemetry import API_WRITES

_TIMEOUT_SECONDS = 30
_WATCH_SECONDS = 240
# A connection that died without a word is noticed when the API server should have ended the watch.
_WATCH_TIMEOUT = aiohttp.ClientTimeout(sock_connect=_TIMEOUT_SECONDS, sock_read=_WATCH_SECONDS + _TIMEOUT_SECONDS)
_CONNECTIONS = 64
_JOBS = "/apis/batch/v1/namespaces/{namespace}/jobs"
_OBJECTS = f"/apis/{names.API_VERSION}/namespaces/{{namespace}}/{names.PLURAL}"
_PODS = "/api/v1/namespaces/{namespace}/pods"
_SERVICES = "/api/v1/namespaces/{namespace}/services"
_NAMESPACES = "/api/v1/namespaces"
_EVENTS = "/api/v1/namespaces/{namespace}/events"
_PATHS = {Kind.OBJECT: _OBJECTS, Kind.JOB: _JOBS, Kind.POD: _PODS}
_PAGE_SIZE = "200"
OWNED = f"{names.MANAGED_BY_LABEL}={names.MANAGER}"
"""Label selector of the operator's Jobs and Pods."""

_OK = 200
_CONFLICT = 409
_FORBIDDEN = 403
_NOT_FOUND = 404
_INTERNAL_ERROR = 500


@contextlib.asynccontextmanager
async def connect(cache: Cache, progress: ProgressReader, watches: int = 0) -> AsyncIterator["KubernetesCluster"]:
    """A cluster, with the Pod's service account or, outside a cluster, the user's kubeconfig.

    Args:
        cache: has what reads return.
        progress: reads running trainings.
        watches: number of watches that hold a connection all the time.
    """
    configuration = client.Configuration()
    configuration.connection_pool_maxsize = _CONNECTIONS + watches
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration)
    async with client.ApiClient(configuration) as api:
        # The API server takes the name of the field manager from it.
        api.user_agent = names.MANAGER
        session = api.rest_client.pool_manager
        # The client's own session reads ~/.netrc and looks for proxies, in two threads before each request.
        api.rest_client.pool_manager = aiohttp.ClientSession(connector=session.connector)
        session.detach()
        cluster = KubernetesCluster(api, cache, progress)
        async with cluster.events.sending():
            yield cluster


class KubernetesCluster:
    """Implements `reconcile.Cluster`."""

    def __init__(self, api: client.ApiClient, cache: Cache, progress: ProgressReader) -> None:
        self._api = api
        self._cache = cache
        self._progress = progress
        self._labels = NamespaceLabels(self.call)
        self.warnings = WarningEvents()
        """Filled by `warning_events.watch_warnings`."""

        self.workloads: Workloads | None = None
        """Set if a profile has a queue."""

        self.events = EventSender(self.call)

    async def read_object(self, key: Key) -> dict[str, Any] | None:
        return self._cache.get_object(key)

    async def check(self) -> None:
        """Check that the API server answers, for `resync.Resync`; needs no permissions."""
        try:
            await self.call("GET", "/readyz")
        except FAILURES as error:
            # 500 is an answer: one of the API server's own checks fails temporarily.
            if not isinstance(error, ApiException) or error.status > _INTERNAL_ERROR:
                raise NotServed(why_no_answer(error)) from error

    async def list_pages(self, kind: Kind, namespace: str | None) -> AsyncIterator[Page]:
        """The operator's objects of a kind, for `resync.Resync`."""
        path = _PATHS[kind] if namespace else _PATHS[kind].replace("/namespaces/{namespace}", "")
        query = {"limit": _PAGE_SIZE, **({} if kind is Kind.OBJECT else {"labelSelector": OWNED})}
        while True:
            try:
                found = await self.call("GET", path.format(namespace=namespace), query=query)
            except FAILURES as error:
                raise NotServed(why_not_served(error, kind, namespace)) from error
            yield Page(found["items"], int(found["metadata"]["resourceVersion"]))
            if not found["metadata"].get("continue"):
                return
            query["continue"] = found["metadata"]["continue"]

    async def list_jobs(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self._cache.jobs_of(owner)

    async def list_pods(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self._cache.pods_of(owner)

    async def list_warnings(self, owner: Mapping[str, Any], uid: str) -> Sequence[dict[str, Any]]:
        return self.warnings.of(owner["namespace"], uid)

    def watch_warnings(self, namespace: str | None, version: str) -> AsyncIterator[bytes]:
        """Chunks of a watch on warnings, for `warning_events`; it ends after some minutes."""
        return self._watch(_EVENTS, namespace, version, why_no_events, {"fieldSelector": SELECTOR})

    def watch_workloads(self, namespace: str | None, version: str) -> AsyncIterator[bytes]:
        """Chunks of a watch on Kueue's Workloads; it ends after some minutes."""
        return self._watch(WORKLOADS, namespace, version, why_no_workloads, {})

    async def _watch(
        self,
        resource: str,
        namespace: str | None,
        version: str,
        why_not: Callable[[Exception, str | None], str],
        selector: Mapping[str, str],
    ) -> AsyncIterator[bytes]:
        path = resource.format(namespace=namespace) if namespace else resource.replace("/namespaces/{namespace}", "")
        query = {"watch": "true", "timeoutSeconds": str(_WATCH_SECONDS), **selector}
        query |= {"allowWatchBookmarks": "true"} | ({"resourceVersion": version} if version else {})
        try:
            response: aiohttp.ClientResponse = await self._api.call_api(
                path,
                "GET",
                query_params=list(query.items()),
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _preload_content=False,
                _request_timeout=_WATCH_TIMEOUT,
            )
            async with response:
                if response.status != _OK:
                    error = ApiException(status=response.status, reason=response.reason)
                    error.body = await response.text()
                    raise error
                async for chunk in response.content.iter_any():
                    yield chunk
        except (*FAILURES, OSError) as error:  # a reset connection, while reading
            raise NotServed(why_not(error, namespace)) from error

    async def list_workloads(self, owner: Mapping[str, Any], jobs: Sequence[str]) -> Sequence[dict[str, Any]]:
        return self.workloads.of(owner["namespace"], jobs) if self.workloads is not None else []

    async def read_queue(self, namespace: str, queue: str, priority: str) -> dict[str, Any] | None:
        return None if self.workloads is None else await read_queue(self.call, namespace, queue, priority)

    async def read_progress(self, owner: Mapping[str, Any]) -> ProgressStatus | None:
        return self._progress.latest(owner)

    async def create_job(self, job: Mapping[str, Any]) -> str:
        path = _JOBS.format(namespace=job["metadata"]["namespace"])
        try:
            created = await self.call("POST", path, body=job)
        except ApiException as error:
            if error.status == _CONFLICT:
                await self._check_owner_of_existing(job, path)
                return ""
            if is_refusal(error):
                raise JobRefused(refusal_reason(error), f"the cluster refuses the Job: {message_of(error)}") from None
            raise
        self._cache.put_job(created)
        uid: str = created["metadata"]["uid"]
        return uid

    async def _check_owner_of_existing(self, job: Mapping[str, Any], path: str) -> None:
        """Check whose Job has this name: an earlier pass may have created it without receiving the answer.

        Raises:
            JobRefused: it does not belong to the object.
            StaleRead: it does, and has ended, or has just been deleted.
        """
        metadata = job["metadata"]
        try:
            existing = await self.call("GET", f"{path}/{metadata['name']}")
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise
            raise StaleRead(f"Job {metadata['name']} has just been deleted") from None
        if owner_of_job(existing) == owner_of_job(job):
            self._cache.put_job(existing)
            if job_state(existing)[0] is not JobState.LIVE:
                # The watch reports nothing that is new to the cache: no pass would follow this one.
                raise StaleRead(f"Job {metadata['name']} has ended already")
            return
        name = metadata["labels"][names.OWNER_LABEL]
        is_earlier = any(
            owner["kind"] == names.KIND and names.label_value(owner["name"]) == name
            for owner in existing["metadata"].get("ownerReferences") or []
        )
        if existing["metadata"].get("deletionTimestamp") or is_earlier:
            message = f"waiting until Job {metadata['name']} of an earlier object with this name is gone"
            raise JobRefused(Reason.PENDING, message)
        raise JobRefused(
            Reason.JOB_NAME_TAKEN,
            f"Job {metadata['name']} in namespace {metadata['namespace']} {_whose(existing)}; "
            "delete it or give this object another name",
        )

    async def change_job(self, owner: Mapping[str, Any], name: str, patch: Sequence[Mapping[str, Any]]) -> None:
        path = f"{_JOBS.format(namespace=owner['namespace'])}/{name}"
        try:
            changed = await self.call("PATCH", path, body=list(patch), content_type="application/json-patch+json")
        except ApiException as error:
            if error.status == _NOT_FOUND:
                self._cache.forget_job(owner, name)
                raise StaleRead(f"Job {name} is already gone") from None
            if not is_refusal(error):
                raise
            refusal = f"the cluster refuses to change the waiting Job: {message_of(error)}"
            # The patch tests that it waits, and such a refusal is like any other.
            present = await self.call("GET", path)
            self._cache.put_job(present)
            if not present["spec"].get("suspend"):
                raise StaleRead(f"Job {name} waits no longer") from None
            raise JobRefused(refusal_reason(error), refusal) from None
        self._cache.put_job(changed)

    async def has_service(self, owner: Mapping[str, Any], name: str, job: str) -> bool:
        try:
            found = await self.call("GET", f"{_SERVICES.format(namespace=owner['namespace'])}/{name}")
        except ApiException as error:
            # Without the right to look, a create says what is missing.
            if error.status not in (_NOT_FOUND, _FORBIDDEN):
                raise
            return False
        return any(each["uid"] == job for each in found["metadata"].get("ownerReferences") or [])

    async def create_service(self, service: Mapping[str, Any]) -> None:
        try:
            await self.call("POST", _SERVICES.format(namespace=service["metadata"]["namespace"]), body=service)
        except ApiException as error:
            # One of an earlier Job with this name is deleted with that Job.
            if error.status == _CONFLICT:
                return
            if not is_refusal(error):
                raise
            message = f"the cluster refuses Service {service['metadata']['name']}, without which the Pods of the Job "
            message += f"cannot find each other: {message_of(error)}"
            raise JobRefused(Reason.SERVICE_REFUSED, message) from None

    async def delete_job(self, owner: Mapping[str, Any], name: str) -> None:
        path = f"{_JOBS.format(namespace=owner['namespace'])}/{name}"
        options: dict[str, Any] = {"propagationPolicy": "Foreground"}
        if uid := self._cache.uid_of_job(owner, name):
            # Somebody else's Job may have taken the name since.
            options["preconditions"] = {"uid": uid}
        try:
            await self.call("DELETE", path, body=options)
        except ApiException as error:
            if error.status not in (_NOT_FOUND, _CONFLICT):
                raise
            self._cache.forget_job(owner, name)
            raise StaleRead(f"Job {name} is already gone") from None
        self._cache.mark_job_deleting(owner, name, timestamp(datetime.now(UTC)))

    async def read_labels(self, namespace: str) -> Mapping[str, str]:
        return await self._labels.read(namespace)

    async def is_namespace_terminating(self, namespace: str) -> bool:
        try:
            found = await self.call("GET", f"{_NAMESPACES}/{namespace}")
        except ApiException as error:
            if error.status == _FORBIDDEN:
                return False  # without this permission, only the refused clean-up Job shows it
            if error.status != _NOT_FOUND:
                raise
            return True
        return found["metadata"].get("deletionTimestamp") is not None

    async def have_stages_stopped(self, owner: Mapping[str, Any]) -> bool:
        namespace = owner["namespace"]
        selector = {"labelSelector": f"{names.UID_LABEL}={owner['uid']},{names.STAGE_LABEL}!={names.CLEAN_UP}"}
        jobs = (await self.call("GET", _JOBS.format(namespace=namespace), query=selector))["items"]
        pods = (await self.call("GET", _PODS.format(namespace=namespace), query=selector))["items"]
        return not jobs and all(pod["status"].get("phase") in ("Succeeded", "Failed") for pod in pods)

    async def write_finalizers(self, owner: Mapping[str, Any], finalizers: Sequence[str]) -> Mapping[str, Any]:
        written = await self._replace(owner, "", "/metadata/finalizers", list(finalizers))
        if written is None:
            self._cache.remove(Kind.OBJECT, {"metadata": owner})
            raise StaleRead(f"{owner['namespace']}/{owner['name']} is already gone")
        metadata: Mapping[str, Any] = written["metadata"]
        # A deleted object without finalizers is gone; the watch may not have reported it yet.
        if metadata.get("finalizers") or not metadata.get("deletionTimestamp"):
            self._cache.put_object(written)
        else:
            self._cache.remove(Kind.OBJECT, written)
        return metadata

    async def write_status(self, owner: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        written = await self._replace(owner, "/status", "/status", status)
        if written is None:
            self._cache.remove(Kind.OBJECT, {"metadata": owner})
        else:
            self._cache.put_object(written)

    async def _replace(
        self, owner: Mapping[str, Any], subresource: str, pointer: str, value: Any
    ) -> dict[str, Any] | None:
        """Replace a part of an object if it has not changed since it was read.

        Returns:
            The object after the write; None if it is gone.

        Raises:
            StaleRead: the object has changed.
        """
        path = f"{_OBJECTS.format(namespace=owner['namespace'])}/{owner['name']}{subresource}"
        # A failed `test` would be answered like any invalid patch, with 422; another resource version is a conflict.
        body = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": owner["resourceVersion"]},
            {"op": "add", "path": pointer, "value": value},
        ]
        try:
            return await self.call("PATCH", path, body=body, content_type="application/json-patch+json")
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            if error.status != _CONFLICT:
                raise
        await self._read_again(owner)
        raise StaleRead(f"{owner['namespace']}/{owner['name']} has changed since it was read")

    async def _read_again(self, owner: Mapping[str, Any]) -> None:
        """Put an object's present version into the cache: the next pass need not wait for the watch, but it can."""
        path = f"{_OBJECTS.format(namespace=owner['namespace'])}/{owner['name']}"
        try:
            self._cache.put_object(await self.call("GET", path))
        except FAILURES as error:
            if isinstance(error, ApiException) and error.status == _NOT_FOUND:
                self._cache.remove(Kind.OBJECT, {"metadata": owner})

    async def post_event(self, owner: Mapping[str, Any], event: EventDraft) -> None:
        self.events.put(owner, event)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Send one request; returns the response. Raises one of `FAILURES` if it is refused or does not arrive."""
        if method != "GET":
            API_WRITES.labels(verb=method.lower(), resource=path.split("/namespaces/")[1].split("/")[1]).inc()
        try:
            answer: dict[str, Any] = await self._api.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                response_types_map=dict.fromkeys((200, 201, 202), "object"),
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=_TIMEOUT_SECONDS,
            )
        except ApiException as error:
            raise RequestFailed(method, path, error) from None
        return answer


def _whose(job: Mapping[str, Any]) -> str:
    """What is known about the owner of a Job that has the name of another."""
    owner = next((each for each in job["metadata"].get("ownerReferences") or [] if each.get("controller")), None)
    return f"belongs to {owner['kind']} {owner['name']}" if owner else "does not belong to this object"
