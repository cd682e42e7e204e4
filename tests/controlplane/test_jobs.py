"""Rendered Jobs on a real API server: it accepts every field, and Pod Security `restricted` admits their Pods."""

from typing import Any

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.gpu_split import MOST_NODES
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.profiles.resources import ResourceClaim, Resources
from edgetune_operator.decisions.manifests.job_manifests import render_clean_up, render_service
from support.apiserver import ApiServer
from support.builders import NAMESPACE, lora_fine_tune
from support.golden import DEFAULT, FULL, NODES, PROFILES, clean_up_request, job_of

DRY_RUN = "dryRun=All&fieldValidation=Strict"


@pytest.fixture(scope="module")
def restricted_namespace(apiserver: ApiServer) -> str:
    """A namespace that enforces Pod Security `restricted`, with everything that the full profile references."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    wanted: list[tuple[str, dict[str, Any]]] = [
        ("/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": labels}}),
        (f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "default"}}),
        (f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": FULL.service_account_name}}),
        ("/apis/node.k8s.io/v1/runtimeclasses", {"metadata": {"name": FULL.runtime_class_name}, "handler": "nvidia"}),
        ("/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": FULL.priority_class_name}, "value": 1}),
    ]
    for path, body in wanted:
        reply = apiserver.request("POST", path, body)
        assert reply.accepted, reply.message
    return NAMESPACE


def rendered(stage: str, profile: Profile) -> dict[str, Any]:
    """Job of a stage of the smallest object, or of its clean-up."""
    if stage == names.CLEAN_UP:
        return render_clean_up(lora_fine_tune().build()["metadata"], profile, clean_up_request(profile))
    return job_of(Stage(stage), profile)


@pytest.mark.parametrize("stage", [*Stage, names.CLEAN_UP])
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_api_server_accepts_the_job_and_admits_its_pod(
    apiserver: ApiServer, restricted_namespace: str, profile: Profile, stage: str
) -> None:
    job = rendered(stage, profile)
    template = job["spec"]["template"]
    pod = {"metadata": template["metadata"] | {"name": "attempt"}, "spec": template["spec"]}

    accepted = apiserver.request("POST", f"/apis/batch/v1/namespaces/{restricted_namespace}/jobs?{DRY_RUN}", job)
    admitted = apiserver.request("POST", f"/api/v1/namespaces/{restricted_namespace}/pods?{DRY_RUN}", pod)

    assert accepted.accepted, accepted.message
    assert accepted.body["spec"]["podFailurePolicy"] == job["spec"]["podFailurePolicy"]
    assert admitted.accepted, admitted.message


def test_the_namespace_refuses_a_pod_that_can_run_as_root(apiserver: ApiServer, restricted_namespace: str) -> None:
    spec = rendered(Stage.TRAIN, FULL)["spec"]["template"]["spec"]
    spec["securityContext"]["runAsNonRoot"] = False

    reply = apiserver.request(
        "POST", f"/api/v1/namespaces/{restricted_namespace}/pods?{DRY_RUN}", {"metadata": {"name": "x"}, "spec": spec}
    )

    assert not reply.accepted
    assert 'violates PodSecurity "restricted:latest"' in reply.message


def test_the_api_server_accepts_a_training_that_claims_its_gpu(apiserver: ApiServer, restricted_namespace: str) -> None:
    claim = ResourceClaim(name="gpu", resource_claim_template_name="l4")
    resources = {Stage.TRAIN: Resources(requests={"cpu": 4}, claims=(claim,))}
    job = rendered(Stage.TRAIN, DEFAULT.model_copy(update={"resources": resources}))

    accepted = apiserver.request("POST", f"/apis/batch/v1/namespaces/{restricted_namespace}/jobs?{DRY_RUN}", job)

    assert accepted.accepted, accepted.message
    pod = accepted.body["spec"]["template"]["spec"]
    assert pod["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "l4"}]
    assert pod["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]
    assert {"name": "EDGETUNE_GPUS", "value": "1"} in pod["containers"][0]["env"]


@pytest.mark.parametrize("name", ["sensor-faults", "4-bit", "9" * 43, "a" * 63])
def test_the_api_server_accepts_a_training_on_the_most_nodes_and_its_service(
    apiserver: ApiServer, restricted_namespace: str, name: str
) -> None:
    most = Resources(requests={"cpu": 1}, nodes=MOST_NODES)
    profile = NODES.model_copy(update={"resources": {Stage.TRAIN: most}})
    job = job_of(Stage.TRAIN, profile, lora_fine_tune(name))
    service = render_service(lora_fine_tune(name).build()["metadata"], job["metadata"]["name"], "uid")

    accepted = apiserver.request("POST", f"/apis/batch/v1/namespaces/{restricted_namespace}/jobs?{DRY_RUN}", job)
    served = apiserver.request("POST", f"/api/v1/namespaces/{restricted_namespace}/services?{DRY_RUN}", service)

    assert accepted.accepted, accepted.message
    assert accepted.body["spec"]["completions"] == MOST_NODES
    assert served.accepted, served.message
