"""Job manifests: golden files, Pod Security, exit codes, and the request in the environment."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_contract.request import Request
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.gpu_use import Prices
from edgetune_operator.api.profiles.profile import CA_VARIABLES, JOB_VARIABLES, OWN_VARIABLES, Cache, Profile
from edgetune_operator.api.profiles.queue import Queue, Topology
from edgetune_operator.api.profiles.resources import Resources
from edgetune_operator.decisions.manifests.job_manifests import pod_failure_rules, render_service
from edgetune_operator.decisions.manifests.stage_resources import job_settings, stage_resources
from edgetune_operator.generate.__main__ import differences
from support.apiserver import REPOSITORY
from support.builders import UID, lora_fine_tune
from support.golden import DEFAULT, FULL, NODES, PROFILES, golden_files, job_of, request_for, spec_of
from support.scenario import request_of

GPU = "nvidia.com/gpu"
READERS_OF_THE_BASE = (Stage.TRAIN, Stage.MERGE, Stage.EVALUATE)


def pod_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The Pod's spec."""
    pod: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return pod


def container_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The one container."""
    (container,) = pod_of(manifest)["containers"]
    return dict(container)


def environment_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The container's environment as the kubelet sets it."""
    environment: dict[str, str] = {}
    for variable in container_of(manifest)["env"]:
        environment[variable["name"]] = expanded(variable["value"], environment)
    return environment


def expanded(value: str, known: Mapping[str, str]) -> str:
    """The kubelet's expansion: $$ is $, $(NAME) is a known variable, anything else is unchanged."""

    def replacement(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else known.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replacement, value)


def violations(pod: Mapping[str, Any]) -> list[str]:
    """Violations of the Pod Security Standard `restricted`, by its own names."""
    found = [field for field in ("hostNetwork", "hostPID", "hostIPC", "initContainers") if pod.get(field)]
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found += [f"volume {volume['name']}" for volume in pod["volumes"] if not (set(volume) - {"name"}) <= allowed]
    context = pod["securityContext"]
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("seccompProfile")
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
        found.append("runAsNonRoot")
    for container in pod["containers"]:
        own = container["securityContext"]
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append("allowPrivilegeEscalation")
        if own["capabilities"].get("drop") != ["ALL"] or set(own["capabilities"].get("add", ())) - {"NET_BIND_SERVICE"}:
            found.append("capabilities")
        found += [f"hostPort {port['hostPort']}" for port in container.get("ports", ()) if port.get("hostPort")]
    return found


def test_the_golden_manifests_are_up_to_date() -> None:
    assert differences(REPOSITORY, golden_files()) == ""


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_pods_satisfy_pod_security_restricted(stage: Stage, profile: Profile) -> None:
    assert violations(pod_of(job_of(stage, profile))) == []


@pytest.mark.parametrize("stage", Stage)
def test_pods_have_no_token_and_a_read_only_root(stage: Stage) -> None:
    manifest = job_of(stage, FULL)

    assert pod_of(manifest)["automountServiceAccountToken"] is False
    assert container_of(manifest)["securityContext"]["readOnlyRootFilesystem"] is True
    writable = [mount["name"] for mount in container_of(manifest)["volumeMounts"] if not mount.get("readOnly")]
    cache = ["model-cache"] if stage in READERS_OF_THE_BASE else []
    assert writable == ["work", *cache, *(["shm"] if stage is Stage.TRAIN else [])]


def test_a_container_knows_how_many_gpus_it_must_see() -> None:
    two = Resources(requests={GPU: 2}, limits={GPU: 2})
    profile = DEFAULT.model_copy(update={"resources": {Stage.TRAIN: two}})

    known = {stage: environment_of(job_of(stage, profile)).get("EDGETUNE_GPUS") for stage in Stage}

    assert known == {**dict.fromkeys(Stage), Stage.TRAIN: "2", Stage.EVALUATE: "1"}


def test_only_a_training_runs_on_several_nodes() -> None:
    modes = {stage: job_of(stage, NODES)["spec"].get("completionMode") for stage in Stage}

    assert modes == {**dict.fromkeys(Stage), Stage.TRAIN: "Indexed"}


