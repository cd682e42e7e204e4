"""`edgetune promote`: copy a published version from store to store, without training."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic.alias_generators import to_camel

from edgetune_cli.options import Output, Profiles, read_profiles
from edgetune_cli.output import DataFormat, note, print_data, say
from edgetune_cli.store.commands import call_jobs, location_of
from edgetune_contract.values.units import format_bytes
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.status.object_status import SHORT_VERSION

if TYPE_CHECKING:
    from edgetune_jobs.publishing.promotion import Promotion
    from edgetune_jobs.store.store import Store

_CREDENTIALS = (
    "folder with the files AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, as a Secret is mounted; default: the "
)


def promote(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="…/models/NAME in a store, as a path or s3://…", show_default=False)
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TO",
            help="Store of a namespace: s3://bucket/prefix/namespace, file://… or a path.",
            show_default=False,
        ),
    ],
    version: Annotated[
        str | None, typer.Option(help="First digits of the version; default: the current one.", show_default=False)
    ] = None,
    edge_only: Annotated[
        bool, typer.Option("--edge-only", help="Copy the edge model without the other stages of its run.")
    ] = False,
    from_credentials: Annotated[
        Path | None, typer.Option(help=f"For FROM: {_CREDENTIALS}standard AWS chain.", show_default=False)
    ] = None,
    to_credentials: Annotated[
        Path | None, typer.Option(help=f"For TO: {_CREDENTIALS}standard AWS chain.", show_default=False)
    ] = None,
    profiles: Profiles = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """Copy a published version with the stages of its run to another store, and point its latest.json at it.

    Nothing is trained: the same recipe with the other store finds its stages. Every file is compared with its SHA-256,
    and latest.json moves last. Run the command again to continue a copy that was stopped.
    """
    known = read_profiles(profiles, Path()) if profiles else {}
    show = say if output is DataFormat.TEXT else note
    credentials = (from_credentials, to_credentials)
    done = call_jobs(lambda: _promote(source, target, version, edge_only, credentials, known, show))
    print_data({to_camel(name): value for name, value in vars(done).items()}, output, _lines(done))


def _lines(done: "Promotion") -> Iterator[str]:
    for each in done.notes:
        yield f"Note: {each}"
    copied = f"{done.copied_files} files, {format_bytes(done.copied_bytes)} copied, {done.found_files} already there"
    yield f"{done.pointer} names version {done.version[:SHORT_VERSION]}: {copied}"


def _promote(
    source: str,
    target: str,
    version: str | None,
    edge_only: bool,
    credentials: tuple[Path | None, Path | None],
    profiles: Mapping[str, Profile],
    show: Callable[[str], None],
) -> "Promotion":
    from edgetune_jobs.errors import InvalidInput
    from edgetune_jobs.publishing.addresses import ModelAddress, parse_address, parse_store
    from edgetune_jobs.publishing.promotion import Stores
    from edgetune_jobs.publishing.promotion import promote as promote_version

    address = parse_address(source)
    if not isinstance(address, ModelAddress):
        raise InvalidInput(f"{source} is not a model: give …/models/NAME or one of its versions")
    if address.version is not None and version is not None:
        raise InvalidInput(f"{source} names a version already; leave out --version")
    from_store = _open(address.root, profiles, credentials[0])
    to_store = _open(parse_store(target, address.name), profiles, credentials[1])
    with tempfile.TemporaryDirectory(prefix="edgetune-promote-", ignore_cleanup_errors=True) as scratch:
        stores = Stores(from_store, to_store, address.name, Path(scratch))
        return promote_version(stores, address.version or version, edge_only, show)


def _open(root: str, profiles: Mapping[str, Profile], credentials: Path | None) -> "Store":
    from edgetune_jobs.errors import InvalidInput
    from edgetune_jobs.store.access import StorageAccess
    from edgetune_jobs.store.s3.client import find_credentials

    if credentials is not None and find_credentials(credentials) is None:
        raise InvalidInput(f"{credentials} does not have the files AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return StorageAccess(location_of(root, profiles), credentials_folder=credentials).open_store()
