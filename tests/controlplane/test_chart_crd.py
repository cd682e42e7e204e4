"""The chart on a cluster that has the CRD already, as when Git or kubectl installed it first."""

from pathlib import Path

import pytest

from edgetune_operator.api import names
from support.apiserver import BINARIES_VARIABLE, ApiServer
from support.builders import lora_fine_tune
from support.chart import CHART, PROFILE, Refused, Values, find_helm, helm

pytestmark = pytest.mark.skipif(
    find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH: the chart is not installed"
)

NAME = f"{names.PLURAL}.{names.GROUP}"
CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{NAME}"
OBJECTS = f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}"
VALUES: Values = {"profiles": {"default": PROFILE}, "admissionPolicies": {"enabled": False}}


def test_a_crd_that_was_installed_by_hand_becomes_part_of_the_release_with_take_ownership(
    apiserver: ApiServer, tmp_path: Path
) -> None:
    apiserver.write_kubeconfig(tmp_path / "kubeconfig")
    release = ("adopter", "-n", "adopting", f"--kubeconfig={tmp_path / 'kubeconfig'}")
    by_hand = apiserver.request("GET", CRD).body
    document = lora_fine_tune().build() | {"metadata": {"name": "older-than-the-release"}}
    created = apiserver.request("POST", OBJECTS, document)
    assert created.accepted, created.message

    with pytest.raises(Refused, match=rf'"{NAME}" in namespace "" exists and cannot be imported into the current rel'):
        helm("install", release[0], str(CHART), *release[1:], "--create-namespace", values=VALUES)
    helm("install", release[0], str(CHART), *release[1:], "--create-namespace", "--take-ownership", values=VALUES)
    adopted = apiserver.request("GET", CRD).body
    helm("upgrade", release[0], str(CHART), *release[1:], values=VALUES)
    helm("uninstall", *release)

    assert adopted["metadata"]["annotations"]["meta.helm.sh/release-name"] == "adopter"
    assert (adopted["metadata"]["uid"], adopted["spec"]) == (by_hand["metadata"]["uid"], by_hand["spec"])
    kept = apiserver.request("GET", f"{OBJECTS}/older-than-the-release").body
    assert kept["metadata"]["uid"] == created.body["metadata"]["uid"]
    assert apiserver.request("DELETE", f"{OBJECTS}/older-than-the-release").accepted