def test_the_pods_of_several_nodes_find_the_first_one_by_the_service_of_their_job() -> None:
    job = job_of(Stage.TRAIN, NODES)
    name, owner = job["metadata"]["name"], lora_fine_tune().build()["metadata"]
    service = render_service(owner, name, "uid")

    assert {key: job["spec"][key] for key in ("completions", "parallelism")} == {"completions": 2, "parallelism": 2}
    assert service["metadata"]["name"] == pod_of(job)["subdomain"] == name
    environment = environment_of(job)
    assert (environment["EDGETUNE_NODES"], environment["EDGETUNE_RENDEZVOUS"]) == ("2", f"{name}-0.{name}:29500")
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)


def test_a_job_whose_name_begins_with_a_digit_has_a_service_with_another_name() -> None:
    job = job_of(Stage.TRAIN, NODES, lora_fine_tune("4-bit"))
    name, subdomain = job["metadata"]["name"], pod_of(job)["subdomain"]

    assert name.startswith("4-bit-train-")
    assert subdomain.startswith("peers-")
    assert render_service(lora_fine_tune("4-bit").build()["metadata"], name, "uid")["metadata"]["name"] == subdomain
    assert environment_of(job)["EDGETUNE_RENDEZVOUS"] == f"{name}-0.{subdomain}:29500"


def test_the_price_of_a_training_is_that_of_all_nodes() -> None:
    profile = NODES.model_copy(update={"prices": Prices(currency="EUR", gpu_hour=2)})
    described = stage_resources(profile, Stage.TRAIN).describe(profile.prices)

    assert described.endswith("16 GPUs on 2 nodes for 32.00 EUR an hour")


def test_a_number_of_nodes_is_a_setting_that_a_waiting_job_keeps() -> None:
    spec, one = spec_of(lora_fine_tune()), NODES.resources_for(Stage.TRAIN).model_copy(update={"nodes": 1})
    fewer = NODES.model_copy(update={"resources": {Stage.TRAIN: one}})
    found = [job_settings(spec, each, Stage.TRAIN, stage_resources(each, Stage.TRAIN)) for each in (NODES, fewer)]

    assert found[0].fixed != found[1].fixed


@pytest.mark.parametrize(
    ("topology", "annotation"),
    [
        (Topology(required="rack"), {"kueue.x-k8s.io/podset-required-topology": "rack"}),
        (Topology(preferred="rack"), {"kueue.x-k8s.io/podset-preferred-topology": "rack"}),
    ],
)
def test_a_queue_is_asked_to_keep_the_pods_of_a_training_together(
    topology: Topology, annotation: dict[str, str]
) -> None:
    queue, mine = Queue(name="gpu", topology=topology), {"sidecar.istio.io/inject": "false"}
    profile = NODES.model_copy(update={"queue": queue, "pod_annotations": mine})
    on_one_node = DEFAULT.model_copy(update={"queue": queue})

    assert job_of(Stage.TRAIN, profile)["spec"]["template"]["metadata"]["annotations"] == {**mine, **annotation}
    assert profile.pod_annotations == {"sidecar.istio.io/inject": "false"}
    assert "annotations" not in job_of(Stage.TRAIN, on_one_node)["spec"]["template"]["metadata"]
    assert job_of(Stage.MERGE, profile)["spec"]["template"]["metadata"]["annotations"] == mine


def test_a_topology_is_a_setting_that_a_waiting_job_keeps() -> None:
    spec, anywhere = spec_of(lora_fine_tune()), NODES.model_copy(update={"queue": Queue(name="team-a")})
    found = [job_settings(spec, each, Stage.TRAIN, stage_resources(each, Stage.TRAIN)) for each in (NODES, anywhere)]

    assert found[0].fixed != found[1].fixed


@pytest.mark.parametrize("gpus", [1, 2])
def test_several_gpus_are_connected_through_more_shared_memory_than_a_container_has(gpus: int) -> None:
    resources = Resources(requests={GPU: gpus}, limits={GPU: gpus})
    job = job_of(Stage.TRAIN, DEFAULT.model_copy(update={"resources": {Stage.TRAIN: resources}}))

    mounts = [mount for mount in container_of(job)["volumeMounts"] if mount["name"] == "shm"]
    volumes = [volume for volume in pod_of(job)["volumes"] if volume["name"] == "shm"]

    several = gpus > 1
    assert mounts == [{"name": "shm", "mountPath": "/dev/shm"}] * several
    assert volumes == [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}] * several


