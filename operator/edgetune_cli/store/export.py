"""`edgetune export`: write a published model to a folder, to a tar archive, or to an OCI registry."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer

from edgetune_cli.options import Output, Profiles, read_profiles
from edgetune_cli.output import DataFormat, print_data
from edgetune_cli.store.commands import call_jobs, location_of
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.values.units import format_bytes
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.status.object_status import SHORT_VERSION

if TYPE_CHECKING:
    from edgetune_jobs.publishing.export.bundle import Bundle

_OTHER_ARCHIVES = (".gz", ".tgz", ".zip", ".zst", ".xz", ".bz2")


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="…/models/NAME in a store, its latest.json or a version, as a path or s3://…; or a folder of edgetune "
            "pull.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A new folder, a new file that ends in .tar, or oci://REGISTRY/REPOSITORY:TAG.",
            show_default=False,
        ),
    ],
    edge_format: Annotated[
        EdgeFormat | None,
        typer.Option("--format", help="Format of the version's edge model; default: the first.", show_default=False),
    ] = None,
    profiles: Profiles = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """Write an edge model with its card for other tools, without what Edgetune needs to run it again.

    A folder is as from_pretrained, llama.cpp, Ollama and the Hugging Face hub read it. An archive has the same bytes
    whenever it is written. A registry gets the layout of CNCF ModelPack, with the credentials of `docker login`. Every
    file is compared with its SHA-256, and nothing is visible before the last one is there. The signature of a signed
    version is copied as model.sig; export does not check it: `edgetune verify --verify-key` does.
    """
    known = read_profiles(profiles, Path()) if profiles else {}
    bundle, done = call_jobs(lambda: _export(source, target, edge_format, known))
    document, name = bundle.document, bundle.edge.artifact.name
    is_signed = bundle.signature is not None
    line = (
        f"{done} has {document.model}, version {document.version[:SHORT_VERSION]}, {name}: "
        f"{len(bundle.entries)} files, {format_bytes(bundle.bytes)}{', signed' if is_signed else ''}"
    )
    found = {
        "target": done,
        "model": document.model,
        "version": document.version,
        "artifact": name,
        "signed": is_signed,
    }
    print_data({**found, "files": len(bundle.entries), "bytes": bundle.bytes}, output, [line])


def _export(
    source: str, target: str, edge_format: EdgeFormat | None, profiles: Mapping[str, Profile]
) -> "tuple[Bundle, str]":
    from edgetune_jobs.errors import InvalidInput
    from edgetune_jobs.publishing.export.local import export_folder, export_tar
    from edgetune_jobs.publishing.export.registry import SCHEME, export_to_registry, parse_reference

    reference = parse_reference(target) if target.startswith(SCHEME) else None
    if reference is None and target.endswith(_OTHER_ARCHIVES):
        raise InvalidInput(f"{target}: an export is a folder or a .tar, whose files hardly compress; name one of them")
    bundle = _bundle(source, edge_format, profiles)
    if reference is not None:
        return bundle, export_to_registry(bundle, reference)
    path = _local_path(target)
    (export_tar if path.suffix == ".tar" else export_folder)(bundle, path)
    return bundle, str(path)


def _bundle(source: str, edge_format: EdgeFormat | None, profiles: Mapping[str, Profile]) -> "Bundle":
    from edgetune_jobs.errors import InvalidInput
    from edgetune_jobs.publishing.addresses import ModelAddress, parse_address
    from edgetune_jobs.publishing.export.bundle import bundle_of_device, bundle_of_store, is_device_folder
    from edgetune_jobs.store.access import StorageAccess

    if "://" not in source and is_device_folder(Path(source)):
        return bundle_of_device(Path(source), edge_format)
    address = parse_address(source)
    if not isinstance(address, ModelAddress):
        raise InvalidInput(f"{source} is not a model: give …/models/NAME or one of its versions, or a pulled folder")
    store = StorageAccess(location_of(address.root, profiles), credentials_folder=None).open_store()
    return bundle_of_store(store, address, edge_format)


def _local_path(target: str) -> Path:
    from edgetune_jobs.errors import InvalidInput

    if target.startswith("file://"):
        return Path(unquote(urlsplit(target).path))
    if not target or "://" in target:
        raise InvalidInput(f"{target!r} is not a target: give a folder, a file that ends in .tar, or oci://…")
    return Path(target)
