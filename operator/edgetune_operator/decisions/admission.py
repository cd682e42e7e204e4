"""Admission: whether an object may run with the profile that it names."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgetune_contract.access.allowed_sources import refused_sources, source_uris
from edgetune_contract.stages import Stage
from edgetune_contract.training import AUTO
from edgetune_contract.values.suggestions import did_you_mean
from edgetune_operator.api.profiles.gpu_split import nearest_numbers
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.profiles.tenants import Tenant
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.spec_check import InvalidSpec


@dataclass(frozen=True)
class Refusal:
    """Why an object may not run."""

    reason: Reason
    message: str


def find_profile(name: str, profiles: Mapping[str, Profile], tenant: Tenant) -> Profile | Refusal:
    """The profile of a name, or why a namespace may not use it; the message lists those that it may use."""
    profile = profiles.get(name)
    if profile is not None and profile.is_open_to(tenant):
        return profile
    usable = sorted(name for name, each in profiles.items() if each.is_open_to(tenant))
    others = f"may use {', '.join(usable) or 'none: ask the platform team'}"
    if profile is None:
        message = f"spec.profile: profile {name!r} not found; namespace {tenant.name} {others}"
        return Refusal(Reason.PROFILE_NOT_FOUND, f"{message}{did_you_mean(name, usable)}")
    message = f"spec.profile: namespace {tenant.name} may not use profile {name!r}; it {others}"
    return Refusal(Reason.PROFILE_NOT_ALLOWED, message)


def needs_labels(profiles: Mapping[str, Profile]) -> bool:
    """Whether the labels of namespaces decide who may use a profile."""
    return any(each.namespaces is not None and each.namespaces.selector is not None for each in profiles.values())


def admit(spec: LoraFineTuneSpec | InvalidSpec, profiles: Mapping[str, Profile], tenant: Tenant) -> Profile | Refusal:
    """The profile that an object runs with, with the GPUs that its training asks for, or why it may not run.

    Args:
        spec: the parsed spec, or why it cannot be parsed.
        profiles: all profiles by name: no store of any of them is open to other namespaces.
        tenant: the object's namespace.
    """
    if isinstance(spec, InvalidSpec):
        return Refusal(Reason.INVALID_SPEC, str(spec))
    profile = find_profile(spec.profile, profiles, tenant)
    if isinstance(profile, Refusal):
        return profile
    uris = source_uris(spec.parameters)
    paths = [path for path, uri in uris.items() if uri.startswith("file://")]
    if paths and not profile.allow_file_uris:
        return Refusal(Reason.INVALID_SPEC, f"{', '.join(paths)}: file:// works only in local runs; use s3://")
    if (refused := _refused_priority(spec, profile) or _refused_gpus(spec, profile)) is not None:
        return Refusal(Reason.INVALID_SPEC, refused)
    stores = [each.store.uri for each in profiles.values()]
    problems = refused_sources(spec.parameters, tenant.name, stores, profile.sources)
    if problems:
        return Refusal(Reason.SOURCE_NOT_ALLOWED, "; ".join(problems))
    return profile.for_training(spec.training)


def _refused_gpus(spec: LoraFineTuneSpec, profile: Profile) -> str | None:
    """Why the profile does not give a training as many GPUs; None if it does."""
    asked, each, nodes = spec.training.gpus, profile.most_gpus, profile.most_nodes
    if asked == AUTO or profile.split_of(spec.training) is not None:
        return None
    named = f"spec.training.gpus is {asked}, but profile {spec.profile!r}"
    if not profile.resources_for(Stage.TRAIN).gpus:
        return f"{named} gives train no GPU; remove it"
    if nodes == 1:
        return f"{named} allows at most {each} (maxGpus or resources.train); use {each} or less, or Auto"
    nearest = nearest_numbers(asked, spec.training.batch_size, each, nodes)
    return (
        f"{named} allows at most {each} on each of {nodes} nodes (maxGpus, maxNodes or resources.train), equally many "
        f"on each; use {nearest}, or Auto"
    )


def _refused_priority(spec: LoraFineTuneSpec, profile: Profile) -> str | None:
    """Why the profile does not offer the priority; None if it does."""
    if spec.priority is None:
        return None
    named = f"spec.priority: profile {spec.profile!r}"
    if profile.queue is None:
        return f"{named} has no queue, and a priority is that of a queue; remove it"
    offered = profile.queue.priorities
    if not offered:
        return f"{named} has no priorities (queue.priorities); remove it"
    if spec.priority in offered:
        return None
    meant = did_you_mean(spec.priority, offered)
    return f"{named} does not offer {spec.priority!r}; use one of {', '.join(offered)}{meant}"
