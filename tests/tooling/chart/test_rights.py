"""The rights that the chart gives to the operator and to users."""

import json

import pytest

from edgetune_operator.api import names
from support.apiserver import BINARIES_VARIABLE
from support.chart import (
    CLUSTER_NAME,
    NAMESPACED,
    PROFILE,
    QUEUED_PROFILE,
    RELEASE,
    RELEASE_NAMESPACE,
    Refused,
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


QUEUE_RULES = {
    ("kueue.x-k8s.io", "workloads"): {"watch"},
    ("kueue.x-k8s.io", "localqueues"): {"get"},
    ("batch", "jobs"): RULES["batch", "jobs"] | {"patch"},
}
CLUSTER_QUEUE_RULES = {
    ("kueue.x-k8s.io", "clusterqueues"): {"get"},
    ("kueue.x-k8s.io", "workloadpriorityclasses"): {"get"},
}


def test_with_a_queue_in_a_profile_the_operator_may_read_queues_and_change_waiting_jobs() -> None:
    profiles = {"profiles": {"default": PROFILE, "queued": QUEUED_PROFILE}}
    everywhere, namespaced = render(profiles), render({**profiles, **NAMESPACED})

    assert rules(one(everywhere, "ClusterRole", CLUSTER_NAME)) == CLUSTER_RULES | QUEUE_RULES | CLUSTER_QUEUE_RULES
    roles = [each for each in namespaced if each["kind"] == "Role" and each["metadata"]["name"] == RELEASE]
    assert len(roles) == len(NAMESPACED["watchNamespaces"])
    assert all(rules(role) == RULES | QUEUE_RULES | LEASE_RULES for role in roles)
    cluster_role = rules(one(namespaced, "ClusterRole", CLUSTER_NAME))
    assert cluster_role.items() >= CLUSTER_QUEUE_RULES.items()


def test_the_rights_to_read_queues_can_be_left_out() -> None:
    manifests = render({"profiles": {"queued": QUEUED_PROFILE}, "rbac": {"workloads": False}})

    found = rules(one(manifests, "ClusterRole", CLUSTER_NAME))
    assert {group for group, _ in found if "kueue" in group} == set()
    assert "patch" in found["batch", "jobs"]


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

    own = [manifest for manifest in manifests if manifest["metadata"]["name"] == RELEASE]
    roles = [manifest for manifest in own if manifest["kind"] == "Role"]
    bindings = [manifest for manifest in own if manifest["kind"] == "RoleBinding"]
    assert [role["metadata"]["namespace"] for role in roles] == ["team-a", "team-b"]
    assert [binding["metadata"]["namespace"] for binding in bindings] == ["team-a", "team-b"]
    assert all(rules(role) == RULES | LEASE_RULES for role in roles)
    everywhere = one(manifests, "ClusterRole", CLUSTER_NAME)
    assert rules(everywhere) == {("edgetune.dev", "lorafinetunes"): {"patch"}, ("", "namespaces"): {"get"}}
    assert everywhere["rules"][1]["resourceNames"] == ["team-a", "team-b"]


@each_install
def test_releases_of_the_same_name_in_two_namespaces_share_no_cluster_scoped_objects(values: Values) -> None:
    names_of_kind = [
        {
            each["metadata"]["name"]
            for each in render(values, namespace)
            if each["kind"].startswith(("ClusterRole", "ValidatingAdmissionPolicy"))
        }
        for namespace in ("one", "other")
    ]

    assert names_of_kind[0] & names_of_kind[1] == set()


def test_owner_references_can_be_allowed_where_the_cluster_enforces_them() -> None:
    role = one(render({"rbac": {"ownerReferencesPermissionEnforcement": True}}), "ClusterRole", CLUSTER_NAME)

    assert rules(role) == CLUSTER_RULES | {("edgetune.dev", "lorafinetunes/finalizers"): {"update"}}


def test_without_namespace_deletion_no_object_is_cluster_scoped() -> None:
    rbac = {"namespaceDeletion": False, "aggregateToUserRoles": False}
    without = {"crd": {"install": False}, "admissionPolicies": {"enabled": False}}
    manifests = render({"watchNamespaces": ["team-a"], "rbac": rbac, **without})

    assert [each["kind"] for each in manifests if "namespace" not in each["metadata"]] == []
    assert one(manifests, "Role")["metadata"]["namespace"] == "team-a"


def test_a_queue_brings_back_no_right_of_namespace_deletion() -> None:
    values = {"watchNamespaces": ["team-a"], "profiles": {"default": {**PROFILE, "queue": {"name": "gpu"}}}}
    role = one(render({**values, "rbac": {"namespaceDeletion": False}}), "ClusterRole", CLUSTER_NAME)

    assert set(rules(role)) == {
        ("kueue.x-k8s.io", "clusterqueues"),
        ("kueue.x-k8s.io", "workloadpriorityclasses"),
    }


def test_a_profile_cannot_select_by_labels_that_the_operator_may_not_read() -> None:
    by_label = {**PROFILE, "namespaces": {"selector": {"matchLabels": {"gpu": "yes"}}}}
    values = {"watchNamespaces": ["team-a"], "profiles": {"large": by_label}}
    assert ("", "namespaces") in rules(one(render(values), "ClusterRole", CLUSTER_NAME))

    with pytest.raises(Refused, match=r"profiles.large.namespaces.selector: the operator must read the labels"):
        render({**values, "rbac": {"namespaceDeletion": False}})


def test_everybody_may_read_the_catalog_of_profiles_and_no_other_config_map() -> None:
    manifests = render(
        {"profiles": {"default": {**PROFILE, "env": {"HTTPS_PROXY": "http://proxy"}, "queue": {"name": "gpu"}}}}
    )
    role, binding = (one(manifests, kind, "edgetune-catalog") for kind in ("Role", "RoleBinding"))

    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["edgetune-catalog"], "verbs": ["get"]}
    ]
    assert [subject["name"] for subject in binding["subjects"]] == ["system:authenticated"]
    catalog = json.loads(one(manifests, "ConfigMap", "edgetune-catalog")["data"]["profiles.json"])
    assert catalog == {"default": {"queue": {"name": "gpu"}}}


def test_without_readers_there_is_no_catalog() -> None:
    named = {each["metadata"]["name"] for each in render({"catalog": {"readers": []}})}

    assert "edgetune-catalog" not in named


def test_policies_bound_only_the_watched_namespaces_and_this_releases_account() -> None:
    manifests = render({**NAMESPACED, "profiles": {"default": PROFILE}})
    policy = one(manifests, "ValidatingAdmissionPolicy", f"{CLUSTER_NAME}-jobs")
    bindings = {
        each["metadata"]["name"].removeprefix(f"{CLUSTER_NAME}-"): each["spec"]
        for each in manifests
        if each["kind"] == "ValidatingAdmissionPolicyBinding"
    }

    account = f"system:serviceaccount:{RELEASE_NAMESPACE}:edgetune"
    assert policy["spec"]["matchConditions"][0]["expression"] == f"request.userInfo.username == '{account}'"
    assert 'request.namespace in ["team-a","team-b"]' in [each["expression"] for each in policy["spec"]["validations"]]
    assert {name: "matchResources" in spec for name, spec in bindings.items()} == {
        "jobs": False,
        "operator": False,
        "tenants": True,
    }
    values = bindings["tenants"]["matchResources"]["namespaceSelector"]["matchExpressions"][0]["values"]
    assert values == ["team-a", "team-b"]


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
