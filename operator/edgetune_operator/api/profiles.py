"""Profiles: settings of the platform team, which users select by name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from edgetune_contract.pipeline import PIPELINE
from edgetune_contract.request import STORE_URI, S3Service, StoreLocation
from edgetune_contract.schema import Model
from edgetune_contract.stages import Stage
from edgetune_contract.values.quantities import ByteQuantity, parse_bytes
from edgetune_operator.api import names
from edgetune_operator.api.yaml_files import OutOfBounds, read_yaml

Quantities = dict[str, str | int]
# Fractions of a GPU do not count, such as nvidia.com/gpumem, volcano.sh/gpu-memory or gpu.intel.com/memory.max.
GPU_PATTERN = r"[^/]+/gpu|[^/]+/mig-.+|gpu\.intel\.com/(i915|xe)"
"""Names of resources that count as GPUs."""

VARIABLE_PATTERN = "[A-Za-z_][A-Za-z0-9_]*"
"""Names of environment variables."""

_GPU = re.compile(GPU_PATTERN)
_VARIABLE = re.compile(VARIABLE_PATTERN)
CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
"""Variables in which the S3 client, requests and other libraries look for a CA bundle."""

JOB_VARIABLES = ("HOME", "TMPDIR", "OMP_WAIT_POLICY")
"""Variables that a Job sets for its stage, besides those that begin with OWN_VARIABLE_PREFIX."""

OWN_VARIABLES = (*JOB_VARIABLES, "HF_HUB_OFFLINE")
"""Variables that a profile cannot set: the Job or the stage's process sets them."""

OWN_VARIABLE_PREFIX = "EDGETUNE_"
OWN_LABEL_PREFIX = f"{names.GROUP}/"
"""Prefix of the labels by which the operator finds its Pods, besides names.MANAGED_BY_LABEL."""


class Resources(Model):
    """Kubernetes resources of one container."""

    requests: Quantities = {}
    limits: Quantities = {}

    @model_validator(mode="after")
    def _count_whole_gpus(self) -> Self:
        for name, count in (*self.requests.items(), *self.limits.items()):
            if _GPU.fullmatch(name) and not str(count).isdecimal():
                raise ValueError(f"{name} must be a whole number, is {count!r}")
        return self

    @property
    def gpus(self) -> int:
        """Number of GPUs, or of slices of one, of any vendor."""
        return count_gpus(self.requests | self.limits)

    @property
    def gpu_kind(self) -> str | None:
        """Name of the resource that its GPUs are; None without a GPU."""
        quantities = self.requests | self.limits
        return next((name for name, count in quantities.items() if count_gpus({name: count})), None)


def count_gpus(quantities: Mapping[str, str | int]) -> int:
    """Number of GPUs, or of slices of one, among the resources that a container requests."""
    return sum(int(count) for name, count in quantities.items() if _GPU.fullmatch(name) and str(count).isdecimal())


class Image(Model):
    """The container image of the stages."""

    reference: str = "ghcr.io/edgetune/jobs:0.1.0"
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """Names of image pull Secrets in the object's namespace."""


class ProfileStore(S3Service):
    """Bucket and prefix under which each namespace has its folder."""

    uri: Annotated[str, Field(pattern=STORE_URI)]
    """s3://bucket/prefix or, in a local run, file:///folder."""

    credentials_secret: str | None = None
    """Secret in the object's namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; None: the Pod's identity."""

    def for_namespace(self, namespace: str) -> StoreLocation:
        """Store of one namespace's artifacts: nothing is shared across namespaces."""
        service = self.model_dump(include=set(S3Service.model_fields), by_alias=False)
        return StoreLocation(uri=f"{self.uri.rstrip('/')}/{namespace}", **service)


