"""What the containers of a profile's stages request: resources, their bounds, and the defaults."""

import re
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from edgetune_contract.pipeline import PIPELINE
from edgetune_contract.schema import Model
from edgetune_contract.stages import Stage
from edgetune_contract.values.quantities import ByteQuantity, parse_bytes
from edgetune_operator.api.profiles.gpu_split import MOST_NODES, Split

Quantities = dict[str, str | int]
# Fractions of a GPU do not count, such as nvidia.com/gpumem, volcano.sh/gpu-memory or gpu.intel.com/memory.max.
SLICE_PATTERN = r"[^/]+/mig-.+"
"""Names of resources that are slices of a GPU."""

GPU_PATTERN = rf"[^/]+/gpu|{SLICE_PATTERN}|gpu\.intel\.com/(i915|xe)"
"""Names of resources that count as GPUs."""

CLAIMED_GPU = "resource.k8s.io/gpu"
"""Name under which the GPUs count that a container claims instead of requesting them."""
_GPU = re.compile(GPU_PATTERN)
_SLICE = re.compile(SLICE_PATTERN)


class ResourceClaim(Model):
    """A GPU that a stage claims by dynamic resource allocation (Kubernetes 1.34 and later)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    """Name in the Pod."""

    resource_claim_template_name: Annotated[str, Field(min_length=1, max_length=253)]
    """ResourceClaimTemplate in the object's namespace."""


class Resources(Model):
    """Kubernetes resources of one container."""

    requests: Quantities = {}
    limits: Quantities = {}
    claims: tuple[ResourceClaim, ...] = ()
    """Claims of GPUs, one each, instead of requests."""

    nodes: Annotated[int, Field(ge=1, le=MOST_NODES)] = 1
    """Number of Pods that share a training, each with these resources. Only for train."""

    @model_validator(mode="after")
    def _count_whole_gpus(self) -> Self:
        for name, count in (*self.requests.items(), *self.limits.items()):
            if _GPU.fullmatch(name) and not str(count).isdecimal():
                raise ValueError(f"{name} must be a whole number, is {count!r}")
        return self

    @property
    def gpus(self) -> int:
        """Number of GPUs, or of slices of one, of any vendor, that each Pod has."""
        return count_gpus(self.requests | self.limits) + len(self.claims)

    @property
    def all_gpus(self) -> int:
        """Number of GPUs of all Pods."""
        return self.gpus * self.nodes

    @property
    def is_mixed(self) -> bool:
        """Whether its GPUs are of several kinds."""
        quantities = self.requests | self.limits
        kinds = sum(count_gpus({name: count}) > 0 for name, count in quantities.items())
        return kinds + bool(self.claims) > 1

    @property
    def gpu_kind(self) -> str | None:
        """Name of the resource that its GPUs are; None without a GPU."""
        quantities = self.requests | self.limits
        return next((name for name, count in quantities.items() if count_gpus({name: count})), None)

    def split_as(self, found: Split) -> Self:
        """The same with another number of Pods, and of GPUs of each, of those that it requests or claims."""
        number = found.gpus

        def replaced(quantities: Quantities) -> Quantities:
            return {name: number if count_gpus({name: count}) else count for name, count in quantities.items()}

        counted = {"requests": replaced(self.requests), "limits": replaced(self.limits)}
        return self.model_copy(update={**counted, "claims": self.claims[:number], "nodes": found.nodes})


def count_gpus(quantities: Mapping[str, str | int]) -> int:
    """Number of GPUs, or of slices of one, among the resources that a container requests."""
    return sum(int(count) for name, count in quantities.items() if _GPU.fullmatch(name) and str(count).isdecimal())


def is_slice(name: str) -> bool:
    """Whether a resource is a slice of a GPU (MIG)."""
    return _SLICE.fullmatch(name) is not None


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


ON_SEVERAL_GPUS = (Stage.TRAIN, Stage.EVALUATE)
"""Stages that use several GPUs: train together for each step, evaluate one for each model."""

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


def with_gpu(resources: Resources, kind: str = "nvidia.com/gpu") -> Resources:
    """The same with one GPU of a kind."""
    gpu: Quantities = {kind: 1}
    return Resources(requests=resources.requests | gpu, limits=resources.limits | gpu)


# Only stages that always need a GPU; `Profile.for_base` adds those that need one for a large base.
DEFAULT_RESOURCES: Mapping[Stage, Resources] = {
    stage: with_gpu(resources) if PIPELINE[stage].wants_gpu else resources for stage, resources in _WITHOUT_GPU.items()
}
