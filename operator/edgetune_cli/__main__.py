"""`edgetune`: run, plan, validate and delete, and the commands on models in a store."""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.cluster import ObjectBusy
from edgetune_cli.local.objects import ObjectFolder
from edgetune_cli.local.plan_command import plan_object
from edgetune_cli.local.session import DeletionStopped, Ended, delete_object, run_object
from edgetune_cli.options import DEFAULT_WORK_DIR, OutputFormat, Profiles, WorkDir, read_object, read_profiles
from edgetune_cli.output import SafeConsole, say
from edgetune_cli.status_tables import ProgressView, local_path, show_outcome
from edgetune_cli.store import commands as store_commands
from edgetune_cli.store.estimate import estimate
from edgetune_cli.store.view import open_store_view
from edgetune_contract.pipeline import is_edge
from edgetune_operator.api.names import Key
from edgetune_operator.api.yaml_files import yaml_text
from edgetune_operator.decisions.state_machine import Outcome

app = typer.Typer(
    help="From one LoraFineTune object to a scored INT8 edge model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_File = Annotated[Path, typer.Option("--filename", "-f", help="YAML file with one LoraFineTune.", show_default=False)]


@app.command()
def run(
    filename: _File,
    workdir: WorkDir = DEFAULT_WORK_DIR,
    profiles: Profiles = None,
    output: Annotated[
        OutputFormat, typer.Option("--output", "-o", help="Output format of the outcome.")
    ] = OutputFormat.TABLE,
) -> None:
    """Run an object on this machine, with the same decisions, stages and status as in a cluster.

    Ctrl-C stops the running stage; training writes a checkpoint first. Run the same command again to resume.
    """
    document = read_object(filename)
    folder = workdir.resolve()
    usable = read_profiles(profiles, folder)
    console = SafeConsole(stderr=output is not OutputFormat.TABLE)
    try:
        with ProgressView(console) as progress:
            ended = asyncio.run(run_object(document, folder, usable, progress))
    except ObjectBusy as error:
        fail(str(error), ExitStatus.BUSY)
    except OSError as error:
        fail(f"{error.filename or folder}: {error.strerror or error}", ExitStatus.UNUSABLE_INPUT)
    if output is OutputFormat.TABLE:
        show_outcome(console, ended.status, ended.ran)
    else:
        _print_object(_stored(folder, document), output)
    _explain(ended, console)
    raise typer.Exit(_exit_status(ended))


@app.command()
def plan(
    filename: _File,
    workdir: WorkDir = DEFAULT_WORK_DIR,
    profiles: Profiles = None,
    store: Annotated[
        bool, typer.Option("--store", help="Also look in the store for the output of other runs.")
    ] = False,
) -> None:
    """Print which stages a run would execute, and why, without running anything.

    It decides as a run would, from the last run's status and, with --store, from the store. It assumes that the inputs
    are unchanged and that every stage succeeds.
    """
    document = read_object(filename)
    folder = workdir.resolve()
    usable = read_profiles(profiles, folder)
    try:
        found = store_commands.call_jobs(
            lambda: plan_object(document, folder, usable, open_store_view if store else None)
        )
    except OSError as error:
        fail(f"{error.filename or folder}: {error.strerror or error}", ExitStatus.UNUSABLE_INPUT)
    for line in found.stages:
        requests = f" (requests {line.requests})" if line.requests else ""
        say(f"{line.stage.value:9} {line.action.value:6} {line.why}{requests}")
    for warning in found.warnings:
        say(f"Warning: {warning}")
    if found.outcome is not Outcome.PUBLISHED:
        say(f"\n{found.outcome.value}: {found.message}")


@app.command()
def validate(filename: _File) -> None:
    """Check an object's spec without reading any data, and print every problem with its path."""
    document = read_object(filename)
    say(f"{filename}: {document['kind']} {document['metadata']['name']} is valid")


@app.command()
def delete(filename: _File, workdir: WorkDir = DEFAULT_WORK_DIR, profiles: Profiles = None) -> None:
    """Delete an object of this machine, and its artifacts if spec.deletionPolicy is Delete."""
    document = read_object(filename)
    folder = workdir.resolve()
    name = document["metadata"]["name"]
    try:
        final_event = asyncio.run(delete_object(document, folder, read_profiles(profiles, folder)))
    except ObjectBusy as error:
        fail(str(error), ExitStatus.BUSY)
    except OSError as error:
        fail(f"{error.filename or folder}: {error.strerror or error}", ExitStatus.UNUSABLE_INPUT)
    except DeletionStopped:
        fail(f"{name}: stopped before all artifacts were removed; run the command again", ExitStatus.STOPPED)
    if final_event is None:
        say(f"{name} is deleted; its artifacts stay in the store (spec.deletionPolicy is Retain)")
    elif final_event.type == "Normal":
        say(f"{name} is deleted: {final_event.message}")
    else:
        fail(f"{name} is deleted, but {final_event.message}", ExitStatus.NEGATIVE)


app.command()(estimate)
app.command()(store_commands.versions)
app.command()(store_commands.verify)
app.command()(store_commands.generate)


def main() -> None:
    """Entry point of the `edgetune` command."""
    app()


def _stored(folder: Path, document: dict[str, Any]) -> dict[str, Any] | None:
    metadata = document["metadata"]
    return ObjectFolder(folder / "objects").read(Key(metadata.get("namespace", "default"), metadata["name"]))


def _print_object(document: dict[str, Any] | None, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        say(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        say(yaml_text(document), nl=False)


def _explain(ended: Ended, console: SafeConsole) -> None:
    if ended.stopped:
        console.print("\nStopped. Finished work is kept: run the same command again to resume.", highlight=False)
    elif ended.outcome is Outcome.PUBLISHED:
        pinned = ended.status.publication is not None and ended.status.publication.pinned
        if not pinned and all(row.cached for row in ended.status.stages if row.name in ended.ran):
            console.print("\nAll stages were already done: nothing ran again.", highlight=False)
        edge = next((a for a in ended.status.artifacts if is_edge(a.name)), None)
        console.print(f"\n{'Pinned' if pinned else 'Published'}. {ended.message}", highlight=False)
        if edge is not None and not pinned:
            place = local_path(edge.uri) if edge.uri.startswith("file://") else edge.uri
            console.print(f"Edge model: {place}", highlight=False)
    else:
        console.print(f"\n{ended.outcome.value}: {ended.message}", style="red", markup=False, highlight=False)
        if ended.outcome is Outcome.FAILED and ended.log is not None:
            console.print(f"Log: {ended.log}", highlight=False)


def _exit_status(ended: Ended) -> ExitStatus:
    if ended.stopped:
        return ExitStatus.STOPPED
    return ExitStatus.OK if ended.outcome is Outcome.PUBLISHED else ExitStatus.NEGATIVE


if __name__ == "__main__":
    main()
