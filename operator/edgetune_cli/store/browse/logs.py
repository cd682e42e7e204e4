"""`edgetune logs`: the log of a stage of a run on this machine."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.logs import LogReader, log_path
from edgetune_cli.local.objects import ObjectFolder
from edgetune_cli.options import DEFAULT_WORK_DIR, WorkDir
from edgetune_cli.output import say
from edgetune_cli.store.browse.chosen import ChosenObject, Filename, Name, Namespace, choose
from edgetune_contract.stages import Stage

_POLL_SECONDS = 0.2


def logs(
    name: Name = None,
    filename: Filename = None,
    namespace: Namespace = None,
    stage: Annotated[
        Stage | None, typer.Option(help="Stage; default: the running one, or the last one.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Keep printing new lines until the run ends.")] = False,
    workdir: WorkDir = DEFAULT_WORK_DIR,
) -> None:
    """Print the log of a stage that ran on this machine: all its attempts, also those of earlier runs.

    `kubectl edgetune logs` prints that of a stage in a cluster.
    """
    chosen = choose(name, filename, namespace, workdir)
    path = _path(chosen, stage)
    if path is None:
        what = f"stage {stage} has not run" if stage else "no stage has run"
        fail(f"{chosen.title}: {what} on this machine", ExitStatus.UNUSABLE_INPUT)
    reader = LogReader(path)
    say(reader.read(), nl=False)
    while follow:
        chosen = choose(chosen.key.name, None, chosen.key.namespace, workdir)
        is_running, newer = _is_running(chosen), _path(chosen, stage)  # asked before the last lines are read
        say(reader.read(), nl=False)
        if newer is not None and newer != path:
            path, reader = newer, LogReader(newer)
            continue
        if not is_running:
            return
        time.sleep(_POLL_SECONDS)


def _path(chosen: ChosenObject, stage: Stage | None) -> Path | None:
    """Log of a stage: the running one, or the one that started last, whose log is there."""
    rows = [row for row in chosen.status.stages if row.job and stage in (None, row.name)]
    for row in sorted(rows, key=lambda row: (row.state.has_job, row.started_at or ""), reverse=True):
        path = log_path(chosen.folder, chosen.key.namespace, row.job)
        if path.is_file():
            return path
    return None


def _is_running(chosen: ChosenObject) -> bool:
    """Whether the run that has written the status is still there."""
    lock = ObjectFolder(chosen.folder / "objects").lock_path(chosen.key)
    holder = lock.read_text(encoding="ascii", errors="replace") if lock.is_file() else ""
    if not holder.isdigit() or chosen.status.finished_at is not None:
        return False
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True