class Bounds(Model):
    """Smallest and largest quantity that a stage may request or use."""

    min: ByteQuantity | None = None
    """Default: none."""

    max: ByteQuantity | None = None
    """Default: none."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min is not None and self.max is not None and parse_bytes(self.min) > parse_bytes(self.max):
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self

    def clamp(self, count: int) -> int:
        """The number of bytes within the bounds."""
        most = count if self.max is None else min(count, parse_bytes(self.max))
        return most if self.min is None else max(most, parse_bytes(self.min))


class Sizing(Model):
    """Bounds of what stages request for a model of its size, where `resources` does not fix it. Equal bounds fix it."""

    memory: Bounds = Bounds()
    """Bounds of the memory that a stage requests, and of its limit."""

    storage: Bounds = Bounds()
    """Bounds of the ephemeral storage that a stage requests, and of the size limit of its work volume."""

    request_storage: bool = True
    """Whether stages request ephemeral storage. false for a queue or a quota that does not know this resource."""


class Cache(Model):
    """A volume on which stages keep the files of base models, so that each is read from the store once."""

    host_path: Annotated[str, Field(pattern=r"^/.+")] | None = None
    """Folder on each node, which the stages' user can write to. The Pod Security Standards baseline and restricted
    refuse it."""

    persistent_volume_claim: Annotated[str, Field(min_length=1)] | None = None
    """Claim in the object's namespace. With stages on several nodes, its access mode must be ReadWriteMany."""

    size: ByteQuantity
    """Files that were not used for the longest time are removed to stay below this size, in each namespace."""

    @model_validator(mode="after")
    def _check_one_volume(self) -> Self:
        if (self.host_path is None) == (self.persistent_volume_claim is None):
            raise ValueError("cache needs either hostPath or persistentVolumeClaim")
        return self


# prepare and publish hold no weights. The memory of the others follows the size of the model.
_LIGHT = Resources(requests={"cpu": "500m", "memory": "1Gi"}, limits={"memory": "4Gi"})
_WEIGHTS = Resources(requests={"cpu": "2"})
_TRAINING = Resources(requests={"cpu": "4"})
_WITHOUT_GPU: Mapping[Stage, Resources] = {
    Stage.PREPARE: _LIGHT,
    Stage.TRAIN: _TRAINING,
    Stage.MERGE: _WEIGHTS,
    Stage.QUANTIZE: _WEIGHTS,
    Stage.EVALUATE: _WEIGHTS,
    Stage.PUBLISH: _LIGHT,
}


def _with_gpu(resources: Resources, kind: str = "nvidia.com/gpu") -> Resources:
    gpu: Quantities = {kind: 1}
    return Resources(requests=resources.requests | gpu, limits=resources.limits | gpu)


# Only stages that always need a GPU; `Profile.for_base` adds those that need one for a large base.
DEFAULT_RESOURCES: Mapping[Stage, Resources] = {
    stage: _with_gpu(resources) if PIPELINE[stage].wants_gpu else resources for stage, resources in _WITHOUT_GPU.items()
}


