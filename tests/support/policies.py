"""The chart's admission policies on a real API server, and the users whom they bound."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgetune_operator.api import names
from support.chart import RELEASE, RELEASE_NAMESPACE, Values, render
from support.kube import Kube, Reply

POLICY_KINDS = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
OPERATOR = f"system:serviceaccount:{RELEASE_NAMESPACE}:{RELEASE}"
# The part of the role `edit` for built-in kinds; the controller that aggregates the parts may not run.
_EDIT = "system:aggregate-to-edit"
_LIMIT_SECONDS = 30


@dataclass(frozen=True)
class Cluster:
    """A cluster with the chart's rights and policies, and a namespace of users."""

    admin: Kube
    namespace: str
    user: str = "mallory"

    @property
    def operator(self) -> Kube:
        """The API server as the operator's account sees it."""
        return self.admin.impersonate(OPERATOR)

    @property
    def tenant(self) -> Kube:
        """The API server as a user with the role `edit` in the namespace sees it."""
        return self.admin.impersonate(self.user)

    @property
    def owner(self) -> Kube:
        """The API server as a user with every right in the namespace sees it."""
        return self.admin.impersonate("owner")

    def controller(self, name: str) -> Kube:
        """The API server as a controller of Kubernetes sees it."""
        return self.admin.impersonate(f"system:serviceaccount:kube-system:{name}")

    def create(self, kube: Kube, document: dict[str, Any], *, dry_run: bool = True, namespace: str = "") -> Reply:
        """The answer to a request to create an object in the namespace."""
        path = kube.path(document["apiVersion"], document["kind"], namespace or self.namespace)
        metadata = {key: value for key, value in document["metadata"].items() if key != "namespace"}
        query = f"?fieldValidation=Strict{'&dryRun=All' if dry_run else ''}"
        return kube.request("POST", path + query, document | {"metadata": metadata})

    def patch(self, kube: Kube, path: str, patch: Any) -> Reply:
        """The answer to a trial of a merge patch."""
        return kube.request("PATCH", f"{path}?dryRun=All", patch, "application/merge-patch+json")


@contextmanager
def installed_policies(admin: Kube, values: Values, namespace: str = "") -> Iterator[Cluster]:
    """The chart's rights and policies, and a namespace with a user who may edit it; policies are removed on exit."""
    namespace = namespace or f"team-{secrets.token_hex(4)}"
    cluster = Cluster(admin, namespace)
    for name in (RELEASE_NAMESPACE, namespace):
        admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        # Without controllers, nothing else creates it.
        admin.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}})
    manifests = render({**values, "crd": {"install": False}})
    policies = [manifest for manifest in manifests if manifest["kind"] in POLICY_KINDS]
    for manifest in manifests:
        if manifest["apiVersion"].startswith("rbac.") or manifest["kind"] in (*POLICY_KINDS, "ServiceAccount"):
            admin.apply(manifest)
    for role in (_EDIT, f"{RELEASE}-{RELEASE_NAMESPACE}-edit"):
        admin.apply(_binding(namespace, role, cluster.user))
    admin.apply(_binding(namespace, "cluster-admin", "owner"))
    try:
        _wait_until_enforced(cluster)
        yield cluster
    finally:
        for manifest in reversed(policies):
            admin.delete(manifest["apiVersion"], manifest["kind"], None, manifest["metadata"]["name"])


def _binding(namespace: str, role: str, user: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"{user}-{role.replace(':', '-')}", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }


def _wait_until_enforced(cluster: Cluster) -> None:
    """Policies take effect some time after they are written: wait until each refuses something."""
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "trial", "image": "trial"}]}}
    labels = {names.STAGE_LABEL: "train"}
    trial = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "trial"}, "spec": {"template": template}}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "trial"}}
    deadline = time.monotonic() + _LIMIT_SECONDS
    # A new server lets no user see which resources there are until it has made its default roles.
    while not all(user.request("GET", "/apis/batch/v1").accepted for user in (cluster.operator, cluster.tenant)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the API server has no default roles within {_LIMIT_SECONDS} s")
        time.sleep(0.1)
    trials: Sequence[Callable[[], Reply]] = (
        lambda: cluster.create(cluster.operator, trial),
        lambda: cluster.create(cluster.tenant, trial | {"metadata": {"name": "trial", "labels": labels}}),
        lambda: cluster.create(cluster.operator, lease, namespace="kube-system"),
    )
    while not all("ValidatingAdmissionPolicy" in each().message for each in trials):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the policies are not enforced within {_LIMIT_SECONDS} s")
        time.sleep(0.1)
