"""The Helm chart: the manifests that it renders, and the values that it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgetune_contract.access.allowed_sources import SOURCE_FORMS
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import Image, InvalidProfiles, Profile, ProfileStore, load_profiles
from edgetune_operator.api.profiles.queue import Queue
from edgetune_operator.api.profiles.resources import Resources
from edgetune_operator.decisions.manifests.job_manifests import (
    RESTRICTED_CONTAINER,
    RESTRICTED_POD,
)
from edgetune_operator.generate.__main__ import differences
from edgetune_operator.generate.chart import CRD_PATH, VALUES_SCHEMA_PATH, profile_definitions
from edgetune_operator.generate.crd import custom_resource_definition
from edgetune_operator.process.settings import Settings, parse_settings
from support.apiserver import BINARIES_VARIABLE, REPOSITORY
from support.chart import (
    CHART,
    KUBERNETES_VERSION,
    PROFILE,
    RELEASE,
    Manifest,
    Refused,
    Values,
    each_install,
    find_helm,
    golden_files,
    helm,
    mounted_profiles,
    one,
    pod_specs,
    render,
)

pytestmark = pytest.mark.skipif(
    find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH: the chart is not tested"
)


def operator_container(manifests: list[Manifest]) -> dict[str, Any]:
    """The operator's container."""
    containers: list[dict[str, Any]] = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert len(containers) == 1
    return containers[0]


def operator_settings(manifests: list[Manifest]) -> Settings:
    """The operator's settings, parsed from its command line in the chart."""
    return parse_settings(operator_container(manifests)["args"])


@each_install
def test_helm_lint_finds_no_problem(values: Values) -> None:
    answer = helm("lint", str(CHART), "--strict", "--kube-version", KUBERNETES_VERSION, values=values)

    assert "0 chart(s) failed" in answer


def test_the_default_install_matches_the_golden_manifests() -> None:
    assert differences(REPOSITORY, golden_files()) == "", "if intended, run PYTHONPATH=tests python -m support.chart"


def test_the_chart_contains_the_generated_crd() -> None:
    chart_file = REPOSITORY / CRD_PATH
    generated = REPOSITORY / "crds" / f"{names.PLURAL}.{names.GROUP}.yaml"

    assert chart_file.read_text(encoding="utf-8") == generated.read_text(encoding="utf-8"), "run `make generate`"


