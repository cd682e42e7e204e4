"""`edgetune report`: the report of a version as one HTML page, and its charts as images."""

import sys
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.objects import ObjectFolder, nearby_run, not_run
from edgetune_cli.options import DEFAULT_WORK_DIR, Profiles, WorkDir, read_object, read_profiles
from edgetune_cli.output import note, say, working
from edgetune_cli.store.commands import call_jobs, location_of_object, open_store
from edgetune_contract.request import StoreLocation
from edgetune_contract.version import VersionDocument
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.gpu_use import GpuUse
from edgetune_operator.api.status.object_status import SHORT_VERSION, LoraFineTuneStatus
from edgetune_operator.decisions.observe import read_status

if TYPE_CHECKING:
    from edgetune_jobs.reporting.run_record import GpuTime, Usage
    from edgetune_jobs.store.store import Store

_STDOUT = "-"


@dataclass(frozen=True)
class _Made:
    """A report in memory."""

    version: str
    page: bytes
    images: Mapping[str, bytes]
    """PNG by file name."""


def report(
    filename: Annotated[
        Path,
        typer.Option(
            "--filename",
            "-f",
            help="YAML file with one LoraFineTune; with its status, as kubectl prints it, for GPU time and attempts.",
            show_default=False,
        ),
    ],
    version: Annotated[
        str, typer.Option("--version", help="First digits of a version; default: that of the newest run.")
    ] = "",
    compare: Annotated[
        str, typer.Option("--compare", help="First digits of a version to compare it with.", show_default=False)
    ] = "",
    page: Annotated[
        str,
        typer.Option(
            "--page",
            "-o",
            help="File to write, or - for standard output; default: WORKDIR/reports/NAMESPACE/NAME-VERSION.html.",
            show_default=False,
        ),
    ] = "",
    png: Annotated[
        Path | None, typer.Option("--png", help="Folder to write each chart to as an image.", show_default=False)
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    workdir: WorkDir = DEFAULT_WORK_DIR,
    profiles: Profiles = None,
) -> None:
    """Write the report of a version as one HTML page: training, scores, answers, speed, time, gates, provenance.

    The page has no scripts and loads nothing. What the store lacks is listed at its end.
    """
    document, folder = read_object(filename), workdir.resolve()
    key = Key(document["metadata"].get("namespace", "default"), document["metadata"]["name"])
    location = location_of_object(filename, document, read_profiles(profiles, folder))
    status = _status(document, folder, key)
    is_elsewhere = status is None and location.uri.startswith("file://")
    hint = f"; {not_run(folder, key.name, nearby_run(filename, key))}" if is_elsewhere else ""
    with working("Reading the store"):
        made = call_jobs(
            lambda: _make(location, key.name, (version, compare), status, hint, with_images=png is not None)
        )
    if png is not None:
        _write_images(png, made.images)
    if page == _STDOUT:
        sys.stdout.buffer.write(made.page)
        return
    path = Path(page) if page else _default_path(folder, key, made.version)
    _write(path, made.page)
    say(str(path))
    if open_page and not webbrowser.open(path.resolve().as_uri()):
        note("No browser of this machine opens it")


def _make(
    location: StoreLocation,
    name: str,
    versions: tuple[str, str],
    status: LoraFineTuneStatus | None,
    hint: str,
    *,
    with_images: bool,
) -> _Made:
    """The report; `versions` are the first digits of its version and of the one to compare it with, or empty.

    Raises:
        InvalidInput: there is no such version; `hint` is the end of the message if there is none at all.
    """
    from edgetune_jobs.errors import InvalidInput

    version, compare = versions
    from edgetune_jobs.reporting.page import charts_of, render_report
    from edgetune_jobs.reporting.stored_run import read_stored_run
    from edgetune_jobs.store.store import uri_of

    store = open_store(location)
    document = _find(store, name, version, status)
    if document is None:
        place = uri_of(store, f"models/{name}")
        raise InvalidInput(f"{place} has no versions: a report needs a run that has reached publish{hint}")
    run = read_stored_run(store, document, _usage(status, document))
    compared = _find(store, name, compare, None, "--compare") if compare else None
    other = read_stored_run(store, compared) if compared else None
    images = {f"{chart.name}.png": chart.png() for chart in charts_of(run, other)} if with_images else {}
    return _Made(document.version, render_report(run, other), images)


def _find(
    store: "Store", name: str, digits: str, status: LoraFineTuneStatus | None, option: str = "--version"
) -> VersionDocument | None:
    """The version that was asked for; otherwise that of the object's newest run, or the newest one in the store.

    Returns:
        None if the store has no version.

    Raises:
        InvalidInput: there is none with these digits.
    """
    from edgetune_jobs.publishing.versions import Versions

    versions = Versions(store, name)
    if digits:
        return versions.find_any(digits, option)
    publication = status.publication if status else None
    if publication is not None and (document := versions.read(publication.version)) is not None:
        return document
    return next((each.document for each in versions.all() if each.document is not None), None)


def _status(document: Mapping[str, Any], folder: Path, key: Key) -> LoraFineTuneStatus | None:
    """The status in the given object, or else that of the last local run in this folder."""
    found = document if document.get("status") else ObjectFolder(folder / "objects").read(key)
    return read_status(found) if found else None


def _usage(status: LoraFineTuneStatus | None, document: VersionDocument) -> "Usage | None":
    """Attempts and GPU time of the stages that made a version; None if the status is about other stages."""
    from edgetune_jobs.reporting.run_record import StageUse, Usage

    if status is None:
        return None
    made = {stage: origin.digest for stage, origin in document.provenance.stages.items()}
    rows = [row for row in status.stages if row.digest and made.get(row.name) == row.digest]
    stages = [StageUse(row.name, row.attempts, row.preemptions, row.lost_steps, row.gpu_seconds) for row in rows]
    if not stages:
        return None
    gpu = status.gpu
    return Usage(stages, None if gpu is None else _gpu_time(gpu.run), None if gpu is None else _gpu_time(gpu.total))


def _gpu_time(use: GpuUse) -> "GpuTime":
    from edgetune_jobs.reporting.run_record import GpuTime

    return GpuTime(
        seconds=use.seconds,
        failed=use.failed_seconds,
        repeated=use.repeated_seconds,
        loading=use.loading_seconds + use.lost_peer_seconds,  # both are trainings outside of their steps
        waiting=use.waiting_seconds,
        estimated=use.estimated_seconds,
        cost=use.cost,
    )


def _default_path(folder: Path, key: Key, version: str) -> Path:
    return folder / "reports" / key.namespace / f"{key.name}-{version[:SHORT_VERSION]}.html"


def _write_images(folder: Path, images: Mapping[str, bytes]) -> None:
    for name, image in images.items():
        _write(folder / name, image)
    note(f"{len(images)} images in {folder}")


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        fail(f"{path}: {error.strerror or error}", ExitStatus.UNUSABLE_INPUT)
