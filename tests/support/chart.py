"""The Helm chart as a user installs it: through `helm`, with values on the command line.

`PYTHONPATH=tests python -m support.chart` writes the golden manifests of the default install; --check compares them.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.binaries import find
from edgetune_operator.api.profiles.profile import Profile, load_profiles
from edgetune_operator.generate.__main__ import run
from support.apiserver import BINARIES_VARIABLE, REPOSITORY

CHART = REPOSITORY / "charts" / "edgetune"
RELEASE = "edgetune"
RELEASE_NAMESPACE = "edgetune-system"
GOLDEN = "tests/golden/chart-default.yaml"
# A helm binary that was built without version flags assumes Kubernetes 1.20.
KUBERNETES_VERSION = "1.35.0"

Values = Mapping[str, Any]
Manifest = dict[str, Any]

PROFILE: Values = {"store": {"uri": "s3://artifacts/edgetune", "credentialsSecret": "edgetune-s3"}}
ALL_SWITCHES: Values = {
    "profiles": {"default": PROFILE},
    "imagePullSecrets": ["pull"],
    "priorityClassName": "platform",
    "nodeSelector": {"node": "platform"},
    "tolerations": [{"key": "platform", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podLabels": {"team": "platform"},
    "podAnnotations": {"team": "platform"},
    "operator": {"verbose": True},
    "replicas": 2,
    "leases": {"namespace": RELEASE_NAMESPACE, "seconds": 30},
    "rbac": {"ownerReferencesPermissionEnforcement": True},
    "metrics": {name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")},
    "networkPolicy": {
        "enabled": True,
        "apiServerCidrs": ["10.0.0.1/32"],
        "stages": {"enabled": True, "namespaces": ["team-a"], "prometheus": {"enabled": True}},
    },
}


class Refused(Exception):
    """Helm refuses the values; the message is helm's output."""


def find_helm() -> Path | None:
    """The helm binary: from $EDGETUNE_KUBE_BIN, the cache or PATH; None if there is none."""
    found = find("helm") or shutil.which("helm")
    return Path(found) if found is not None else None


def helm(*arguments: str, values: Values | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Output of a helm command.

    Raises:
        Refused: helm exits with an error.
    """
    binary = find_helm()
    if binary is None:
        raise FileNotFoundError(f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH")
    done = subprocess.run(
        # Helm reads values as YAML, of which JSON is a subset.
        [str(binary), *arguments, *(("--values", "-") if values is not None else ())],
        input=json.dumps(values),
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render(values: Values, namespace: str = RELEASE_NAMESPACE) -> list[Manifest]:
    """All manifests of an install, including the Pod of the chart's test."""
    return list(parse(rendered_text(values, namespace=namespace)))


def rendered_text(values: Values, *arguments: str, namespace: str = RELEASE_NAMESPACE) -> str:
    """The same as text."""
    version = ("--kube-version", KUBERNETES_VERSION)
    return helm("template", RELEASE, str(CHART), "-n", namespace, *version, *arguments, values=values)


def parse(text: str) -> Iterator[Manifest]:
    """Manifests of a stream of YAML documents."""
    return (document for document in yaml.safe_load_all(text) if document is not None)


def one(manifests: Iterable[Manifest], kind: str, name: str = RELEASE) -> Manifest:
    """The manifest with a kind and name."""
    found = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} manifests {kind} {name}"
    return found[0]


def pod_specs(manifests: Iterable[Manifest]) -> dict[str, dict[str, Any]]:
    """Specs of all Pods of the chart, by the manifest that creates them."""
    specs = {}
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            specs[f"Pod {manifest['metadata']['name']}"] = manifest["spec"]
        elif "template" in (manifest.get("spec") or {}):
            specs[f"{manifest['kind']} {manifest['metadata']['name']}"] = manifest["spec"]["template"]["spec"]
    return specs


def golden_files() -> dict[str, str]:
    """The default install without the CRD, which is compared with its generated file; text by path under the root."""
    documents = rendered_text({"profiles": {"default": PROFILE}}, "--set", "crd.install=false")
    return {GOLDEN: documents}


if __name__ == "__main__":
    sys.exit(run(golden_files(), sys.argv[1:]))


def rules(role: Manifest) -> dict[tuple[str, str], set[str]]:
    """Verbs by group and resource."""
    verbs: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for each in itertools.product(rule["apiGroups"], rule["resources"]):
            verbs.setdefault(each, set()).update(rule["verbs"])
    return verbs


NAMESPACED: Values = {"watchNamespaces": ["team-a", "team-b"]}
QUEUED_PROFILE: Values = {**PROFILE, "queue": {"name": "gpu"}}
INSTALLS: dict[str, Values] = {
    "default": {},
    "all switches": ALL_SWITCHES,
    "namespaced": NAMESPACED,
    "namespaced with all switches": {**ALL_SWITCHES, **NAMESPACED},
    "without CRD": {"crd": {"install": False}},
    "without RBAC": {"rbac": {"create": False, "aggregateToUserRoles": False}, "serviceAccount": {"create": False}},
    "network policy of the operator only": {"networkPolicy": {"enabled": True}},
    "with queues": {"profiles": {"default": PROFILE, "queued": QUEUED_PROFILE}},
    "namespaced with queues": {**NAMESPACED, "profiles": {"queued": QUEUED_PROFILE}},
    "other names": {"fullnameOverride": "tuner", "serviceAccount": {"name": "robot"}},
}
CLUSTER_NAME = f"{RELEASE}-{RELEASE_NAMESPACE}"
"""Name of the cluster-scoped objects."""

each_install = pytest.mark.parametrize("values", INSTALLS.values(), ids=INSTALLS)


def mounted_profiles(values: Values, folder: Path) -> dict[str, Profile]:
    """The profiles that the operator reads from the mounted file."""
    path = folder / "profiles.yaml"
    path.write_text(one(render(values), "ConfigMap", "edgetune-profiles")["data"]["profiles.yaml"], encoding="utf-8")
    return load_profiles(path)
