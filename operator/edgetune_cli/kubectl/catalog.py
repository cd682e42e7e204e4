"""The catalog: what the chart shows users about the profiles, for `kubectl edgetune profiles`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles.resources import DEFAULT_RESOURCES, Resources
from edgetune_operator.api.profiles.tenants import Namespaces, Tenant

DEFAULT_PLACE = "edgetune-system/edgetune-catalog"
"""Namespace and name of the ConfigMap of a release named edgetune in the namespace edgetune-system."""


@dataclass(frozen=True)
class CatalogEntry:
    """What users may know about one profile."""

    name: str
    namespaces: Namespaces | None
    gpu: str
    """GPUs of a training, such as 1 to 8 nvidia.com/gpu (80Gi) on each of 1 to 4 nodes; empty if it gets none."""

    queue: str
    sources: str

    def is_open_to(self, tenant: Tenant) -> bool:
        """Whether objects of a namespace may use the profile."""
        return self.namespaces is None or self.namespaces.include(tenant)

    @property
    def needs_labels(self) -> bool:
        """Whether the labels of a namespace decide."""
        return self.namespaces is not None and self.namespaces.selector is not None


def read_catalog(config_map: Mapping[str, Any]) -> list[CatalogEntry]:
    """Entries of the catalog's ConfigMap, by name.

    Raises:
        ValueError: it is not a catalog that this version can read.
    """
    try:
        profiles: dict[str, Any] = json.loads(config_map["data"]["profiles.json"])
        return [_entry(name, profile) for name, profile in sorted(profiles.items())]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a catalog of profiles: {error!r}") from None


def _entry(name: str, profile: Mapping[str, Any]) -> CatalogEntry:
    namespaces, sources, queue = (profile.get(key) for key in ("namespaces", "sources", "queue"))
    given = (profile.get("resources") or {}).get(Stage.TRAIN)
    training = DEFAULT_RESOURCES[Stage.TRAIN] if given is None else Resources.model_validate(given)
    memory = f" ({profile['gpuMemory']})" if profile.get("gpuMemory") else ""
    most = profile.get("maxGpus") or training.gpus
    number = f"{training.gpus} to {most}" if most > training.gpus else f"{training.gpus}"
    nodes = profile.get("maxNodes") or training.nodes
    several = f"{training.nodes} to {nodes}" if nodes > training.nodes else f"{training.nodes}"
    on = f" on each of {several} nodes" if nodes > 1 else ""
    required = ", required" if profile.get("requireQueue") else ""
    return CatalogEntry(
        name=name,
        namespaces=None if namespaces is None else Namespaces.model_validate(namespaces),
        gpu=f"{number} {training.gpu_kind or 'by claim'}{memory}{on}" if training.gpus else "",
        queue=f"{queue['name']}{required}" if queue else "",
        sources="outside of the stores" if sources is None else ", ".join(sources) or "the namespace's own folder",
    )
