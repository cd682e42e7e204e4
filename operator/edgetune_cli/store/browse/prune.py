"""`edgetune prune`: what a store needs no longer, with its size; then removes it."""

import asyncio
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetune_cli.durations import parse_duration
from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.cluster import LocalCluster, ObjectBusy
from edgetune_cli.options import DEFAULT_WORK_DIR, Output, Profiles, WorkDir, read_profiles
from edgetune_cli.output import DataFormat, print_data, say, working
from edgetune_cli.store.browse.chosen import key_of
from edgetune_cli.store.browse.places import Place, named_place, places_of, with_documents
from edgetune_cli.store.commands import call_jobs, open_store
from edgetune_cli.store.report import aligned
from edgetune_contract.values.units import format_bytes
from edgetune_operator.api.status.object_status import SHORT_VERSION
from edgetune_operator.decisions.observe import read_status

if TYPE_CHECKING:
    from edgetune_jobs.runtime.pruning import Kept, Pruned, PrunePlan
    from edgetune_jobs.store.store import Store

# Runs of other machines and of clusters use a bucket, those of other work folders a folder: their state is not known.
_AGE_IF_UNKNOWN = "7d"
_CACHES = ("models", "work")
"""Folders of a work folder with copies: models that `edgetune generate` has downloaded, and what a killed run left."""


@dataclass(frozen=True)
class _PlacePlan:
    """What would be removed from one store."""

    uri: str
    store: "Store"
    plan: "PrunePlan"


def prune(
    store: Annotated[
        str | None,
        typer.Argument(
            help="Store of a namespace: a path or s3://…; default: those of the work folder.", show_default=False
        ),
    ] = None,
    keep: Annotated[
        int, typer.Option(help="Published versions of each model to keep, besides current and pinned ones.", min=1)
    ] = 3,
    older_than: Annotated[
        str | None,
        typer.Option(
            help=f"Keep what was used later, such as 12h or 7d; default: {_AGE_IF_UNKNOWN} in a bucket, and in a store "
            "that no object of the work folder uses; otherwise 0s.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed; remove nothing.")] = False,
    workdir: WorkDir = DEFAULT_WORK_DIR,
    profiles: Profiles = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """Print what no object and no kept version needs any more, with its size, and remove it after a confirmation.

    Kept are the current version of each model, pinned ones, the newest published ones, what the last run of each object
    made, and the stages of all these. A removed output is made again if a run needs it. Objects in use are refused.
    """
    folder = workdir.resolve()
    known = read_profiles(profiles, folder)

    def find() -> list[Place]:
        places = places_of(folder, known)
        return places if store is None else [with_documents(named_place(store, known if profiles else {}), places)]

    places = call_jobs(find)
    caches = [folder / name for name in _CACHES if store is None and _size(folder / name)]
    try:
        removed = asyncio.run(_prune(places, caches, folder, _Options(keep, older_than, yes, dry_run, output)))
    except ObjectBusy as error:
        fail(str(error), ExitStatus.BUSY)
    if removed is not None and output is DataFormat.TEXT:
        say(f"Removed {format_bytes(removed)}")


@dataclass(frozen=True)
class _Options:
    keep: int
    older_than: str | None
    yes: bool
    dry_run: bool
    output: DataFormat


async def _prune(places: Sequence[Place], caches: Sequence[Path], folder: Path, options: _Options) -> int | None:
    """Removed bytes; None if nothing was removed. Objects of the work folder are locked meanwhile."""
    async with AsyncExitStack() as locks:
        for key in {key_of(document) for place in places for document in place.documents}:
            await locks.enter_async_context(LocalCluster(folder, key))
        with working("Reading the stores"):
            plans = call_jobs(lambda: [_plan(place, options) for place in places if place.location is not None])
        if options.output is not DataFormat.TEXT:
            folders = [(cache, _size(cache)) for cache in caches]
            done = _remove(plans, caches) if options.yes and not options.dry_run else None
            print_data(_json(plans, folders, done), options.output)
            return None if done is None else done.bytes
        for line in _lines(plans, caches):
            say(line)
        is_empty = all(each.plan.is_empty for each in plans) and not caches
        if is_empty or options.dry_run or not _is_confirmed(options):
            return None
        return _remove(plans, caches).bytes


def _is_confirmed(options: _Options) -> bool:
    if options.yes:
        return True
    if not sys.stdin.isatty():
        fail("Nothing is removed without a terminal to ask on: add --yes, or --dry-run", ExitStatus.UNUSABLE_INPUT)
    return typer.confirm("Remove all this?", err=True)


def _plan(place: Place, options: _Options) -> _PlacePlan:
    from edgetune_jobs.runtime.pruning import plan_pruning

    assert place.location is not None  # noqa: S101 - the caller has chosen such places
    uri = place.location.uri
    opened = open_store(place.location)
    is_known = bool(place.documents) and not uri.startswith("s3://")
    age = options.older_than or ("0s" if is_known else _AGE_IF_UNKNOWN)
    return _PlacePlan(uri, opened, plan_pruning(opened, _kept(place, options.keep, age)))


def _kept(place: Place, keep: int, age: str) -> "Kept":
    from edgetune_jobs.runtime.pruning import Kept

    seconds = parse_duration(age)
    if seconds is None:
        fail(f"--older-than {age}: give a time such as 12h or 7d", ExitStatus.UNUSABLE_INPUT)
    pins, digests = {}, set[str]()
    for document in place.documents:
        status = read_status(document)
        digests |= {row.digest for row in status.stages}
        if status.resolved is not None:
            digests.add(status.resolved.base)
        if pin := str(((document.get("spec") or {}).get("publish") or {}).get("pin") or ""):
            pins[key_of(document).name] = pin
    return Kept(datetime.now(UTC) - timedelta(seconds=seconds), keep, pins, digests)


@dataclass(frozen=True)
class _Removed:
    """What was removed: a plan's items that are used meanwhile stay."""

    stores: "Sequence[Pruned]"
    """For each plan."""

    folder_bytes: int

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.stores) + self.folder_bytes