def test_the_installed_crd_is_the_operators_and_is_kept_after_an_uninstall() -> None:
    crd = one(render({}), "CustomResourceDefinition", f"{names.PLURAL}.{names.GROUP}")

    metadata = crd.pop("metadata")
    expected = custom_resource_definition()
    del expected["metadata"]
    assert crd == expected
    assert metadata["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_the_crd_can_be_omitted_or_deleted_with_the_release() -> None:
    without = render({"crd": {"install": False}})
    deleted = one(render({"crd": {"keep": False}}), "CustomResourceDefinition", f"{names.PLURAL}.{names.GROUP}")

    assert "CustomResourceDefinition" not in {manifest["kind"] for manifest in without}
    assert "helm.sh/resource-policy" not in deleted["metadata"]["annotations"]


def test_the_schema_of_profiles_is_the_operators_model() -> None:
    schema = json.loads((REPOSITORY / VALUES_SCHEMA_PATH).read_text(encoding="utf-8"))

    assert schema["$defs"] == profile_definitions(), "run `make generate`"


def test_every_value_has_its_schema_and_its_comment() -> None:
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    schema = json.loads((REPOSITORY / VALUES_SCHEMA_PATH).read_text(encoding="utf-8"))
    values = yaml.safe_load(text)

    def assert_known(values: dict[str, Any], schema: dict[str, Any]) -> None:
        assert set(values) == set(schema["properties"]) - {"global"}
        assert schema["additionalProperties"] is False
        for name, value in values.items():
            child = schema["properties"][name]
            if isinstance(value, dict) and "properties" in child and name != "resources":
                assert_known(value, child)

    assert_known(values, schema)
    assert text.count("# -- ") >= len(values)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"profile": {}}, "additional properties 'profile' not allowed"),
        ({"crd": {"instal": True}}, "at '/crd': additional properties 'instal' not allowed"),
        ({"crd": {"install": "no"}}, "at '/crd/install': got string, want boolean"),
        ({"watchNamespaces": "team-a"}, "at '/watchNamespaces': got string, want array"),
        ({"watchNamespaces": ["team_a"]}, "at '/watchNamespaces/0': 'team_a' does not match pattern"),
        ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
        ({"operator": {"workers": 0}}, "at '/operator/workers': minimum: got 0, want 1"),
        ({"operator": {"logFormat": "xml"}}, "at '/operator/logFormat': value must be one of 'json', 'text'"),
        ({"profiles": {"Big GPU": PROFILE}}, "at '/profiles': additional properties 'Big GPU' not allowed"),
        ({"profiles": {"default": {}}}, "at '/profiles/default': missing property 'store'"),
        (
            {"profiles": {"default": {"store": {"uri": "bucket"}}}},
            "at '/profiles/default/store/uri': 'bucket'",
        ),
        (
            {"profiles": {"default": {"store": {"uri": "file:///x"}}}},
            "at '/profiles/default/store/uri': 'file:///x' does not match pattern '^s3://",
        ),
        ({"nameOverride": "edge.tune"}, "at '/nameOverride': 'edge.tune' does not match pattern"),
        ({"fullnameOverride": "edge.tune"}, "at '/fullnameOverride': 'edge.tune' does not match pattern"),
        ({"fullnameOverride": "1edge"}, "at '/fullnameOverride': '1edge' does not match pattern"),
        (
            {"profiles": {"default": {**PROFILE, "resources": {"tune": {}}}}},
            "at '/profiles/default/resources': additional properties 'tune' not allowed",
        ),
        ({"profiles": {"default": {**PROFILE, "command": ["sh"]}}}, "additional properties 'command' not allowed"),
        # The admission policies would refuse the operator's Pod.
        ({"podAnnotations": {"edgetune.dev/x": "y"}}, "at '/podAnnotations/edgetune.dev~1x'"),
        ({"podLabels": {"edgetune.dev/x": "y"}}, "at '/podLabels/edgetune.dev~1x'"),
        ({"networkPolicy": {"apiServerPorts": []}}, "at '/networkPolicy/apiServerPorts': minItems: got 0, want 1"),
    ],
)
def test_an_invalid_value_is_refused_with_its_path(values: Values, complaint: str) -> None:
    with pytest.raises(Refused) as refusal:
        render(values)

    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("profile", "complaint"),
    [
        ({"requireQueue": True}, "': missing property 'queue'"),
        ({"requireQueue": True, "queue": None}, "/queue': 'not' failed"),
        ({"namespaces": {"selector": {}}}, "/namespaces/selector"),
        (
            {"namespaces": {"selector": {"matchLabel": {}}}},
            "/namespaces/selector': additional properties 'matchLabel' not allowed",
        ),
        ({"sources": ["s3://*", "models/*"]}, f"/sources/1': value must be '{SOURCE_FORMS}'"),
        ({"env": {"HOME": "/x"}}, "/env/HOME': value must be 'left out: the operator sets it'"),
        ({"env": {"EDGETUNE_REQUEST": "{}"}}, "/env/EDGETUNE_REQUEST': value must be 'left out: the operator sets it'"),
        ({"env": {"1X": "x"}}, "/env': additional properties '1X' not allowed"),
        (
            {"env": {"SSL_CERT_FILE": "/ca"}, "caBundleConfigMap": "ca"},
            "/env/SSL_CERT_FILE': value must be 'left out: caBundleConfigMap sets it'",
        ),
        (
            {"podLabels": {"edgetune.dev/uid": "x"}},
            "/podLabels/edgetune.dev~1uid': value must be 'left out: the operator sets it'",
        ),
        (
            {"podLabels": {"app.kubernetes.io/managed-by": "x"}},
            "/podLabels/app.kubernetes.io~1managed-by': value must be 'left out: the operator sets it'",
        ),
        (
            {"resources": {"train": {"limits": {"nvidia.com/gpu": "1.5"}}}},
            "/resources/train/limits/nvidia.com~1gpu': '1.5' does not match pattern '^[0-9]{1,2}$'",
        ),
        (
            {"resources": {"train": {"requests": {"nvidia.com/mig-1g.5gb": -1}}}},
            "/resources/train/requests/nvidia.com~1mig-1g.5gb': minimum: got -1, want 0",
        ),
        (
            {"resources": {"train": {"limits": {"nvidia.com/gpu": 65}}}},
            "/resources/train/limits/nvidia.com~1gpu': maximum: got 65, want 64",
        ),
        (
            {"resources": {"merge": {"limits": {"nvidia.com/gpu": 2}}}},
            "/resources/merge/limits/nvidia.com~1gpu': maximum: got 2, want 1",
        ),
        (
            {"resources": {"train": {"limits": {"nvidia.com/mig-1g.5gb": 2}}}},
            "/resources/train/limits/nvidia.com~1mig-1g.5gb': maximum: got 2, want 1",
        ),
        ({"queue": {"name": "gpu", "topology": {"required": "the rack"}}}, "/queue"),
        ({"queue": {"name": "gpu", "topology": {"required": "rack", "preferred": "rack"}}}, "/queue"),
        (
            {
                "queue": {"name": "gpu", "topology": {"required": "rack"}},
                "podAnnotations": {"kueue.x-k8s.io/podset-required-topology": "rack"},
            },
            "/podAnnotations/kueue.x-k8s.io~1podset-required-topology': value must be 'left out: queue.topology sets "
            "one'",
        ),
        ({"sizing": {"memory": {"max": "1.5Gi"}}}, "/sizing/memory/max"),
        ({"workVolumeSize": "much"}, "/workVolumeSize"),
        ({"cache": {"size": "1Ti"}}, "/cache"),
        ({"cache": {"size": "1Ti", "hostPath": "/a", "persistentVolumeClaim": "b"}}, "/cache"),
    ],
)
def test_helm_refuses_profiles_with_which_the_operator_would_not_start(
    profile: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text(yaml.safe_dump({"profiles": {"default": {**PROFILE, **profile}}}), encoding="utf-8")

    with pytest.raises(InvalidProfiles):
        load_profiles(path)
    with pytest.raises(Refused) as refusal:
        render({"profiles": {"default": {**PROFILE, **profile}}})

    assert f"at '/profiles/default{complaint}" in str(refusal.value)


def test_values_similar_to_refused_ones_reach_the_operator(tmp_path: Path) -> None:
    profile = {
        **PROFILE,
        "env": {"HTTPS_PROXY": "http://proxy:3128", "MY_HOME": "/x", "SSL_CERT_FILE": "/ca"},
        "podLabels": {"team": "x", "edgetune.development/uid": "x"},
        "resources": {"train": {"limits": {"cpu": "1.5", "nvidia.com/gpu": "8", "nvidia.com/gpumem": "1.5Gi"}}},
        "maxGpus": 16,
        "caBundleConfigMap": None,
        "sizing": {"memory": {"min": "1Gi", "max": "64Gi"}, "storage": {"max": 10**12}, "requestStorage": False},
        "cache": {"hostPath": "/var/cache/edgetune", "size": "1Ti"},
    }

    assert mounted_profiles({"profiles": {"default": profile}}, tmp_path)["default"].env == profile["env"]


def test_a_cluster_that_is_too_old_is_refused() -> None:
    with pytest.raises(Refused, match=r"chart requires kubeVersion: >=1\.31"):
        helm("template", RELEASE, str(CHART), "--kube-version", "1.30.0")


@each_install
def test_every_pod_is_restricted(values: Values) -> None:
    specs = pod_specs(render(values))

    assert len(specs) == 2, "the operator and the test"
    for what, spec in specs.items():
        assert spec["securityContext"] == RESTRICTED_POD, what
        assert [c["securityContext"] for c in spec["containers"]] == [RESTRICTED_CONTAINER], what
        assert all("limits" in c["resources"] and "requests" in c["resources"] for c in spec["containers"]), what
        assert {key for volume in spec.get("volumes", []) for key in volume} <= {"name", "configMap", "emptyDir"}, what


@each_install
def test_only_the_operator_gets_a_token(values: Values) -> None:
    manifests = render(values)

    tokens = {what: spec["automountServiceAccountToken"] for what, spec in pod_specs(manifests).items()}
    assert [what for what, token in tokens.items() if token] == [what for what in tokens if what.startswith("Deploy")]
    accounts = [manifest for manifest in manifests if manifest["kind"] == "ServiceAccount"]
    assert all(account["automountServiceAccountToken"] is False for account in accounts)


@each_install
def test_no_image_floats(values: Values) -> None:
    images = [container["image"] for spec in pod_specs(render(values)).values() for container in spec["containers"]]

    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
    assert images == [f"ghcr.io/edgetune/operator:{version}"] * 2


def test_every_image_can_come_from_another_registry(tmp_path: Path) -> None:
    digest = f"sha256:{'0' * 64}"
    values = {
        "image": {"repository": "registry.example/operator", "tag": "ignored", "digest": digest},
        "jobsImage": {"repository": "registry.example/jobs", "tag": "2"},
        "profiles": {"default": PROFILE, "own": {**PROFILE, "image": {"reference": "registry.example/own:3"}}},
    }

    manifests = render(values)
    profiles = mounted_profiles(values, tmp_path)

    images = {container["image"] for spec in pod_specs(manifests).values() for container in spec["containers"]}
    assert images == {f"registry.example/operator@{digest}"}
    assert {name: profile.image.reference for name, profile in profiles.items()} == {
        "default": "registry.example/jobs:2",
        "own": "registry.example/own:3",
    }


def test_profiles_reach_the_operator_unchanged(tmp_path: Path) -> None:
    profile = Profile(
        store=ProfileStore(uri="s3://artifacts/edgetune", endpoint="https://s3.example", path_style=True),
        image=Image(pull_secrets=("pull",)),
        resources={Stage.TRAIN: Resources(requests={"cpu": "8", "nvidia.com/gpu": 1}, limits={"nvidia.com/gpu": 1})},
        tolerations=({"key": "nvidia.com/gpu", "operator": "Exists"},),
        affinity={"nodeAffinity": {}},
        queue=Queue(name="gpu"),
        ttl_seconds_after_finished=10_000_000,
    )
    given = profile.model_dump(mode="json", exclude_none=True)

    assert mounted_profiles({"profiles": {"gpu": given}}, tmp_path) == {"gpu": profile}


def test_a_profile_without_an_image_gets_the_one_of_the_operators_release(tmp_path: Path) -> None:
    assert mounted_profiles({"profiles": {"default": PROFILE}}, tmp_path)["default"].image == Image()


def test_changed_profiles_restart_the_operator() -> None:
    def template(values: Values) -> Any:
        return one(render(values), "Deployment")["spec"]["template"]

    other = {"profiles": {"default": {"store": {"uri": "s3://other"}}}}
    assert template({"profiles": {"default": PROFILE}}) != template(other)
    assert template(other) == template({**other, "crd": {"install": False}})


def test_the_operator_accepts_its_command_line() -> None:
    manifests = render({})
    container = operator_container(manifests)
    settings = operator_settings(manifests)

    assert container["command"] == ["python", "-m", "edgetune_operator"]
    given = ["--profiles=/etc/edgetune/profiles.yaml", f"--identity={settings.identity}"]
    assert settings == parse_settings(given), "the operator's own defaults"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = one(manifests, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert {"name": mounts[str(settings.profiles.parent)], "configMap": {"name": "edgetune-profiles"}} in volumes
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "health": settings.health_port,
        "metrics": settings.metrics_port,
    }


def test_values_reach_the_operators_command_line() -> None:
    values = {
        "watchNamespaces": ["team-a", "team-b"],
        "operator": {"workers": 4, "pollSeconds": 2.5, "maxPassAgeSeconds": 600, "logFormat": "text", "verbose": True},
    }

    settings = operator_settings(render(values))

    assert settings.namespaces == ("team-a", "team-b")
    assert (settings.workers, settings.poll_seconds, settings.max_pass_age_seconds) == (4, 2.5, 600)
    assert (settings.log_json, settings.verbose) == (False, True)


def test_one_operator_runs_at_a_time_and_is_probed() -> None:
    deployment = one(render({}), "Deployment")
    container = operator_container([deployment])

    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]) == (1, {"type": "Recreate"})
    paths = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "health"}
