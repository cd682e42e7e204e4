"""The network policies of the chart allow the traffic that the operator and the stages need."""

from pathlib import Path

import pytest

from edgetune_operator.decisions.manifests.job_manifests import (
    METRICS_PORT,
    RESTRICTED_POD_OF_ANY_USER,
)
from support.apiserver import BINARIES_VARIABLE
from support.chart import (
    ALL_SWITCHES,
    CLUSTER_NAME,
    PROFILE,
    find_helm,
    mounted_profiles,
    one,
    pod_specs,
    render,
    rules,
)

pytestmark = pytest.mark.skipif(
    find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH: the chart is not tested"
)


def test_network_policies_allow_only_the_traffic_that_is_needed() -> None:
    manifests = render(ALL_SWITCHES)
    operator = one(manifests, "NetworkPolicy")["spec"]
    stages = one(manifests, "NetworkPolicy", "edgetune-stages")
    training = one(manifests, "NetworkPolicy", "edgetune-train")["spec"]

    labels = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert operator["podSelector"]["matchLabels"].items() <= labels.items()
    assert [port["port"] for rule in operator["egress"] for port in rule["ports"]] == [53, 53, 443, 6443, METRICS_PORT]
    assert stages["metadata"]["namespace"] == "team-a"
    assert stages["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in stages["spec"]
    assert [port["port"] for rule in stages["spec"]["egress"] for port in rule["ports"]] == [53, 53, 443]
    assert [port["port"] for rule in training["ingress"] for port in rule["ports"]] == [METRICS_PORT]
    from_operator, from_prometheus = training["ingress"][0]["from"]
    assert from_operator["podSelector"]["matchLabels"].items() <= labels.items()
    assert from_prometheus == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


def test_the_traffic_of_stages_is_restricted_by_default_where_the_namespaces_are_known() -> None:
    stores = {
        "default": {"store": {"uri": "s3://a", "endpoint": "http://minio.minio:9000"}},
        "plain": {"store": {"uri": "s3://a", "endpoint": "http://minio"}},
        "tracked": {"store": {"uri": "s3://a"}, "tracking": {"mlflow": {"uri": "http://mlflow.mlflow:5000/mlflow"}}},
        "secure": {
            "store": {"uri": "s3://a", "endpoint": "https://minio"},
            "env": {"HTTPS_PROXY": "http://proxy:3128"},
        },
    }
    stages = one(render({"watchNamespaces": ["team-a"], "profiles": stores}), "NetworkPolicy", "edgetune-stages")

    egress = stages["spec"]["egress"]
    assert [port["port"] for rule in egress for port in rule["ports"]] == [53, 53, 443, 9000, 80, 3128, 5000]
    everywhere = render({"profiles": stores})
    assert [each for each in everywhere if each["kind"] == "NetworkPolicy"] == []


def test_on_openshift_the_cluster_chooses_the_user_of_pods_and_its_dns_is_allowed(tmp_path: Path) -> None:
    own = {**PROFILE, "openshift": False}
    values = {**ALL_SWITCHES, "openshift": True, "profiles": {"default": PROFILE, "own": own}}
    manifests = render(values)

    profiles = mounted_profiles(values, tmp_path)
    policies = (one(manifests, "NetworkPolicy")["spec"], one(manifests, "NetworkPolicy", "edgetune-stages")["spec"])
    assert all(spec["securityContext"] == RESTRICTED_POD_OF_ANY_USER for spec in pod_specs(manifests).values())
    assert {name: profile.openshift for name, profile in profiles.items()} == {"default": True, "own": False}
    for policy in policies:
        assert [port["port"] for port in policy["egress"][0]["ports"]] == [53, 53, 5353, 5353]
    assert ("edgetune.dev", "lorafinetunes/finalizers") in rules(one(manifests, "ClusterRole", CLUSTER_NAME))


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_pods_of_trainings_reach_each_other_if_a_profile_has_several_nodes(nodes: int) -> None:
    profile = {**PROFILE, "resources": {"train": {"limits": {"nvidia.com/gpu": 1}, "nodes": nodes}}}
    manifests = render({"watchNamespaces": ["team-a"], "profiles": {"default": profile}})

    policy = one(manifests, "NetworkPolicy", "edgetune-train")["spec"]

    peers = [{"podSelector": policy["podSelector"]}]
    all_ports = [{"protocol": "TCP"}]
    several = nodes > 1
    assert policy["policyTypes"] == ["Ingress", *["Egress"] * several]
    assert policy.get("egress", []) == [{"ports": all_ports, "to": peers}] * several
    assert policy["ingress"][:-1] == [{"ports": all_ports, "from": peers}] * several
    assert policy["ingress"][-1]["ports"] == [{"port": 8080, "protocol": "TCP"}]
