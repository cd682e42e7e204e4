"""The stores of a work folder: one for each namespace and profile, with the objects whose models are there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgetune_cli.local.objects import ObjectFolder
from edgetune_cli.status_tables import local_path
from edgetune_cli.store.browse.chosen import key_of
from edgetune_cli.store.commands import location_of
from edgetune_contract.request import StoreLocation
from edgetune_operator.api.profiles.profile import Profile


@dataclass
class Place:
    """The store of one namespace."""

    location: StoreLocation | None
    """None: the profiles that its objects name are not known."""

    namespace: str = ""
    """Empty for a store that was named by its address."""

    documents: list[Mapping[str, Any]] = field(default_factory=list)
    """Its objects, as their last runs left them."""


def places_of(folder: Path, profiles: Mapping[str, Profile]) -> list[Place]:
    """The stores that the objects of a work folder use, and those of its own store.

    Args:
        folder: the work folder.
        profiles: by name.
    """
    places: dict[tuple[str, str], Place] = {}
    for document in ObjectFolder(folder / "objects").all():
        namespace = key_of(document).namespace
        profile = profiles.get((document.get("spec") or {}).get("profile", "default"))
        location = profile.store.for_namespace(namespace) if profile is not None else None
        place = places.setdefault((namespace, location.uri if location else ""), Place(location, namespace))
        place.documents.append(document)
    for profile in profiles.values():
        # Objects may be gone while their artifacts stay. Nobody else's namespaces of a bucket are looked into.
        own = local_path(profile.store.uri) if profile.store.uri.startswith("file://") else None
        for each in sorted(own.iterdir()) if own is not None and own.is_dir() else ():
            location = profile.store.for_namespace(each.name)
            places.setdefault((each.name, location.uri), Place(location, each.name))
    return [places[key] for key in sorted(places)]


def named_place(store: str, profiles: Mapping[str, Profile]) -> Place:
    """The store at an address: of a namespace, as a path or s3://…

    Args:
        store: the address.
        profiles: whose settings of the S3 service apply; empty for AWS's defaults.
    """
    from edgetune_jobs.publishing.addresses import parse_store

    return Place(location_of(parse_store(store, "any"), profiles))


def with_documents(named: Place, places: Iterable[Place]) -> Place:
    """A store that was named by its address, with the objects of a work folder that use it.

    Args:
        named: the store.
        places: those of the work folder.
    """
    return replace(named, documents=[each for place in places if _is_same(named, place) for each in place.documents])


def _is_same(one: Place, other: Place) -> bool:
    """Whether two stores are one, also if the path of one has symbolic links."""
    if one.location is None or other.location is None:
        return False
    uris = one.location.uri, other.location.uri
    if all(uri.startswith("file://") for uri in uris):
        return len({local_path(uri).resolve() for uri in uris}) == 1
    return len(set(uris)) == 1
