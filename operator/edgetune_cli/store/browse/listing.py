"""`edgetune list`: objects, and the versions of their models, of a work folder or a store."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.options import DEFAULT_WORK_DIR, Output, Profiles, WorkDir, read_profiles
from edgetune_cli.output import DataFormat, print_data
from edgetune_cli.store.browse.chosen import key_of
from edgetune_cli.store.browse.places import Place, named_place, places_of, with_documents
from edgetune_cli.store.commands import call_jobs, open_store, version_rows
from edgetune_cli.store.report import aligned, state_of
from edgetune_contract.pipeline import EDGE
from edgetune_contract.values.units import format_bytes, format_share
from edgetune_operator.api.status.object_status import SHORT_VERSION
from edgetune_operator.decisions.observe import read_status

_TITLES = ("namespace", "name", "phase", "version", "published", "edge", "edge size", "state")


@dataclass(frozen=True)
class _Listed:
    """An object or a model with its versions."""

    namespace: str
    name: str
    phase: str
    """Empty without an object: only its artifacts are there."""

    versions: Sequence[dict[str, Any]]
    """Rows of `edgetune versions`, newest first."""


def list_models(
    store: Annotated[
        str | None,
        typer.Argument(
            help="Store of a namespace: a path or s3://…; default: those of the work folder.", show_default=False
        ),
    ] = None,
    workdir: WorkDir = DEFAULT_WORK_DIR,
    profiles: Profiles = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """List objects and the versions of their models, newest first: scores, sizes, and which one is current.

    Without STORE, lists what was run on this machine. An object without a version is listed too.
    """
    folder = workdir.resolve()
    known = read_profiles(profiles, folder)

    def find() -> list[_Listed]:
        places = places_of(folder, known)
        if store is not None:
            places = [with_documents(named_place(store, known if profiles else {}), places)]
        return [listed for place in places for listed in _models(place)]

    found = call_jobs(find)
    if not found and output is DataFormat.TEXT:
        fail(f"{folder if store is None else store} has no objects and no models", ExitStatus.UNUSABLE_INPUT)
    print_data([asdict(each) for each in found], output, _lines(found))


def _models(place: Place) -> Iterator[_Listed]:
    objects = {key_of(each).name: each for each in place.documents}
    if place.location is None:
        for name, document in objects.items():
            yield _Listed(place.namespace, name, read_status(document).phase.value, ())
        return
    opened = open_store(place.location)
    published = {each.key.split("/")[1] for each in opened.list("models")}
    for name in sorted(published | objects.keys()):
        document = objects.get(name, {})
        pin = str(((document.get("spec") or {}).get("publish") or {}).get("pin") or "")
        phase = read_status(document).phase.value if document else ""
        yield _Listed(place.namespace, name, phase, version_rows(opened, name, pin) if name in published else ())


def _lines(found: Sequence[_Listed]) -> Iterator[str]:
    table: list[tuple[str, ...]] = [_TITLES]
    for each in found:
        head = (each.namespace, each.name, each.phase)
        table += [(*head, *_cells(row)) for row in each.versions] or [(*head, "", "", "", "", "")]
    if not any(each.namespace for each in found):  # a store does not say whose it is
        table = [row[1:] for row in table]
    return aligned(table)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    size = row["edge"]["artifact"]["bytes"] if "edge" in row else None
    edge = format_share(row.get("scores", {}).get(EDGE))
    return row["version"][:SHORT_VERSION], row.get("createdAt", ""), edge, format_bytes(size), state_of(row)
