"""The objects of a work folder: the one that a command is about, and all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.objects import ObjectFolder, nearby_run, not_run
from edgetune_cli.options import DEFAULT_WORK_DIR, meant_filename, read_object
from edgetune_contract.values.suggestions import did_you_mean
from edgetune_operator.api.names import Key
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.decisions.observe import read_status


def _complete_name(context: typer.Context, incomplete: str) -> list[str]:
    folder = Path(context.params.get("workdir") or DEFAULT_WORK_DIR)
    names = {key_of(each).name for each in ObjectFolder(folder / "objects").all()}
    return sorted(name for name in names if name.startswith(incomplete))


Name = Annotated[
    str | None,
    typer.Argument(
        help="Name of an object that was run here; default: the only one.",
        show_default=False,
        autocompletion=_complete_name,
    ),
]
Filename = Annotated[
    Path | None, typer.Option("--filename", "-f", help="YAML file of the object, instead of NAME.", show_default=False)
]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace of NAME.", show_default=False)]


@dataclass(frozen=True)
class ChosenObject:
    """An object of a work folder."""

    key: Key
    folder: Path
    """The work folder."""

    document: Mapping[str, Any]

    @property
    def status(self) -> LoraFineTuneStatus:
        """Its status, as its last run left it."""
        return read_status(self.document)

    @property
    def title(self) -> str:
        """Namespace and name."""
        return f"{self.key.namespace}/{self.key.name}"


def choose(name: str | None, filename: Path | None, namespace: str | None, workdir: Path) -> ChosenObject:
    """The object that a command is about; exits with an error if there is none, or if several are meant."""
    folder = workdir.resolve()
    if filename is not None:
        if name is not None or namespace is not None:
            fail("give either NAME or -f FILE", ExitStatus.UNUSABLE_INPUT)
        key = key_of(read_object(filename))
        name, namespace = key.name, key.namespace
    objects = {key_of(each): each for each in ObjectFolder(folder / "objects").all()}
    found = [key for key in objects if name in (None, key.name) and namespace in (None, key.namespace)]
    if len(found) == 1:
        return ChosenObject(found[0], folder, objects[found[0]])
    known = ", ".join(f"{key.namespace}/{key.name}" for key in objects) or "nothing"
    if found:
        message = f"several objects were run in {folder}: {known}; give the name of one, or its namespace with -n"
        fail(message, ExitStatus.UNUSABLE_INPUT)
    if not objects:
        nearby = nearby_run(filename, key) if filename is not None else None
        fail(f"{not_run(folder, nearby=nearby)}{meant_filename(name)}", ExitStatus.UNUSABLE_INPUT)
    meant = meant_filename(name) or did_you_mean(name, [key.name for key in objects])
    message = f"{name or 'no object'} was not run in {folder} (there: {known}){meant}"
    fail(message, ExitStatus.UNUSABLE_INPUT)
    return None


def key_of(document: Mapping[str, Any]) -> Key:
    """Namespace and name of an object."""
    metadata = document["metadata"]
    return Key(metadata.get("namespace", "default"), metadata["name"])