class Profile(Model):
    """One profile: images, resources per stage, node selection, bucket, credentials, queue."""

    store: ProfileStore
    image: Image = Image()
    resources: dict[Stage, Resources] = {}
    """Resources by stage; a stage that is not listed keeps its default. Memory and ephemeral storage that are not in
    them follow the size of the model."""

    evaluate_on_gpu_above: ByteQuantity = "2Gi"
    """Size of the base model above which evaluate requests a GPU of the kind that train has. `resources.evaluate`
    decides for itself, and without a GPU for train there is none for evaluate."""

    gpu_memory: ByteQuantity | None = None
    """Memory of the GPU that train gets, such as 80Gi: prepare then refuses a training that cannot fit into it.
    Default: it is not known, and nothing is refused."""

    sizing: Sizing = Sizing()
    """Bounds of memory and storage that follow the size of the model."""

    work_volume_size: ByteQuantity | None = None
    """Size limit of the emptyDir that holds a stage's work and cache folders. Default: what the stage needs."""

    cache: Cache | None = None
    """Cache of base models; without one, each stage that needs the base reads it from the store."""

    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    affinity: dict[str, Any] | None = None
    runtime_class_name: str | None = None
    priority_class_name: str | None = None
    service_account_name: str | None = None
    openshift: bool = False
    """Leave user and groups of Pods to the cluster: OpenShift gives each namespace a range and rejects other values."""

    pod_labels: dict[str, str] = {}
    """Additional labels of the stages' Pods, such as those that a cloud's workload identity requires."""

    pod_annotations: dict[str, str] = {}
    """Annotations of the stages' Pods, such as sidecar.istio.io/inject: "false"."""

    env: dict[str, str] = {}
    """Additional environment variables of the stages, such as HTTPS_PROXY and NO_PROXY. Not for secrets: everybody who
    can read Jobs can read them."""

    ca_bundle_config_map: str | None = None
    """ConfigMap in the object's namespace whose key ca.crt has the certificates of all trusted authorities."""

    queue: str | None = None
    """Kueue LocalQueue, set as the label kueue.x-k8s.io/queue-name."""

    termination_grace_period_seconds: Annotated[int, Field(ge=1)] = 120
    """Time for a stopped training to write its checkpoint, in seconds."""

    ttl_seconds_after_finished: Annotated[int, Field(ge=300)] = 3600
    """Time for which finished Jobs are kept, in seconds. The operator must be able to observe their end."""

    allow_file_uris: bool = False
    """Whether base and data can be file:// URIs (local runs only: a Pod has no such files)."""

    @model_validator(mode="after")
    def _refuse_reserved_names(self) -> Self:
        for name in self.env:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"env: {name!r} is not a valid name for an environment variable")
            if name in OWN_VARIABLES or name.startswith(OWN_VARIABLE_PREFIX):
                raise ValueError(f"env: {name} is reserved: the operator sets it; remove it")
            if self.ca_bundle_config_map and name in CA_VARIABLES:
                raise ValueError(f"env: {name} conflicts with caBundleConfigMap, which sets it; remove one of the two")
        for label in self.pod_labels:
            if label.startswith(OWN_LABEL_PREFIX) or label == names.MANAGED_BY_LABEL:
                raise ValueError(f"podLabels: {label} is reserved: the operator sets it; remove it")
        return self

    def for_base(self, size: float | None) -> Self:
        """The profile with a GPU for the stages that want one for a large base.

        Args:
            size: of the base in bytes; None if it is not known yet.
        """
        kind = self.resources_for(Stage.TRAIN).gpu_kind
        if kind is None or size is None or size <= parse_bytes(self.evaluate_on_gpu_above):
            return self
        large = {stage for stage, definition in PIPELINE.items() if definition.wants_gpu_if_large}
        added = {stage: _with_gpu(DEFAULT_RESOURCES[stage], kind) for stage in large - self.resources.keys()}
        return self.model_copy(update={"resources": {**self.resources, **added}})

    def resources_for(self, stage: Stage) -> Resources:
        """Resources of a stage's container."""
        return self.resources.get(stage, DEFAULT_RESOURCES[stage])


class InvalidProfiles(ValueError):
    """The profiles file cannot be used."""


class _ProfilesFile(Model):
    profiles: dict[str, Profile]


def load_profiles(path: Path) -> dict[str, Profile]:
    """Profiles by name, from a YAML file with one key, `profiles`.

    Raises:
        InvalidProfiles: the file cannot be read, is not valid YAML, or has invalid fields; the message has the path of
            each.
    """
    try:
        documents = read_yaml(path)
        return _ProfilesFile.model_validate(documents[0] if len(documents) == 1 else documents).profiles
    except OSError as error:
        raise InvalidProfiles(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise InvalidProfiles(f"{path}: {'; '.join(map(_problem, error.errors()))}") from None
    except OutOfBounds as error:
        raise InvalidProfiles(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidProfiles(f"{path}: not valid YAML: {error}") from None


def _problem(item: ErrorDetails) -> str:
    where = ".".join(map(str, item["loc"])) or "the document"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}"