def test_prepare_knows_the_memory_of_the_profiles_gpu() -> None:
    profile = DEFAULT.model_copy(update={"gpu_memory": "80Gi"})

    known = {stage: environment_of(job_of(stage, profile)).get("EDGETUNE_GPU_BYTES") for stage in Stage}

    assert {stage: value for stage, value in known.items() if value} == {Stage.PREPARE: str(80 * 2**30)}
    assert "EDGETUNE_GPU_BYTES" not in environment_of(job_of(Stage.PREPARE))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize(
    ("model", "stages"),
    [("SmolLM2-135M", [Stage.TRAIN]), ("Llama-3.1-8B", [Stage.TRAIN, Stage.EVALUATE])],
)
def test_train_requests_a_gpu_and_evaluate_does_for_a_large_base(
    profile: Profile, model: str, stages: list[Stage]
) -> None:
    containers = {stage: container_of(job_of(stage, profile, model=model)) for stage in Stage}

    assert [stage for stage, each in containers.items() if GPU in each["resources"].get("limits", {})] == stages
    assert containers[Stage.EVALUATE]["resources"].get("limits", {}).get(GPU, 0) == len(stages) - 1
    assert [stage for stage, each in containers.items() if "ports" in each] == [Stage.TRAIN]


def test_the_failure_policy_follows_the_contract_for_each_exit_code() -> None:
    disruption, *rules = pod_failure_rules()

    actions = {
        code: next((rule["action"] for rule in rules if code in rule["onExitCodes"]["values"]), "Count")
        for code in (*ExitCode, 1, 137)
    }

    assert disruption == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert actions == {
        ExitCode.DONE: "Count",
        ExitCode.INVALID: "FailJob",
        ExitCode.DENIED: "FailJob",
        ExitCode.OUT_OF_GPU_MEMORY: "Count",
        ExitCode.DIVERGED: "FailJob",
        ExitCode.TRANSIENT: "Count",
        ExitCode.INTERRUPTED: "Ignore",
        ExitCode.PEER_LOST: "Ignore",
        1: "Count",
        137: "Count",
    }
    assert {rule["onExitCodes"]["containerName"] for rule in rules} == {container_of(job_of(Stage.TRAIN))["name"]}
    # Kubernetes refuses a rule that names 0.
    assert not any(0 in rule["onExitCodes"]["values"] for rule in rules)


def test_the_users_limits_are_the_jobs() -> None:
    builder = lora_fine_tune().with_spec("retryLimit", 7).with_spec("activeDeadlineSeconds", 600)

    spec = job_of(Stage.TRAIN, builder=builder)["spec"]

    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (7, 600)
    assert spec["podReplacementPolicy"] == "Failed"
    assert "suspend" not in spec


