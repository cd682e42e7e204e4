"""`edgetune digest`: the revision that pins a base model or a data set."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.options import Output, Profiles, read_profiles
from edgetune_cli.output import DataFormat, note, print_data, working
from edgetune_cli.store.commands import call_jobs
from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import HUB_SCHEME, DataSource
from edgetune_contract.values.suggestions import did_you_mean
from edgetune_operator.api.profiles.profile import Profile

if TYPE_CHECKING:
    from edgetune_jobs.store.sources.source import Source

_BRANCH = "main"
_WEIGHTS = ".safetensors"
_TRAIN_FIELD = "spec.dataset.train"


def digest(
    uri: Annotated[
        str,
        typer.Argument(
            help="Base model or data set: s3://…, hf://organization/name, file:///… or a path.", show_default=False
        ),
    ],
    profiles: Profiles = None,
    profile: Annotated[str, typer.Option(help="Profile in that file whose S3 service has it.")] = "default",
    output: Output = DataFormat.TEXT,
) -> None:
    """Print the revision that pins a base model or a data set, as prepare computes it.

    Of an hf:// model, it is the commit that its branch main is at now. A folder with safetensors files is a base model,
    everything else is a data set. What it is goes to standard error, so that a script reads the revision only.
    """
    location = _location(read_profiles(profiles, Path()) if profiles else {}, profile)
    with working("Reading all files"):
        revision, what = call_jobs(lambda: revision_of(uri, location))
    if output is DataFormat.TEXT:
        note(f"{uri}: {what}")
    print_data({"uri": uri, "revision": revision, "what": what}, output, [revision])


def _location(profiles: dict[str, Profile], name: str) -> StoreLocation:
    """Where the S3 service is; only its settings are used, not the store's address."""
    if not profiles:
        return StoreLocation(uri="s3://none")
    if name not in profiles:
        others = f"the file has {', '.join(sorted(profiles))}{did_you_mean(name, profiles)}"
        fail(f"there is no profile {name!r}; {others}", ExitStatus.UNUSABLE_INPUT)
    return profiles[name].store.for_namespace("")


def revision_of(uri: str, location: StoreLocation) -> tuple[str, str]:
    """The revision that pins a base model or a data set, and what it is.

    Raises:
        StageError: there is nothing at the address, or it cannot be read.
    """
    from edgetune_jobs.errors import BASE_FIELD, InvalidInput
    from edgetune_jobs.store.access import StorageAccess
    from edgetune_jobs.store.sources.hub_source import HubSource
    from edgetune_jobs.store.sources.source import DATA_SUFFIXES

    with tempfile.TemporaryDirectory(prefix="edgetune-digest-") as scratch:
        if uri.startswith(HUB_SCHEME):
            commit = HubSource(uri, _BRANCH, BASE_FIELD, None, Path(scratch)).commit
            return commit, f"commit of the branch {_BRANCH}, for {BASE_FIELD}.revision"
        address = uri if "://" in uri else Path(uri).resolve().as_uri()
        try:
            source = DataSource(uri=address)
        except ValidationError:
            forms = "s3://bucket/key, hf://organization/name, file:///path or a path"
            raise InvalidInput(f"{uri!r} is not the address of a base model or a data set: use {forms}") from None
        access = StorageAccess(location, credentials_folder=None)
        if not address.endswith(DATA_SUFFIXES):
            model = access.open_model(address, Path(scratch))
            if any(entry.path.endswith(_WEIGHTS) for entry in model.files):
                return model.digest, f"base model of {_files(model)}, for {BASE_FIELD}.revision"
        data = access.open_data(source, _TRAIN_FIELD, Path(scratch))
        if not data.files:
            suffixes = ", ".join((_WEIGHTS, *DATA_SUFFIXES))
            raise InvalidInput(f"{uri} is neither a base model nor a data set: it has no file ending in {suffixes}")
        return data.digest, f"data set of {_files(data)}, for spec.dataset.train.revision or spec.dataset.eval.revision"


def _files(source: "Source") -> str:
    return "1 file" if len(source.files) == 1 else f"{len(source.files)} files"
