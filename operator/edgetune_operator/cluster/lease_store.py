"""Leases in the Kubernetes API, for `leases.Ownership`."""

from collections.abc import Mapping
from typing import Any

from kubernetes.aio.client.exceptions import ApiException

from edgetune_operator.cluster.api_errors import message_of, why_no_answer
from edgetune_operator.cluster.client import KubernetesCluster
from edgetune_operator.cluster.event_sender import FAILURES
from edgetune_operator.cluster.resync import NotServed

_GROUP = "/apis/coordination.k8s.io/v1"
_LEASES = f"{_GROUP}/namespaces/{{namespace}}/leases"
_CONFLICT = 409
_NOT_FOUND = 404
_FORBIDDEN = (401, 403)


class KubernetesLeases:
    """Implements `leases.LeaseStore`."""

    def __init__(self, cluster: KubernetesCluster) -> None:
        self._cluster = cluster

    async def read_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        try:
            return await self._cluster.call("GET", f"{_LEASES.format(namespace=namespace)}/{name}")
        except FAILURES as error:
            if isinstance(error, ApiException) and error.status == _NOT_FOUND:
                return None
            raise NotServed(_why(error, "get", f"Lease {name} in namespace {namespace}")) from error

    async def write_lease(self, lease: Mapping[str, Any]) -> dict[str, Any] | None:
        metadata = lease["metadata"]
        path, name = _LEASES.format(namespace=metadata["namespace"]), metadata["name"]
        is_new = "resourceVersion" not in metadata
        try:
            if is_new:
                return await self._cluster.call("POST", path, body=lease)
            return await self._cluster.call("PUT", f"{path}/{name}", body=lease)
        except FAILURES as error:
            # 404: of a Lease that was deleted since, or of the namespace of a new one.
            faster = (_CONFLICT,) if is_new else (_CONFLICT, _NOT_FOUND)
            if isinstance(error, ApiException) and error.status in faster:
                return None
            what = f"Lease {name} in namespace {metadata['namespace']}"
            raise NotServed(_why(error, "create" if is_new else "update", what)) from error

    async def list_leases(self, name: str) -> list[dict[str, Any]]:
        try:
            found = await self._cluster.call(
                "GET", f"{_GROUP}/leases", query={"fieldSelector": f"metadata.name={name}"}
            )
        except FAILURES as error:
            raise NotServed(_why(error, "list", f"the Leases {name} of all namespaces")) from error
        leases: list[dict[str, Any]] = found["items"]
        return leases

    async def is_namespace_terminating(self, namespace: str) -> bool:
        try:
            return await self._cluster.is_namespace_terminating(namespace)
        except FAILURES as error:
            raise NotServed(why_no_answer(error)) from error


def _why(error: Exception, verb: str, what: str) -> str:
    if not isinstance(error, ApiException):
        return why_no_answer(error)
    if error.status in _FORBIDDEN:
        return (
            f"the operator is not allowed to {verb} {what}: {message_of(error)}; create its Roles, or let the chart "
            "create them with rbac.create=true"
        )
    return f"the API server does not {verb} {what}: {error.status} {message_of(error)}; retrying"
