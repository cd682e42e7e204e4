"""Options that several commands share, and functions that read the files that they name."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edgetune_cli.documents import UnusableFile, load_object
from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.cluster import local_profile
from edgetune_operator.api.profiles import InvalidProfiles, Profile, load_profiles

# A local run can read files, and trusts this machine's certificate authorities.
_HERE: Mapping[str, Any] = {"allow_file_uris": True, "ca_bundle_config_map": None}
DEFAULT_WORK_DIR = Path(".edgetune")

WorkDir = Annotated[
    Path, typer.Option("--workdir", help="Folder for objects, store, logs and temporary files.", envvar="EDGETUNE_HOME")
]
Profiles = Annotated[
    Path | None,
    typer.Option(
        "--profiles", help="YAML file with profiles, to use a bucket instead of a folder.", show_default=False
    ),
]


class OutputFormat(StrEnum):
    """Output format of a run's outcome."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


class ReportFormat(StrEnum):
    """Output format of a report."""

    TEXT = "text"
    JSON = "json"


def read_object(filename: Path) -> dict[str, Any]:
    """The only object of a file, validated; exits with an error if there is none."""
    try:
        return load_object(filename)
    except UnusableFile as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)


def read_profiles(path: Path | None, folder: Path) -> dict[str, Profile]:
    """Profiles of a file, or without a file the one of local runs in `folder`; exits with an error if invalid."""
    if path is None:
        return {"default": local_profile(folder)}
    try:
        return {name: profile.model_copy(update=_HERE) for name, profile in load_profiles(path).items()}
    except InvalidProfiles as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)
