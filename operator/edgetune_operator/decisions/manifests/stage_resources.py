"""The resources of a stage's Job: what the profile fixes, and otherwise what the stage needs, within its bounds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgetune_contract.digest import sha256_of
from edgetune_contract.pipeline import stages_of
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_contract.values.quantities import parse_bytes
from edgetune_operator.api.profiles.gpu_use import Prices
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.profiles.queue import Topology
from edgetune_operator.api.profiles.resources import Bounds, Quantities, Resources
from edgetune_operator.api.profiles.tracking import TRACKED_STAGES
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.status.stage_status import RequestedResources, StageState, StageStatus
from edgetune_operator.decisions.manifests.stage_needs import ModelShape, Need, need_of

MEMORY, STORAGE = "memory", "ephemeral-storage"
_GIB = 2**30
# Estimates are upper bounds, except for a CPU without BF16, which computes in 32 bits.
_LIMIT_FACTOR = 2
# Before prepare has measured the model, and for a model that an older release prepared.
_UNKNOWN_MEMORY = 16 * _GIB
_UNKNOWN_STORAGE = 32 * _GIB
_SETTINGS_CHARACTERS = 16
_LARGEST = 2**50
"""A stage's figures come from its Pod: a request is never larger than 1 Pi."""


@dataclass(frozen=True)
class StageResources:
    """Resources of a stage's container, and the size limit of its work volume."""

    container: Resources
    volume: str

    @property
    def memory_limit(self) -> int | None:
        """In bytes; None without a limit, or with one that is not in bytes."""
        return _bytes(self.container.limits.get(MEMORY))

    def describe(self, prices: Prices | None) -> str:
        """What is requested, such as "21Gi memory, 46Gi disk, 1 GPU for 2.50 EUR an hour".

        Memory and disk are those of each Pod, the GPUs and their price those of all.
        """
        gpus, nodes = self.container.all_gpus, self.container.nodes
        price = "" if prices is None else f" for {gpus * prices.gpu_hour:.2f} {prices.currency} an hour"
        named = {"memory": self.asked.get(MEMORY), "disk": self.asked.get(STORAGE)}
        parts = [f"{quantity} {what}" for what, quantity in named.items() if quantity is not None]
        on = f" on {nodes} nodes" if nodes > 1 else ""
        asked = [f"{gpus} GPU{'s' if gpus > 1 else ''}{on}{price}"] if gpus else [f"{nodes} nodes"] * (nodes > 1)
        return ", ".join([*parts, *asked])

    @property
    def asked(self) -> Mapping[str, str | int]:
        """What each attempt requests, by resource: without a request, the limit."""
        return {**self.container.limits, **self.container.requests}


def stage_resources(
    profile: Profile, stage: Stage, need: Need | None = None, memory_doublings: int = 0
) -> StageResources:
    """Resources of a stage.

    Args:
        profile: what its `resources` fix is not changed.
        stage: the stage.
        need: what the stage needs; None if that does not depend on the model, or is not known yet.
        memory_doublings: how often the needed memory is doubled, because it did not suffice.
    """
    own = profile.resources_for(stage)
    memory, storage = _memory(profile, own, need, memory_doublings), _storage(profile, own, need)
    requests, limits = {**own.requests, **memory.requests, **storage}, {**own.limits, **memory.limits}
    container = Resources(requests=requests, limits=limits, claims=own.claims, nodes=own.nodes)
    return StageResources(container, _volume(profile, need))


def profile_for_run(profile: Profile, prepare: StageStatus) -> Profile:
    """The profile for a run's base, whose size the row of prepare has once it is done: it decides who gets a GPU."""
    return profile.for_base(prepare.metrics.get("baseBytes") if prepare.state is StageState.SUCCEEDED else None)


