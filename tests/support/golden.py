"""Golden manifests of Jobs, for each stage and for a clean-up, and the resources of Jobs by the size of the model.

`PYTHONPATH=tests python -m support.golden` writes them; --check compares them.
"""

import sys
from collections.abc import Mapping
from typing import Any

from edgetune_contract.access.s3_service import ChecksumMode
from edgetune_contract.clean_up import CleanUpRequest
from edgetune_contract.digest import prepare_digest, stage_digests
from edgetune_contract.request import Request, Resolved
from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles.gpu_use import Prices
from edgetune_operator.api.profiles.profile import Cache, Image, Profile, ProfileStore, Signing
from edgetune_operator.api.profiles.queue import Queue, Topology
from edgetune_operator.api.profiles.resources import Resources
from edgetune_operator.api.profiles.tracking import Mlflow, Tracking
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.api.status.stage_status import StageState, StageStatus
from edgetune_operator.decisions.manifests.job_manifests import render_clean_up, render_job, render_service
from edgetune_operator.decisions.manifests.stage_resources import known_needs, profile_for_run, stage_resources
from edgetune_operator.generate.__main__ import run, to_yaml
from support.builders import NAMESPACE, ObjectBuilder, lora_fine_tune
from support.model_shapes import MODELS

FOLDER = "tests/golden"
RESOLVED = Resolved(base="a" * 64, train="b" * 64)
DEFAULT = Profile(store=ProfileStore(uri="s3://artifacts/edgetune"))
FULL = Profile(
    store=ProfileStore(
        uri="s3://artifacts/edgetune/",
        endpoint="https://s3.example.internal",
        region="eu-central-1",
        path_style=True,
        checksums=ChecksumMode.WHEN_REQUIRED,
        credentials_secret="edgetune-s3",
    ),
    image=Image(
        reference="registry.example.internal/edgetune/jobs:0.1.0", pull_policy="Always", pull_secrets=("pull",)
    ),
    resources={
        Stage.TRAIN: Resources(
            requests={"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": 4},
            limits={"memory": "128Gi", "nvidia.com/gpu": 4},
        )
    },
    max_gpus=8,
    work_volume_size="200Gi",
    prices=Prices(currency="EUR", gpu_hour=2.5),
    cache=Cache(persistent_volume_claim="model-cache", size="500Gi"),
    node_selector={"gpu.example.internal/model": "a100"},
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
    affinity={"nodeAffinity": {}},
    runtime_class_name="nvidia",
    priority_class_name="batch-low",
    service_account_name="edgetune-jobs",
    openshift=True,
    pod_labels={"azure.workload.identity/use": "true"},
    pod_annotations={"sidecar.istio.io/inject": "false"},
    env={"HTTPS_PROXY": "http://proxy.example.internal:3128", "NO_PROXY": ".example.internal"},
    ca_bundle_config_map="ca-bundle",
    queue=Queue(name="team-a"),
    termination_grace_period_seconds=300,
    ttl_seconds_after_finished=600,
    signing=Signing(secret_name="edgetune-signing"),
    tracking=Tracking(
        mlflow=Mlflow(
            uri="https://mlflow.example.internal:8443/mlflow",
            experiment="edge models",
            credentials_secret="edgetune-mlflow",
        )
    ),
)
NODES = Profile(
    store=ProfileStore(uri="s3://artifacts/edgetune"),
    resources={
        Stage.TRAIN: Resources(requests={"cpu": "16", "nvidia.com/gpu": 8}, limits={"nvidia.com/gpu": 8}, nodes=2)
    },
    queue=Queue(name="team-a", topology=Topology(required="cloud.provider.com/topology-block")),
)
PROFILES: Mapping[str, Profile] = {"default": DEFAULT, "full": FULL}


def request_for(stage: Stage, profile: Profile, builder: ObjectBuilder | None = None) -> Request:
    """Request of a stage of the smallest object, or of another."""
    builder = builder or lora_fine_tune()
    parameters = spec_of(builder).parameters
    name = builder.document["metadata"]["name"]
    digests = {Stage.PREPARE: prepare_digest(parameters), **stage_digests(parameters, RESOLVED, name)}
    return Request(
        namespace=NAMESPACE,
        name=name,
        stage=stage,
        digest=digests[stage],
        store=profile.store.for_namespace(NAMESPACE),
        parameters=parameters,
        resolved=None if stage is Stage.PREPARE else RESOLVED,
        sign=True if profile.signing and stage in (Stage.PREPARE, Stage.PUBLISH) else None,
    )


def spec_of(builder: ObjectBuilder) -> LoraFineTuneSpec:
    """The parsed spec."""
    return parse_spec(builder.build()["spec"])


def job_of(
    stage: Stage,
    profile: Profile = DEFAULT,
    builder: ObjectBuilder | None = None,
    *,
    model: str = "Llama-3.1-8B",
    retry: str = "",
) -> dict[str, Any]:
    """Job of a stage of the smallest object, or of another, after prepare has measured a model."""
    builder = builder or lora_fine_tune()
    spec = spec_of(builder)
    prepare = StageStatus(name=Stage.PREPARE, state=StageState.SUCCEEDED, metrics=dict(MODELS[model]))
    fitted = profile_for_run(profile, prepare)
    resources = stage_resources(fitted, stage, known_needs(fitted, prepare, spec.parameters).get(stage))
    request = request_for(stage, profile, builder)
    return render_job(builder.build()["metadata"], spec, profile, request, retry, resources)


def golden_files() -> dict[str, str]:
    """Text by path relative to the repository's root."""
    stages = {
        f"{FOLDER}/{name}-{stage}.yaml": to_yaml(job_of(stage, profile, retry="token-1"))
        for name, profile in PROFILES.items()
        for stage in Stage
    }
    trained = job_of(Stage.TRAIN, NODES)
    stages[f"{FOLDER}/nodes-train.yaml"] = to_yaml(trained)
    owner = lora_fine_tune().build()["metadata"]
    service = render_service(owner, trained["metadata"]["name"], "uid-of-the-job")
    stages[f"{FOLDER}/nodes-train-service.yaml"] = to_yaml(service)
    sizes = {model: {stage.value: _resources(job_of(stage, model=model)) for stage in Stage} for model in MODELS}
    return (
        stages
        | {f"{FOLDER}/resources.yaml": to_yaml(sizes)}
        | {
            f"{FOLDER}/{name}-clean-up.yaml": to_yaml(render_clean_up(owner, profile, clean_up_request(profile)))
            for name, profile in PROFILES.items()
        }
    )


def _resources(job: Mapping[str, Any]) -> dict[str, Any]:
    pod = job["spec"]["template"]["spec"]
    (container,), work = pod["containers"], pod["volumes"][0]
    return {**container["resources"], "workVolume": work["emptyDir"]["sizeLimit"]}


def clean_up_request(profile: Profile) -> CleanUpRequest:
    """Request to remove the artifacts of the smallest object."""
    return CleanUpRequest(namespace=NAMESPACE, name="sensor-faults", store=profile.store.for_namespace(NAMESPACE))


if __name__ == "__main__":
    sys.exit(run(golden_files(), sys.argv[1:]))
