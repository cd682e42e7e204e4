"""Options that several commands share, and what they stand for."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edgetune_cli.documents import UnusableFile, load_object
from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.cluster import local_profile
from edgetune_operator.api.profiles import InvalidProfiles, Profile, load_profiles

# This machine has files, and its own certificates of authorities.
_HERE: Mapping[str, Any] = {"allow_file_uris": True, "ca_bundle_config_map": None}
DEFAULT_WORK_DIR = Path(".edgetune")

WorkDir = Annotated[
    Path, typer.Option("--workdir", help="Folder for objects, store, logs and temporary files.", envvar="EDGETUNE_HOME")
]
Profiles = Annotated[
    Path | None,
    typer.Option(
        "--profiles", help="YAML file with profiles, to use a bucket in place of a folder.", show_default=False
    ),
]


class OutputFormat(StrEnum):
    """How a command's outcome is printed."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


class ReportFormat(StrEnum):
    """How a report is printed."""

    TEXT = "text"
    JSON = "json"


def read_object(filename: Path) -> dict[str, Any]:
    """The one valid object of a file; ends the command if there is none."""
    try:
        return load_object(filename)
    except UnusableFile as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)


def read_profiles(path: Path | None, folder: Path) -> dict[str, Profile]:
    """Profiles of a file, without one that of a run in `folder`; ends the command if the file cannot be used."""
    if path is None:
        return {"default": local_profile(folder)}
    try:
        return {name: profile.model_copy(update=_HERE) for name, profile in load_profiles(path).items()}
    except InvalidProfiles as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)