def known_needs(profile: Profile, prepare: StageStatus, parameters: Parameters) -> Mapping[Stage, Need]:
    """What the stages of a run need, of those that hold the model; none before prepare has measured it.

    Args:
        profile: decides which stages have a GPU.
        prepare: row of prepare.
        parameters: of the run.
    """
    shape = ModelShape.of(prepare.metrics)
    if shape is None or prepare.state is not StageState.SUCCEEDED:
        return {}
    needs = {
        stage: need_of(stage, shape, parameters, gpus=profile.resources_for(stage).gpus)
        for stage in stages_of(parameters)
    }
    return {stage: need for stage, need in needs.items() if need is not None}


@dataclass(frozen=True)
class JobSettings:
    """What a stage's Job takes from profile and spec besides its digest: none of it changes the output."""

    all: str
    """Hash of all of it. A Job that has not started and differs is replaced, or changed if it waits in a queue."""

    fixed: str
    """Hash of what cannot be changed in a Job that waits in a queue."""

    queue: str = ""
    """LocalQueue in which the Job waits; empty without one."""

    priority: str = ""
    """WorkloadPriorityClass of the Job; empty for Kueue's default."""


# In a suspended Job, Kubernetes accepts changes of these, and Kueue keeps the Job's place.
_CHANGEABLE = {"node_selector", "tolerations", "ttl_seconds_after_finished", "queue"}


def job_settings(spec: LoraFineTuneSpec, profile: Profile, stage: Stage, resources: StageResources) -> JobSettings:
    """The settings of a stage's Job."""
    elsewhere = {"namespaces", "resources", "sizing", "evaluate_on_gpu_above", "work_volume_size", "prices", "queue"}
    elsewhere |= {"max_gpus", "max_nodes"}
    # Absent it is left out, so that waiting Jobs of an older release are not replaced.
    unknown = {name for name in ("gpu_memory", "sources", "signing", "tracking") if getattr(profile, name) is None}
    unknown |= set() if profile.require_queue else {"require_queue"}
    unknown |= set() if stage is Stage.PUBLISH else {"signing"}
    unknown |= set() if stage in TRACKED_STAGES else {"tracking"}
    unclaimed = set() if resources.container.claims else {"claims"}
    unclaimed |= set() if resources.container.nodes > 1 else {"nodes"}
    queue = profile.queue_of(stage)
    topology = topology_of(profile, stage, resources.container.nodes)
    fixed = {
        **({} if topology is None else {"topology": topology.annotation}),
        "profile": profile.model_dump(mode="json", exclude=elsewhere | unknown | _CHANGEABLE),
        "resources": resources.container.model_dump(mode="json", exclude=unclaimed),
        "workVolumeSize": resources.volume,
    }
    changeable = {
        "profile": profile.model_dump(mode="json", exclude=elsewhere | unknown)
        | {"queue": None if queue is None else queue.name},
        "retryLimit": spec.retry_limit,
        "activeDeadlineSeconds": spec.active_deadline_seconds,
    }
    # A priority is nothing without a queue, and absent it is left out, as above.
    priority = {"priority": spec.priority} if queue is not None and spec.priority is not None else {}
    return JobSettings(
        all=_hash({**fixed, **changeable, **priority}),
        fixed=_hash(fixed),
        queue="" if queue is None else queue.name,
        priority=priority.get("priority", ""),
    )


def topology_of(profile: Profile, stage: Stage, nodes: int) -> Topology | None:
    """Where the Pods of a stage on this number of nodes run; None if its queue does not say it, or there is one Pod."""
    queue = profile.queue_of(stage)
    return queue.topology if queue is not None and nodes > 1 else None


def _hash(settings: Mapping[str, object]) -> str:
    return sha256_of(settings)[:_SETTINGS_CHARACTERS]


def requested(asked: Mapping[str, str | int]) -> RequestedResources | None:
    """What a Job requests, for the status; None if it requests neither memory nor storage."""
    memory, storage = _bytes(asked.get(MEMORY)), _bytes(asked.get(STORAGE))
    return (
        None if memory is None and storage is None else RequestedResources(memory_bytes=memory, storage_bytes=storage)
    )


