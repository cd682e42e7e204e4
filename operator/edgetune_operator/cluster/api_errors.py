"""What the API server's errors mean, and what to do about each."""

import contextlib
import json

from kubernetes.aio.client.exceptions import ApiException

from edgetune_operator.api import names
from edgetune_operator.api.reasons import Reason
from edgetune_operator.cluster.watch_cache import Kind
from edgetune_operator.decisions.causes.patience import quota_reason
from edgetune_operator.decisions.pods import MAX_MESSAGE

_NOT_FOUND = 404
_INTERNAL_ERROR = 500
_WEBHOOK_FAILS = "failed calling webhook"
# Quotas and Pod Security answer with 403; admission webhooks and policies also with 400 and 422.
_REFUSALS = (400, 403, 422)


class RequestFailed(ApiException):  # type: ignore[misc]  # the client has no types
    """The API server's refusal of a request, as one sentence for logs and the status."""

    def __init__(self, method: str, path: str, error: ApiException) -> None:
        super().__init__(status=error.status, reason=error.reason)
        self.body, self.headers = error.body, error.headers
        self._request = f"{method} {path}"

    def __str__(self) -> str:
        return f"{self._request}: {self.status} {message_of(self)}"


def is_refusal(error: ApiException) -> bool:
    """Whether a write is refused, also by an admission webhook that does not answer: that is an internal error."""
    is_webhook_failure = error.status == _INTERNAL_ERROR and _WEBHOOK_FAILS in message_of(error)
    return error.status in _REFUSALS or is_webhook_failure


def refusal_reason(error: ApiException) -> Reason:
    """The reason of a refused write."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        causes = json.loads(error.body)["details"]["causes"]
        if any(cause.get("reason") == Reason.NAMESPACE_TERMINATING for cause in causes):
            return Reason.NAMESPACE_TERMINATING
    return quota_reason(message_of(error)) or Reason.JOB_REFUSED


def why_no_answer(error: Exception) -> str:
    """Why a request has no answer."""
    what = f"{error.status} {message_of(error)}" if isinstance(error, ApiException) else error or type(error).__name__
    return f"the API server does not answer: {what}; retrying"


def why_not_served(error: Exception, kind: Kind, namespace: str | None) -> str:
    """Why a list fails and what to do."""
    if not isinstance(error, ApiException):
        return why_no_answer(error)
    if error.status == _NOT_FOUND:
        crd = f"{names.PLURAL}.{names.GROUP}"
        return (
            f"the API server does not serve {crd}; install the CRD: `helm upgrade` with crd.install=true, or "
            f"`kubectl apply -f crds/{crd}.yaml` from the operator's repository"
        )
    where = f"namespace {namespace}" if namespace else "the whole cluster"
    if error.status in (401, 403):
        return (
            f"the operator is not allowed to list {kind} in {where}: {message_of(error)}; create its Roles, or let the "
            "chart create them with rbac.create=true"
        )
    return f"the API server does not list {kind} in {where}: {error.status} {message_of(error)}; retrying"


def why_no_events(error: Exception, namespace: str | None) -> str:
    """Why Events are not watched, and what to do."""
    what = "why a Pod is refused or cannot be set up"
    return _why_not_watched(error, namespace, "Events", "rbac.create=true", what)


def why_no_workloads(error: Exception, namespace: str | None) -> str:
    """Why Workloads are not watched, and what to do."""
    resource, value = "Workloads of Kueue (v1beta2)", "rbac.create=true and rbac.workloads=true"
    return _why_not_watched(error, namespace, resource, value, "why a stage waits in its queue")


def _why_not_watched(error: Exception, namespace: str | None, resource: str, value: str, what: str) -> str:
    where = f"namespace {namespace}" if namespace else "the whole cluster"
    if not isinstance(error, ApiException):
        return why_no_answer(error)
    advice = "retrying"
    if error.status in (401, 403):
        advice = f"create the operator's Roles, or let the chart create them with {value}"
    return (
        f"{resource} in {where} are not watched: {error.status} {message_of(error)}; {advice}. Until then, no status "
        f"says {what}"
    )


def message_of(error: ApiException) -> str:
    """The API server's message."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return str(json.loads(error.body)["message"])[:MAX_MESSAGE]
    return str(error.reason)[:MAX_MESSAGE]
