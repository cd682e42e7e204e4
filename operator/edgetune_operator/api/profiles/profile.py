"""Profiles: settings of the platform team, which users select by name."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from edgetune_contract.access.allowed_sources import AllowedSource
from edgetune_contract.access.s3_service import S3Service
from edgetune_contract.pipeline import PIPELINE
from edgetune_contract.request import STORE_URI, StoreLocation
from edgetune_contract.schema import Model
from edgetune_contract.stages import Stage
from edgetune_contract.training import AUTO, MOST_GPUS, TrainingSpec
from edgetune_contract.values.quantities import ByteQuantity, parse_bytes
from edgetune_operator.api import names
from edgetune_operator.api.profiles.gpu_split import MOST_NODES, Split, largest_split, split
from edgetune_operator.api.profiles.gpu_use import Prices
from edgetune_operator.api.profiles.queue import Queue
from edgetune_operator.api.profiles.resources import (
    DEFAULT_RESOURCES,
    ON_SEVERAL_GPUS,
    Resources,
    Sizing,
    count_gpus,
    is_slice,
    with_gpu,
)
from edgetune_operator.api.profiles.tenants import Namespaces, Tenant
from edgetune_operator.api.profiles.tracking import Tracking
from edgetune_operator.api.suggestions import suggestion
from edgetune_operator.api.yaml_files import OutOfBounds, read_yaml, syntax_problem

VARIABLE_PATTERN = "[A-Za-z_][A-Za-z0-9_]*"
"""Names of environment variables."""

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


class Signing(Model):
    """The key that signs what is published."""

    secret_name: Annotated[str, Field(min_length=1, max_length=253)]
    """Secret in the object's namespace. Only the Pods of publish mount it."""

    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]{1,253}$")] = "signing.pem"
    """Key of the Secret that has the private key: ECDSA in PEM, without a passphrase."""


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


