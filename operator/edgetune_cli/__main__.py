"""`edgetune`: run, plan, validate and delete, and the commands on models in a store."""

import asyncio
import io
import os
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from edgetune_cli.device.command import pull
from edgetune_cli.documents.validate_command import validate
from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.cluster import ObjectBusy
from edgetune_cli.local.objects import ObjectFolder
from edgetune_cli.local.session import DeletionStopped, Ended, delete_object, run_object
from edgetune_cli.local.tracking import with_tracking
from edgetune_cli.options import DEFAULT_WORK_DIR, App, Output, Profiles, WorkDir, read_object, read_profiles
from edgetune_cli.output import DataFormat, SafeConsole, print_data, say, verbosity
from edgetune_cli.status_tables import ProgressView, local_path, show_outcome
from edgetune_cli.store import commands as store_commands
from edgetune_cli.store.browse.describe import describe
from edgetune_cli.store.browse.listing import list_models
from edgetune_cli.store.browse.logs import logs
from edgetune_cli.store.browse.open_artifact import open_artifact
from edgetune_cli.store.browse.prune import prune
from edgetune_cli.store.digest import digest
from edgetune_cli.store.drafting.data_check import data_app
from edgetune_cli.store.drafting.estimate import estimate
from edgetune_cli.store.drafting.init import init
from edgetune_cli.store.drafting.plan import plan
from edgetune_cli.store.drafting.policy import policy
from edgetune_cli.store.export import export
from edgetune_cli.store.promote import promote
from edgetune_cli.store.run_report import report
from edgetune_cli.store.signing_key import with_signing_key
from edgetune_operator.api.names import Key
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.api.status.edge_model import edge_artifact
from edgetune_operator.decisions.plans import Outcome

app = App(help="From one LoraFineTune object to a scored, published edge model.")

_File = Annotated[Path, typer.Option("--filename", "-f", help="YAML file with one LoraFineTune.", show_default=False)]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        say(f"edgetune {metadata.version('edgetune')}")
        raise typer.Exit


@app.callback()
def edgetune(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From one LoraFineTune object to a scored, published edge model."""


@app.command()
def run(
    filename: _File,
    workdir: WorkDir = DEFAULT_WORK_DIR,
    profiles: Profiles = None,
    output: Output = DataFormat.TEXT,
    signing_key: Annotated[
        Path | None,
        typer.Option(help="PEM file with the private key that signs what is published.", show_default=False),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(help="MLflow server that tracks the run. Default: MLFLOW_TRACKING_URI.", show_default=False),
    ] = None,
) -> None:
    """Run an object on this machine, with the same decisions, stages and status as in a cluster.

    Ctrl-C stops the running stage; training writes a checkpoint first. Run the same command again to resume.
    """
    document = read_object(filename)
    folder = workdir.resolve()
    name = parse_spec(document["spec"]).profile
    usable = with_signing_key(read_profiles(profiles, folder), name, signing_key)
    usable = with_tracking(usable, name, mlflow, os.environ)
    try:
        with ProgressView(SafeConsole(stderr=True, quiet=verbosity.quiet)) as progress:
            ended = asyncio.run(run_object(document, folder, usable, progress, signing_key))
    except ObjectBusy as error:
        fail(str(error), ExitStatus.BUSY)
    except OSError as error:
        fail(f"{error.filename or folder}: {error.strerror or error}", ExitStatus.UNUSABLE_INPUT)
    if output is DataFormat.TEXT:
        show_outcome(SafeConsole(), ended.status, ended.ran)
    else:
        print_data(_stored(folder, document), output)
    _explain(ended, is_result=output is DataFormat.TEXT)
    raise typer.Exit(_exit_status(ended))


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


app.command()(init)
app.command()(validate)
app.command()(plan)
app.command()(estimate)
app.command()(policy)
app.command()(digest)
app.command("list")(list_models)
app.command()(describe)
app.command()(logs)
app.command("open")(open_artifact)
app.command()(prune)
app.command()(promote)
app.command()(export)
app.command()(store_commands.versions)
app.command()(store_commands.verify)
app.command()(store_commands.generate)
app.command()(pull)
app.command()(report)
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point of the `edgetune` command."""
    # As Ctrl-C, so that temporary folders are removed; the first process of a container ignores it otherwise.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal or a file of another encoding than UTF-8
    try:
        app(prog_name="edgetune")
    except OSError as error:  # what reads and writes files names them; this is a full disk behind standard output
        print(f"edgetune: {error.filename or 'standard output'}: {error.strerror or error}", file=sys.stderr)
        _end_at_once(ExitStatus.UNUSABLE_INPUT)
    except SystemExit as ended:
        if ended.code != ExitStatus.STOPPED:
            raise
        sys.stdout.flush()
        # All is closed. Python would wait for the threads that transfer a file, which may take minutes.
        _end_at_once(ExitStatus.STOPPED)


def _end_at_once(status: ExitStatus) -> NoReturn:
    sys.stderr.flush()
    os._exit(status)


def _stored(folder: Path, document: dict[str, Any]) -> dict[str, Any] | None:
    metadata = document["metadata"]
    return ObjectFolder(folder / "objects").read(Key(metadata.get("namespace", "default"), metadata["name"]))


def _explain(ended: Ended, *, is_result: bool) -> None:
    """Say how the run ended: beside the tables, or beside data on standard output as a note."""
    console = SafeConsole(stderr=not is_result, quiet=verbosity.quiet and not is_result)
    problems = SafeConsole(stderr=True)
    if ended.stopped:
        problems.print("\nStopped. Finished work is kept: run the same command again to resume.", highlight=False)
    elif ended.outcome is Outcome.PUBLISHED:
        pinned = ended.status.publication is not None and ended.status.publication.pinned
        if not pinned and all(row.cached for row in ended.status.stages if row.name in ended.ran):
            console.print("\nAll stages were already done: nothing ran again.", highlight=False)
        edge = edge_artifact(ended.status.artifacts, ended.status.candidates, ended.status.resolved)
        console.print(f"\n{'Pinned' if pinned else 'Published'}. {ended.message}", highlight=False)
        if edge is not None and not pinned:
            place = local_path(edge.uri) if edge.uri.startswith("file://") else edge.uri
            console.print(f"Edge model: {place}", highlight=False)
    else:
        problems.print(f"\n{ended.outcome.value}: {ended.message}", style="red", markup=False, highlight=False)
        if ended.outcome is Outcome.FAILED and ended.log is not None:
            problems.print(f"Log: {ended.log}", highlight=False)


def _exit_status(ended: Ended) -> ExitStatus:
    if ended.stopped:
        return ExitStatus.STOPPED
    return ExitStatus.OK if ended.outcome is Outcome.PUBLISHED else ExitStatus.NEGATIVE


if __name__ == "__main__":
    main()
