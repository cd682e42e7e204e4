"""`edgetune open`: the folder of an artifact, or a log, of the last run of an object on this machine."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.logs import log_path
from edgetune_cli.options import DEFAULT_WORK_DIR, WorkDir
from edgetune_cli.output import note, say
from edgetune_cli.status_tables import local_path
from edgetune_cli.store.browse.chosen import ChosenObject, Filename, Name, Namespace, choose
from edgetune_contract.pipeline import ADAPTER, EVALUATION, MERGED, PREPARED
from edgetune_operator.api.status.edge_model import edge_artifact


class Opened(StrEnum):
    """What a run leaves behind."""

    MODEL = "model"
    """The edge model in the spec's first format."""

    ADAPTER = ADAPTER
    MERGED = MERGED
    DATA = PREPARED
    ANSWERS = EVALUATION
    LOG = "log"
    """Log of the stage that ran last."""


def open_artifact(
    name: Name = None,
    what: Annotated[Opened, typer.Option("--what", "-w", help="What to open.")] = Opened.MODEL,
    filename: Filename = None,
    namespace: Namespace = None,
    print_only: Annotated[bool, typer.Option("--print", help="Only print the path.")] = False,
    workdir: WorkDir = DEFAULT_WORK_DIR,
) -> None:
    """Open what the last run of an object left on this machine, in the desktop's own program; prints its path.

    By default the folder of the edge model: `cd $(edgetune open NAME --print)` goes there. Without a terminal, only
    prints the path.
    """
    chosen = choose(name, filename, namespace, workdir)
    path = _path(chosen, what)
    if not path.exists():
        fail(f"{path} does not exist: run {chosen.title} again", ExitStatus.UNUSABLE_INPUT)
    say(str(path))
    if not print_only and sys.stdout.isatty() and typer.launch(str(path)) != 0:
        note("No program of this desktop opens it")


def _path(chosen: ChosenObject, what: Opened) -> Path:
    if what is Opened.LOG:
        jobs = [row.job for row in sorted(chosen.status.stages, key=lambda row: row.started_at or "") if row.job]
        if not jobs:
            fail(f"{chosen.title}: no stage has run", ExitStatus.UNUSABLE_INPUT)
        return log_path(chosen.folder, chosen.key.namespace, jobs[-1])
    status = chosen.status
    if what is Opened.MODEL:
        found = edge_artifact(status.artifacts, status.candidates, status.resolved)
    else:
        found = next((artifact for artifact in status.artifacts if artifact.name == what), None)
    if found is None:
        made = ", ".join(artifact.name for artifact in chosen.status.artifacts) or "nothing"
        fail(f"{chosen.title} has no {what}: its last run made {made}", ExitStatus.UNUSABLE_INPUT)
    if not found.uri.startswith("file://"):
        publication = chosen.status.publication
        pointer = publication.pointer if publication is not None else None
        how = f"copy the published model with `edgetune pull {pointer} DIR`" if pointer else "copy it from there"
        fail(f"{found.uri} is in a bucket: {how}", ExitStatus.UNUSABLE_INPUT)
    return local_path(found.uri)
