"""Several operator Pods: how the chart runs, names, spreads and protects them."""

from typing import Any

import pytest

from edgetune_operator.process.settings import parse_settings
from support.apiserver import BINARIES_VARIABLE
from support.chart import CLUSTER_NAME, NAMESPACED, RELEASE_NAMESPACE, Refused, Values, find_helm, one, render

pytestmark = pytest.mark.skipif(
    find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH: the chart is not tested"
)


def deployment(values: Values) -> dict[str, Any]:
    """Spec of the operator's Deployment."""
    spec: dict[str, Any] = one(render(values), "Deployment")["spec"]
    return spec


def test_several_replicas_are_replaced_one_by_one_spread_over_nodes_and_protected_from_drains() -> None:
    spec = deployment({"replicas": 3})
    budget = one(render({"replicas": 3}), "PodDisruptionBudget")["spec"]

    assert (spec["replicas"], spec["strategy"]) == (3, {"type": "RollingUpdate"})
    assert [each["topologyKey"] for each in spec["template"]["spec"]["topologySpreadConstraints"]] == [
        "kubernetes.io/hostname"
    ]
    assert budget == {"maxUnavailable": 1, "selector": spec["selector"]}


@pytest.mark.parametrize("values", [{}, NAMESPACED], ids=["all namespaces", "some namespaces"])
def test_a_single_replica_has_no_budget_which_would_only_block_drains(values: Values) -> None:
    assert "PodDisruptionBudget" not in {each["kind"] for each in render(values)}
    assert "topologySpreadConstraints" not in deployment(values)["template"]["spec"]


def test_each_pod_has_its_own_identity_of_the_same_release() -> None:
    container = deployment({})["template"]["spec"]["containers"][0]

    assert parse_settings(container["args"]).identity == f"{RELEASE_NAMESPACE}/edgetune/$(POD_NAME)"
    assert container["env"] == [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]


def test_the_lease_of_all_namespaces_can_be_in_another_namespace() -> None:
    values: Values = {"leases": {"namespace": "platform", "seconds": 60}}
    settings = parse_settings(deployment(values)["template"]["spec"]["containers"][0]["args"])
    own = [each for each in render(values) if each["metadata"]["name"] == CLUSTER_NAME]
    roles = [each["metadata"]["namespace"] for each in own if each["kind"] in ("Role", "RoleBinding")]

    assert (settings.lease_namespace, settings.lease_seconds) == ("platform", 60)
    assert roles == ["platform", "platform"]


@pytest.mark.parametrize("values", [{"replicas": 0}, {"replicas": 1.5}, {"leases": {"seconds": 1}}], ids=str)
def test_values_that_no_operator_can_run_with_are_refused(values: Values) -> None:
    with pytest.raises(Refused):
        render(values)
