"""The rights that the chart gives to the operator and to users."""

import pytest

from edgetune_operator.api import names
from support.apiserver import BINARIES_VARIABLE
from support.chart import (
    CLUSTER_NAME,
    NAMESPACED,
    RELEASE_NAMESPACE,
    Values,
    each_install,
    find_helm,
    one,
    render,
    rules,
)

pytestmark = pytest.mark.skipif(
    find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH: the chart is not tested"
)

RULES = {
    ("edgetune.dev", "lorafinetunes"): {"get", "list", "patch", "watch"},
    ("edgetune.dev", "lorafinetunes/status"): {"patch"},
    ("batch", "jobs"): {"create", "delete", "get", "list", "watch"},
    ("", "pods"): {"list", "watch"},
    ("", "events"): {"create", "watch"},
}
LEASES = ("coordination.k8s.io", "leases")
LEASE_RULES = {LEASES: {"create", "get", "update"}}
CLUSTER_RULES = RULES | {
    LEASES: {"list"},
    ("apiextensions.k8s.io", "customresourcedefinitions"): {"list", "watch"},
    ("", "namespaces"): {"get"},
}


def test_the_operator_has_only_the_rights_that_it_needs() -> None:
    manifests = render({})

    assert rules(one(manifests, "ClusterRole", CLUSTER_NAME)) == CLUSTER_RULES
    assert one(manifests, "ClusterRoleBinding", CLUSTER_NAME)["subjects"] == [
        {"kind": "ServiceAccount", "name": "edgetune", "namespace": RELEASE_NAMESPACE}
    ]
    role, binding = one(manifests, "Role", CLUSTER_NAME), one(manifests, "RoleBinding", CLUSTER_NAME)
    assert (role["metadata"]["namespace"], rules(role)) == ("kube-system", LEASE_RULES)
    assert binding["metadata"]["namespace"] == "kube-system"


@each_install
def test_of_existing_leases_the_operator_may_use_only_its_own(values: Values) -> None:
    roles = [each for each in render(values) if each["kind"] in ("Role", "ClusterRole")]

    names_of_verbs = [
        (rule["verbs"], rule.get("resourceNames"))
        for role in roles
        for rule in role["rules"]
        if "leases" in rule["resources"] and rule["verbs"] != ["create"]
    ]
    assert all(found in ([names.LEASE], [names.CLUSTER_LEASE]) for _, found in names_of_verbs), names_of_verbs


def test_an_operator_of_some_namespaces_can_remove_finalizers_and_has_no_other_cluster_wide_rights() -> None:
    manifests = render(NAMESPACED)

    roles = [manifest for manifest in manifests if manifest["kind"] == "Role"]
    bindings = [manifest for manifest in manifests if manifest["kind"] == "RoleBinding"]
    assert [role["metadata"]["namespace"] for role in roles] == ["team-a", "team-b"]
    assert [binding["metadata"]["namespace"] for binding in bindings] == ["team-a", "team-b"]
    assert all(rules(role) == RULES | LEASE_RULES for role in roles)
    everywhere = one(manifests, "ClusterRole", CLUSTER_NAME)
    assert rules(everywhere) == {("edgetune.dev", "lorafinetunes"): {"patch"}, ("", "namespaces"): {"get"}}
    assert everywhere["rules"][1]["resourceNames"] == ["team-a", "team-b"]


@each_install
def test_releases_of_the_same_name_in_two_namespaces_share_no_cluster_scoped_objects(values: Values) -> None:
    names_of_kind = [
        {each["metadata"]["name"] for each in render(values, namespace) if each["kind"].startswith("ClusterRole")}
        for namespace in ("one", "other")
    ]

    assert names_of_kind[0] & names_of_kind[1] == set()


def test_owner_references_can_be_allowed_where_the_cluster_enforces_them() -> None:
    role = one(render({"rbac": {"ownerReferencesPermissionEnforcement": True}}), "ClusterRole", CLUSTER_NAME)

    assert rules(role) == CLUSTER_RULES | {("edgetune.dev", "lorafinetunes/finalizers"): {"update"}}


def test_without_namespace_deletion_no_object_is_cluster_scoped() -> None:
    rbac = {"namespaceDeletion": False, "aggregateToUserRoles": False}
    manifests = render({"watchNamespaces": ["team-a"], "rbac": rbac, "crd": {"install": False}})

    assert [each["kind"] for each in manifests if each["kind"].startswith("Cluster")] == []
    assert one(manifests, "Role")["metadata"]["namespace"] == "team-a"


def test_users_get_their_rights_through_the_clusters_own_roles() -> None:
    manifests = render({})
    edit, view = (one(manifests, "ClusterRole", f"{CLUSTER_NAME}-{role}") for role in ("edit", "view"))

    assert rules(view) == {("edgetune.dev", "lorafinetunes"): {"get", "list", "watch"}}
    assert rules(edit)["edgetune.dev", "lorafinetunes"] == {"create", "delete", "deletecollection", "patch", "update"}
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert [label for label in edit["metadata"]["labels"] if label.startswith(prefix)] == [
        f"{prefix}edit",
        f"{prefix}admin",
    ]
