"""`edgetune`: run, plan, validate and generate."""

import asyncio
import json
import sys
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console

from edgetune_cli.documents import UnusableFile, load_object
from edgetune_cli.local import ObjectBusy, ObjectFolder, local_profile
from edgetune_cli.preview import preview
from edgetune_cli.session import Ended, run_object
from edgetune_cli.show import ProgressView, local_path, show_outcome
from edgetune_operator.observe import read_status
from edgetune_operator.plan import Outcome
from edgetune_operator.profiles import InvalidProfiles, Profile, load_profiles
from edgetune_operator.reconcile import Key
from edgetune_operator.spec_check import parse_spec


class ExitStatus(IntEnum):
    """How the command line ends."""

    OK = 0
    NOT_PUBLISHED = 1
    UNUSABLE_INPUT = 2
    BUSY = 3
    STOPPED = 130


class OutputFormat(StrEnum):
    """How the outcome of a run is printed."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


app = typer.Typer(
    help="From one LoraFineTune object to a scored INT8 edge model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_File = Annotated[Path, typer.Option("--filename", "-f", help="YAML file with one LoraFineTune.", show_default=False)]
_WorkDir = Annotated[
    Path, typer.Option("--workdir", help="Folder for objects, store, logs and temporary files.", envvar="EDGETUNE_HOME")
]
_Profiles = Annotated[
    Path | None,
    typer.Option(
        "--profiles", help="YAML file with profiles, to use a bucket in place of a folder.", show_default=False
    ),
]
_DEFAULT_WORK_DIR = Path(".edgetune")


@app.command()
def run(
    filename: _File,
    workdir: _WorkDir = _DEFAULT_WORK_DIR,
    profiles: _Profiles = None,
    output: Annotated[
        OutputFormat, typer.Option("--output", "-o", help="How to print the outcome.")
    ] = OutputFormat.TABLE,
) -> None:
    """Run an object on this machine: the same decisions, stages and status as in a cluster.

    Ctrl-C stops the running stage; a training writes a checkpoint first. The same command again goes on from there.
    """
    document = _load(filename)
    folder = workdir.resolve()
    usable = _profiles(profiles, folder)
    console = Console(stderr=output is not OutputFormat.TABLE, soft_wrap=True, markup=False)
    try:
        with ProgressView(console) as progress:
            ended = asyncio.run(run_object(document, folder, usable, progress))
    except ObjectBusy as error:
        _fail(str(error), ExitStatus.BUSY)
    except OSError as error:
        _fail(f"{error.filename or folder}: {error.strerror or error}", ExitStatus.UNUSABLE_INPUT)
    if output is OutputFormat.TABLE:
        show_outcome(console, ended.status, ended.ran)
    else:
        _print_object(_stored(folder, document), output)
    _explain(ended, console)
    raise typer.Exit(_exit_status(ended))


@app.command()
def plan(filename: _File, workdir: _WorkDir = _DEFAULT_WORK_DIR) -> None:
    """Print which stages a run would do, and why, without running anything."""
    document = _load(filename)
    stored = _stored(workdir.resolve(), document) or {}
    status = read_status(stored)
    name = document["metadata"]["name"]
    for line in preview(name, parse_spec(document["spec"]), status, stored.get("spec")):
        typer.echo(f"{line.stage.value:9} {line.action:6} {line.why}")


@app.command()
def validate(filename: _File) -> None:
    """Check an object's spec without touching any data; every problem comes with its path."""
    document = _load(filename)
    typer.echo(f"{filename}: {document['kind']} {document['metadata']['name']} is valid")


@app.command()
def generate(
    model: Annotated[str, typer.Option("--model", "-m", help="Folder of the edge model.", show_default=False)],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The instruction; '-' reads standard input.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.", min=1)] = 256,
) -> None:
    """Talk to an edge model: wraps the prompt as in training and answers greedily."""
    from edgetune_jobs.errors import StageError
    from edgetune_jobs.generate import stream

    folder = local_path(model) if model.startswith("file://") else Path(model)
    text = sys.stdin.read() if prompt == "-" else prompt
    try:
        for piece in stream(folder, text, max_new_tokens):
            typer.echo(piece, nl=False)
    except StageError as error:
        _fail(str(error), ExitStatus.UNUSABLE_INPUT)
    typer.echo()


def main() -> None:
    """Entry point of the `edgetune` command."""
    app()


def _load(filename: Path) -> dict[str, Any]:
    try:
        return load_object(filename)
    except UnusableFile as error:
        _fail(str(error), ExitStatus.UNUSABLE_INPUT)


def _profiles(path: Path | None, folder: Path) -> dict[str, Profile]:
    if path is None:
        return {"default": local_profile(folder)}
    try:
        return {
            name: profile.model_copy(update={"allow_file_uris": True}) for name, profile in load_profiles(path).items()
        }
    except InvalidProfiles as error:
        _fail(str(error), ExitStatus.UNUSABLE_INPUT)


def _stored(folder: Path, document: dict[str, Any]) -> dict[str, Any] | None:
    metadata = document["metadata"]
    return ObjectFolder(folder / "objects").read(Key(metadata.get("namespace", "default"), metadata["name"]))


def _print_object(document: dict[str, Any] | None, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)


def _explain(ended: Ended, console: Console) -> None:
    if ended.stopped:
        console.print("\nStopped. What was done is kept; the same command again goes on from there.", highlight=False)
    elif ended.outcome is Outcome.PUBLISHED:
        if not ended.ran or all(row.cached for row in ended.status.stages if row.name in ended.ran):
            console.print("\nAll stages were done already: nothing had to run again.", highlight=False)
        edge = next((a for a in ended.status.artifacts if a.name.startswith("edge")), None)
        console.print(f"\nPublished. {ended.message}", highlight=False)
        if edge is not None:
            place = local_path(edge.uri) if edge.uri.startswith("file://") else edge.uri
            console.print(f"Edge model: {place}", highlight=False)
    else:
        console.print(f"\n{ended.outcome.value}: {ended.message}", style="red", markup=False, highlight=False)
        if ended.outcome is Outcome.FAILED and ended.log is not None:
            console.print(f"Log: {ended.log}", highlight=False)


def _exit_status(ended: Ended) -> ExitStatus:
    if ended.stopped:
        return ExitStatus.STOPPED
    return ExitStatus.OK if ended.outcome is Outcome.PUBLISHED else ExitStatus.NOT_PUBLISHED


def _fail(message: str, status: ExitStatus) -> NoReturn:
    typer.secho(message, fg=typer.colors.RED, err=True)
    raise typer.Exit(status)


if __name__ == "__main__":
    main()