def resource_warnings(profile: Profile, needs: Mapping[Stage, Need]) -> tuple[str, ...]:
    """Warnings about stages that need more than the profile lets them use, known before the first of them runs."""
    warnings = (warning for stage, need in needs.items() for warning in _shortages(profile, stage, need))
    return (*warnings, *_gpu_shortage(profile, needs))


def _gpu_shortage(profile: Profile, needs: Mapping[Stage, Need]) -> Iterator[str]:
    """A warning if evaluate has train's GPU, and that is too small for it."""
    need, own = needs.get(Stage.EVALUATE), profile.resources_for(Stage.EVALUATE)
    if need is None or profile.gpu_memory is None or own.gpu_kind != profile.resources_for(Stage.TRAIN).gpu_kind:
        return
    if need.gpu_memory > parse_bytes(profile.gpu_memory):
        yield (
            f"evaluate needs about {_quantity(_whole(need.gpu_memory))} of GPU memory, because it holds models in 16 "
            f"bits, and the GPU has {profile.gpu_memory} (gpuMemory in the profile): raise evaluateOnGpuAbove in the "
            "profile or change its resources.evaluate, so that it runs on CPUs or on a larger GPU"
        )


def _shortages(profile: Profile, stage: Stage, need: Need) -> Iterator[str]:
    given = stage_resources(profile, stage, need)
    limits = {
        "memory": (need.memory, given.memory_limit, f"resources.{stage} or sizing.memory.max"),
        "disk space": (need.storage, _bytes(given.volume), "workVolumeSize or sizing.storage.max"),
    }
    for what, (needed, limit, field) in limits.items():
        if limit is not None and limit < needed:
            yield (
                f"{stage} needs about {_quantity(_whole(needed))} of {what} and gets at most {_quantity(limit)}: raise "
                f"{field} in the profile, or use a smaller base model"
            )


def _memory(profile: Profile, own: Resources, need: Need | None, doublings: int) -> Resources:
    """Request and limit of the memory; empty if the profile fixes one of them."""
    if MEMORY in own.requests or MEMORY in own.limits:
        return Resources()
    needed = min((_UNKNOWN_MEMORY if need is None else need.memory) << doublings, _LARGEST)
    bounds = profile.sizing.memory
    request, limit = _within(bounds, needed), _within(bounds, _LIMIT_FACTOR * needed)
    return Resources(requests={MEMORY: _quantity(request)}, limits={MEMORY: _quantity(limit)})


def _storage(profile: Profile, own: Resources, need: Need | None) -> Quantities:
    """Request of ephemeral storage; empty if the profile fixes it or its queue does not know it."""
    if STORAGE in own.requests or STORAGE in own.limits or need is None or not profile.sizing.request_storage:
        return {}
    needed = _within(profile.sizing.storage, min(need.storage, _LARGEST))
    most = needed if profile.work_volume_size is None else parse_bytes(profile.work_volume_size)
    return {STORAGE: _quantity(min(needed, most))}


def _volume(profile: Profile, need: Need | None) -> str:
    if profile.work_volume_size is not None:
        return profile.work_volume_size
    needed = min(_UNKNOWN_STORAGE if need is None else need.storage, _LARGEST)
    return _quantity(_within(profile.sizing.storage, _LIMIT_FACTOR * needed))


def _within(bounds: Bounds, count: int) -> int:
    """The number of bytes rounded up to whole Gi, within the bounds, which need not be whole."""
    return bounds.clamp(_whole(count))


def _whole(count: int) -> int:
    return -(-count // _GIB) * _GIB


def _quantity(count: int) -> str:
    return str(count) if count % _GIB else f"{count // _GIB}Gi"


def _bytes(quantity: str | int | None) -> int | None:
    try:
        return None if quantity is None else parse_bytes(str(quantity))
    except ValueError:  # such as 1.5Gi, which Kubernetes accepts too
        return None