def _remove(plans: Sequence[_PlacePlan], caches: Sequence[Path]) -> _Removed:
    from edgetune_jobs.runtime.pruning import prune as prune_store

    with working("Removing"):
        stores = call_jobs(lambda: [prune_store(each.store, each.plan) for each in plans])
        before = sum(map(_size, caches))
        for cache in caches:
            shutil.rmtree(cache, ignore_errors=True)
    return _Removed(stores, before - sum(map(_size, caches)))


def _lines(plans: Sequence[_PlacePlan], caches: Sequence[Path]) -> Iterator[str]:
    table: list[tuple[str, ...]] = []
    for each in plans:
        table += [(row["what"], row["name"], format_bytes(row["bytes"]), row["why"]) for row in _rows(each.plan)]
    table += [("folder", str(cache), format_bytes(_size(cache)), "copies") for cache in caches]
    if table:
        yield from aligned([("what", "name", "size", "why"), *table], right=(2,))
    total = sum(each.plan.bytes for each in plans) + sum(map(_size, caches))
    yield f"{format_bytes(total)} can be removed" if table else "Nothing can be removed"
    for note in (note for each in plans for note in each.plan.notes):
        yield f"Note: {note}"


def _rows(plan: "PrunePlan", pruned: "Pruned | None" = None) -> Iterator[dict[str, Any]]:
    """What was planned, each with whether it was removed."""
    items = () if pruned is None else pruned.items
    for version in plan.versions:
        name = f"{version.model} {version.version[:SHORT_VERSION]}"
        row = {"what": "version", "name": name, "version": version.version, "bytes": 0, "why": version.why}
        yield {**row, "removed": version in items}
    for output in plan.outputs:
        users = ", ".join(output.models) or "no object"
        name = f"{output.use.stage} {output.use.digest[:SHORT_VERSION]}"
        yield {
            "what": "output",
            "name": name,
            "digest": output.use.digest,
            "bytes": output.bytes,
            "why": f"no longer needed by {users}",
            "removed": output in items,
        }
    for copy in plan.copies:
        name = copy.digest[:SHORT_VERSION]
        why = "copy of a base model that no output was made from"
        row = {"what": "base", "name": name, "digest": copy.digest, "bytes": copy.bytes, "why": why}
        yield {**row, "removed": copy in items}


def _json(plans: Sequence[_PlacePlan], folders: Sequence[tuple[Path, int]], done: _Removed | None) -> dict[str, Any]:
    """What was planned and what was removed.

    Args:
        plans: what was planned.
        folders: folders with copies, and their sizes before.
        done: what was removed; None if nothing was to be removed.
    """
    removed = [None] * len(plans) if done is None else done.stores
    return {
        "stores": [
            {
                "uri": each.uri,
                "bytes": each.plan.bytes,
                "removedBytes": 0 if pruned is None else pruned.bytes,
                "rows": [*_rows(each.plan, pruned)],
                "notes": [*each.plan.notes],
            }
            for each, pruned in zip(plans, removed, strict=True)
        ],
        "folders": [
            {"path": str(path), "bytes": size, "removed": done is not None and not path.exists()}
            for path, size in folders
        ],
        "removedBytes": 0 if done is None else done.bytes,
    }


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