class Profile(Model):
    """One profile: images, resources per stage, node selection, bucket, credentials, queue."""

    store: ProfileStore
    signing: Signing | None = None
    """Key that signs published versions. Default: they are not signed."""

    tracking: Tracking | None = None
    """Where train and publish send parameters, curves, scores and addresses. Default: nowhere."""

    image: Image = Image()
    resources: dict[Stage, Resources] = {}
    """Resources by stage; a stage that is not listed keeps its default. Memory and ephemeral storage that are not in
    them follow the size of the model."""

    evaluate_on_gpu_above: ByteQuantity = "2Gi"
    """Size of the base model above which evaluate requests a GPU of the kind that train has. `resources.evaluate`
    decides for itself, and without a GPU for train there is none for evaluate."""

    max_gpus: Annotated[int, Field(ge=1, le=MOST_GPUS)] | None = None
    """Largest number of GPUs on each node of a training. Default: as many as `resources.train` has, which a training
    with gpus: Auto gets."""

    max_nodes: Annotated[int, Field(ge=1, le=MOST_NODES)] | None = None
    """Largest number of nodes of a training: spec.training.gpus can ask for maxGpus on each. Default: the nodes of
    `resources.train`, on which a training with gpus: Auto runs."""

    gpu_memory: ByteQuantity | None = None
    """Memory of each GPU that train gets, such as 80Gi: prepare then refuses a training that cannot fit into it.
    Default: it is not known, and nothing is refused."""

    prices: Prices | None = None
    """What the GPUs of the stages cost. Jobs keep the prices with which they were created."""

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
    """PriorityClass of the stages' Pods. With a queue, leave it out: the scheduler would evict what Kueue admitted."""

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

    queue: Queue | None = None
    """Kueue queue of the stages that use GPUs. Default: no stage waits in a queue."""

    termination_grace_period_seconds: Annotated[int, Field(ge=1)] = 120
    """Time for a stopped training to write its checkpoint, in seconds."""

    ttl_seconds_after_finished: Annotated[int, Field(ge=300)] = 3600
    """Time for which finished Jobs are kept, in seconds. The operator must be able to observe their end."""

    namespaces: Namespaces | None = None
    """Namespaces whose objects may use the profile. Default: all."""

    require_queue: bool = False
    """Create the Jobs of stages that request a GPU suspended: they run only once Kueue admits them, even if Kueue does
    not watch the namespace or is not installed. Needs `queue`."""

    sources: tuple[AllowedSource, ...] | None = None
    """What base models and data may be read from, besides the namespace's own folder, such as s3://models/* and hf://*.
    Default: everything outside of the stores of all profiles. Only an entry below a store's address opens a folder in
    the store, to all namespaces."""

    allow_file_uris: bool = False
    """Whether base and data can be file:// URIs (local runs only: a Pod has no such files)."""

    @model_validator(mode="after")
    def _check_numbers_of_gpus(self) -> Self:
        for stage, resources in self.resources.items():
            quantities = resources.requests | resources.limits
            several = [name for name, count in quantities.items() if count_gpus({name: count}) > 1]
            for name in several:
                if stage not in ON_SEVERAL_GPUS:
                    raise ValueError(
                        f"resources.{stage}: {name} is {quantities[name]}, but only train and evaluate use several "
                        "GPUs; set it to 1"
                    )
                if is_slice(name):
                    raise ValueError(
                        f"resources.{stage}: {name} is {quantities[name]}, but a process sees only one slice of a GPU; "
                        "set it to 1"
                    )
            if resources.gpus > MOST_GPUS:
                raise ValueError(f"resources.{stage}: {resources.gpus} GPUs, but at most {MOST_GPUS} train together")
            if resources.gpus > 1 and (stage not in ON_SEVERAL_GPUS or resources.is_mixed):
                whose = "a stage uses GPUs of one kind" if resources.is_mixed else "only train and evaluate use several"
                raise ValueError(f"resources.{stage}: {resources.gpus} GPUs, but {whose}; remove the others")
            if resources.nodes > 1 and stage is not Stage.TRAIN:
                raise ValueError(
                    f"resources.{stage}.nodes is {resources.nodes}, but only train uses several; set it to 1"
                )
        self._check_nodes(self.resources_for(Stage.TRAIN))
        return self._checked_max_gpus(self.resources_for(Stage.TRAIN))

    def _check_nodes(self, training: Resources) -> None:
        if self.max_nodes is not None and training.nodes > self.max_nodes:
            raise ValueError(
                f"maxNodes is {self.max_nodes}, but resources.train has {training.nodes} nodes; raise or remove it"
            )
        if training.nodes > 1 and max(training.gpus, 1) * training.nodes > MOST_GPUS:
            raise ValueError(
                f"resources.train: {training.gpus} GPUs on each of {training.nodes} nodes, but at most {MOST_GPUS} "
                "train together"
            )
        several = max(training.nodes, self.max_nodes or 1) > 1
        if several and training.gpu_kind is not None and is_slice(training.gpu_kind):
            named = "maxNodes" if training.nodes == 1 else "resources.train.nodes"
            raise ValueError(f"{named}: the slices of a GPU cannot train together; remove it")
        if self.max_nodes is not None and self.max_nodes > training.nodes and not training.gpus:
            raise ValueError("maxNodes needs GPUs in resources.train, for which spec.training.gpus asks; remove it")

    def _checked_max_gpus(self, training: Resources) -> Self:
        if self.max_gpus is None:
            return self
        if training.gpus > self.max_gpus:
            raise ValueError(
                f"maxGpus is {self.max_gpus}, but resources.train has {training.gpus} GPUs; raise or remove maxGpus"
            )
        if self.max_gpus > 1 and (training.gpu_kind is None or is_slice(training.gpu_kind)):
            raise ValueError("maxGpus needs whole GPUs in the requests or limits of resources.train; remove it")
        return self

    @model_validator(mode="after")
    def _check_queue(self) -> Self:
        if self.require_queue and not self.queue:
            raise ValueError("requireQueue needs queue: without one, nothing would admit the Jobs")
        has_topology = self.queue is not None and self.queue.topology is not None
        for annotation in names.TOPOLOGY_ANNOTATIONS:
            if has_topology and annotation in self.pod_annotations:
                raise ValueError(
                    f"podAnnotations: {annotation} conflicts with queue.topology, which sets one; remove one of the two"
                )
        return self

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

    def is_open_to(self, tenant: Tenant) -> bool:
        """Whether objects of a namespace may use the profile."""
        return self.namespaces is None or self.namespaces.include(tenant)

    def for_base(self, size: float | None) -> Self:
        """The profile with a GPU for the stages that want one for a large base.

        Args:
            size: of the base in bytes; None if it is not known yet.
        """
        kind = self.resources_for(Stage.TRAIN).gpu_kind
        if kind is None or size is None or size <= parse_bytes(self.evaluate_on_gpu_above):
            return self
        large = {stage for stage, definition in PIPELINE.items() if definition.wants_gpu_if_large}
        added = {stage: with_gpu(DEFAULT_RESOURCES[stage], kind) for stage in large - self.resources.keys()}
        return self.model_copy(update={"resources": {**self.resources, **added}})

    @property
    def most_gpus(self) -> int:
        """The largest number of GPUs on each node of a training; 0 if train gets none."""
        given = self.resources_for(Stage.TRAIN).gpus
        return given if self.max_gpus is None else self.max_gpus

    @property
    def most_nodes(self) -> int:
        """The largest number of nodes of a training."""
        return self.max_nodes or self.resources_for(Stage.TRAIN).nodes

    def split_of(self, training: TrainingSpec) -> Split | None:
        """GPUs and nodes of a training: those that it asks for, or with Auto as many of the profile's as divide its
        batch; None if the profile does not give it what it asks for."""
        own = self.resources_for(Stage.TRAIN)
        if training.gpus == AUTO:
            return largest_split(training.batch_size, own.gpus, own.nodes)
        return split(training.gpus, self.most_gpus, self.most_nodes) if own.gpus else None

    def for_training(self, training: TrainingSpec) -> Self:
        """The profile with the GPUs and nodes for train that it gives to a training; its own if it refuses it."""
        own, found = self.resources_for(Stage.TRAIN), self.split_of(training)
        if found is None or found == Split(own.gpus, own.nodes):
            return self
        return self.model_copy(update={"resources": {**self.resources, Stage.TRAIN: own.split_as(found)}})

    def queue_of(self, stage: Stage) -> Queue | None:
        """The queue in which a stage waits; None if it does not."""
        if self.queue is None:
            return None
        has_gpu = self.resources_for(stage).gpus > 0
        if self.queue.stages is None:
            return self.queue if stage is Stage.TRAIN or has_gpu else None
        is_listed = stage in self.queue.stages or (self.require_queue and has_gpu)
        return self.queue if is_listed else None

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
        raise InvalidProfiles(f"{path}: {syntax_problem(error)}") from None


def _problem(item: ErrorDetails) -> str:
    where = ".".join(map(str, item["loc"])) or "the document"
    message = "unknown field" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
    return f"{where}: {message}{suggestion(item, _ProfilesFile)}"