def test_the_job_is_owned_by_its_object() -> None:
    (owner,) = job_of(Stage.TRAIN)["metadata"]["ownerReferences"]

    assert owner == {
        "apiVersion": "edgetune.dev/v1alpha1",
        "kind": "LoraFineTune",
        "name": "sensor-faults",
        "uid": UID,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def test_no_label_or_annotation_of_the_object_reaches_the_job() -> None:
    builder = lora_fine_tune().with_metadata(
        labels={"app.kubernetes.io/instance": "argo", "team": "a"}, annotations={"argocd/tracking": "x"}
    )

    manifest = job_of(Stage.TRAIN, FULL, builder)

    own = {names.STAGE_LABEL, names.OWNER_LABEL, names.UID_LABEL, names.MANAGED_BY_LABEL}
    assert manifest["metadata"]["labels"].keys() == own | {"kueue.x-k8s.io/queue-name"}
    of_pod = manifest["spec"]["template"]["metadata"]
    assert of_pod["labels"] == FULL.pod_labels | {key: manifest["metadata"]["labels"][key] for key in own}
    assert of_pod["annotations"] == FULL.pod_annotations
    assert manifest["metadata"]["annotations"].keys() == {
        names.DIGEST_ANNOTATION,
        names.RETRY_ANNOTATION,
        names.SETTINGS_ANNOTATION,
        names.PROFILE_ANNOTATION,
        names.PRICES_ANNOTATION,
        names.FIXED_SETTINGS_ANNOTATION,
    }


def test_optional_settings_of_a_profile_are_omitted_if_unset() -> None:
    pod = pod_of(job_of(Stage.TRAIN))

    optional = {"nodeSelector", "tolerations", "affinity", "runtimeClassName", "priorityClassName", "imagePullSecrets"}
    assert not optional & pod.keys()
    assert [volume["name"] for volume in pod["volumes"]] == ["work"]


def test_a_profile_adds_labels_annotations_and_variables_to_pods_and_nothing_to_jobs() -> None:
    manifest = job_of(Stage.MERGE, FULL)

    metadata, environment = manifest["spec"]["template"]["metadata"], environment_of(manifest)
    assert metadata["labels"]["azure.workload.identity/use"] == "true"
    assert metadata["annotations"] == {"sidecar.istio.io/inject": "false"}
    assert "azure.workload.identity/use" not in manifest["metadata"]["labels"]
    assert environment["HTTPS_PROXY"] == "http://proxy.example.internal:3128"


def test_each_namespace_has_a_folder_of_its_own_in_the_cache_of_base_models() -> None:
    manifest = job_of(Stage.MERGE, FULL)

    (mount,) = (each for each in container_of(manifest)["volumeMounts"] if each["name"] == "model-cache")
    environment = environment_of(manifest)
    assert (mount["mountPath"], mount["subPath"]) == (environment["EDGETUNE_MODEL_CACHE_DIR"], "team-a")
    assert environment["EDGETUNE_MODEL_CACHE_BYTES"] == str(500 * 2**30)
    (volume,) = (each for each in pod_of(manifest)["volumes"] if each["name"] == "model-cache")
    assert volume["persistentVolumeClaim"] == {"claimName": "model-cache"}


def test_a_stage_that_merges_on_the_fly_reads_the_base_too() -> None:
    builder = lora_fine_tune().with_spec("merge.keep", False)
    cache = Cache(host_path="/var/cache/edgetune", size="1Ti")

    pod = pod_of(job_of(Stage.QUANTIZE, DEFAULT.model_copy(update={"cache": cache}), builder))

    volume = {"path": "/var/cache/edgetune", "type": "DirectoryOrCreate"}
    assert pod["volumes"][-1] == {"name": "model-cache", "hostPath": volume}


def test_a_ca_bundle_is_mounted_and_set_for_every_client() -> None:
    manifest = job_of(Stage.PREPARE, FULL)

    (mount,) = (each for each in container_of(manifest)["volumeMounts"] if each["name"] == "ca-bundle")
    (volume,) = (each for each in pod_of(manifest)["volumes"] if each["name"] == "ca-bundle")
    assert volume["configMap"] == {"name": "ca-bundle", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    paths = {environment_of(manifest)[name] for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")}
    assert paths == {f"{mount['mountPath']}/ca.crt"}


def test_the_variables_that_a_job_sets_are_reserved() -> None:
    own = environment_of(job_of(Stage.TRAIN, FULL)).keys() - FULL.env.keys() - set(CA_VARIABLES)

    assert {name for name in own if not name.startswith("EDGETUNE_")} == set(JOB_VARIABLES)
    assert set(JOB_VARIABLES) < set(OWN_VARIABLES)


def test_on_openshift_the_cluster_sets_user_and_groups_of_pods() -> None:
    restricted = pod_of(job_of(Stage.TRAIN, DEFAULT))["securityContext"]
    openshift = pod_of(job_of(Stage.TRAIN, FULL))["securityContext"]

    assert openshift == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert restricted == openshift | {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}


def test_credentials_are_files_and_not_variables() -> None:
    manifest = job_of(Stage.TRAIN, FULL)

    environment = environment_of(manifest)
    assert environment["EDGETUNE_CREDENTIALS_DIR"] == "/var/run/secrets/edgetune/s3"
    assert not any("AWS" in name and "KEY" in name for name in environment)
    assert not any("valueFrom" in variable for variable in container_of(manifest)["env"])


@pytest.mark.parametrize("stage", Stage)
def test_the_request_reads_back_from_the_environment(stage: Stage) -> None:
    assert request_of(job_of(stage, FULL)) == request_for(stage, FULL)


@given(text=st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]) | st.sampled_from('$()\\"\n'), max_size=60))
def test_any_template_reaches_the_stage_as_it_was_written(text: str) -> None:
    builder = lora_fine_tune().with_spec("dataset.template", f"$(HOME) $$ {text} {{instruction}}")
    request = request_for(Stage.TRAIN, DEFAULT, builder)

    assert Request.decode(environment_of(job_of(Stage.TRAIN, builder=builder))["EDGETUNE_REQUEST"]) == request
