"""The operator's requests to the API server in all earlier tests, compared with the permissions in the chart."""

from collections.abc import Iterator

import pytest

from cluster import playground
from cluster.choice import AnyCluster
from edgetune_contract.digest import prepare_digest
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.spec_check import parse_spec
from support.chart import Manifest, render
from support.kube import Document, Kube, audit_events
from support.live_object import LiveObject
from support.tiny_inputs import tiny_fine_tune
from support.versitygw import S3Server

from .conftest import InstalledOperator

pytestmark = pytest.mark.e2e
Permission = tuple[str, str, str]
"""API group, resource with its subresource, verb."""

# The object is read again when somebody else wrote it at the same time, which no earlier test provokes.
_AFTER_A_CONFLICT: Permission = ("edgetune.dev", "lorafinetunes", "get")


def test_an_object_waits_while_a_foreign_job_has_its_name(kube: Kube, s3: S3Server, namespace: str) -> None:
    manifest = tiny_fine_tune(s3, namespace, "taken")
    name = names.job_name("taken", Stage.PREPARE, prepare_digest(parse_spec(manifest["spec"]).parameters))
    kube.apply(_foreign_job(namespace, name))
    run = LiveObject.apply(kube, manifest)
    status = run.wait(lambda status: status["phase"] == "Stalled", "it is stalled")
    stalled = next(condition for condition in status["conditions"] if condition["type"] == "Stalled")
    assert stalled["reason"] == "JobNameTaken"
    assert f"Job {name} in namespace {namespace} does not belong to this object" in stalled["message"]
    run.delete()


@pytest.fixture(scope="module")
def requests(cluster: AnyCluster) -> list[Document]:
    """The operator's requests, from the API server's audit log."""
    user = f"system:serviceaccount:{playground.RELEASE_NAMESPACE}:{playground.RELEASE}"
    # No name: Helm has removed the account, and the old Pod still gives back its Lease.
    return [event for event in audit_events(cluster.audit_log()) if event["user"].get("username") == user]


def test_no_request_of_the_operator_is_forbidden(requests: list[Document]) -> None:
    assert len(requests) > 100
    decisions: dict[tuple[str, str], set[str]] = {}
    for event in requests:
        decision = event["annotations"]["authorization.k8s.io/decision"]
        decisions.setdefault((event["verb"], event["requestURI"]), set()).add(decision)
    # What was allowed before is forbidden when Helm has removed a Role and the old Pod still gives back its Lease.
    assert [request for request, found in decisions.items() if "allow" not in found] == []


def test_the_chart_grants_nothing_that_the_operator_does_not_use(
    operator: InstalledOperator, requests: list[Document]
) -> None:
    granted = set(_permissions(render(operator.values)))
    used = {_permission(event["objectRef"], event["verb"]) for event in requests if "objectRef" in event}
    assert granted - used <= {_AFTER_A_CONFLICT}


def _foreign_job(namespace: str, name: str) -> Manifest:
    metadata = {"name": name, "namespace": namespace}
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "other", "image": "other"}]}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {"suspend": True, "template": template},
    }


def _permissions(manifests: list[Manifest]) -> Iterator[Permission]:
    """Permissions of the operator's own roles."""
    own = (playground.RELEASE, playground.CLUSTER_NAME)
    for manifest in manifests:
        if manifest["kind"] in ("Role", "ClusterRole") and manifest["metadata"]["name"] in own:
            for rule in manifest["rules"]:
                for group in rule["apiGroups"]:
                    yield from ((group, resource, verb) for resource in rule["resources"] for verb in rule["verbs"])


def _permission(target: Document, verb: str) -> Permission:
    subresource = f"/{target['subresource']}" if "subresource" in target else ""
    return target.get("apiGroup", ""), f"{target['resource']}{subresource}", verb
