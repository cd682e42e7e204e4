"""One local run: apply the object, make passes until its outcome is final, stop cleanly on a signal."""

import asyncio
import contextlib
import signal
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from edgetune_cli.local.cluster import LocalCluster
from edgetune_cli.local.logs import ShownLogs
from edgetune_cli.status_tables import ProgressView
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.decisions.deletion import finalizers_wanted
from edgetune_operator.decisions.observe import read_status
from edgetune_operator.decisions.plans import CreateJob, Outcome, View
from edgetune_operator.decisions.reporting.events import EventDraft
from edgetune_operator.reconcile import DeletionPass, Pass, run_once

_TICK_SECONDS = 1.0


class DeletionStopped(Exception):
    """A signal stopped a deletion before all artifacts were removed."""


@dataclass(frozen=True)
class Ended:
    """Outcome of a local run."""

    outcome: Outcome
    message: str
    status: LoraFineTuneStatus
    ran: frozenset[Stage]
    """Stages whose Jobs this run created."""

    stopped: bool
    """Whether a signal stopped it."""

    log: Path | None
    """Log of the stage that failed."""


async def run_object(
    document: Mapping[str, Any],
    folder: Path,
    profiles: Mapping[str, Profile],
    progress: ProgressView,
    signing_key: Path | None = None,
) -> Ended:
    """Run a LoraFineTune on this machine until it is published, refused, failed, suspended or stopped.

    Args:
        document: the object.
        folder: for objects, store, logs and temporary files.
        profiles: by name.
        progress: shows how far it is.
        signing_key: file that takes the place of the Secret with the private key.

    Raises:
        ObjectBusy: another run is working on the same object in the same folder.
    """
    key = Key(document["metadata"].get("namespace", "default"), document["metadata"]["name"])
    # Persist the defaults, as the API server does.
    spec = parse_spec(document["spec"]).model_dump(mode="json", exclude_none=True)
    annotations = document["metadata"].get("annotations") or {}
    revision = annotations.get(names.SOURCE_REVISION_ANNOTATION, "")
    async with LocalCluster(folder, key, signing_key) as cluster:
        # A new retry token makes every run check the inputs and retry failed stages.
        cluster.objects.apply(key, spec, retry=str(uuid.uuid4()), source_revision=revision)
        with _stop_on_signals() as stop:
            return await _follow(cluster, key, profiles, progress, stop)


async def _follow(
    cluster: LocalCluster, key: Key, profiles: Mapping[str, Profile], progress: ProgressView, stop: asyncio.Event
) -> Ended:
    ran: set[Stage] = set()
    logs = ShownLogs(cluster.log_path("").parent)
    while True:
        if stop.is_set():
            await cluster.stop()
        cluster.changed.clear()
        done = await run_once(cluster, key, profiles, datetime.now(UTC))
        if not isinstance(done, Pass):
            raise FileNotFoundError(f"{cluster.objects.path(key)} was removed during the run")
        view = done.plan.view
        ran |= {action.request.stage for action in done.plan.actions if isinstance(action, CreateJob)}
        for row in (row for row in view.rows if row.name in ran and row.job):
            logs.show(cluster.log_path(row.job))
        progress.update(view, cluster.message)
        if view.outcome is not Outcome.RUNNING or stop.is_set():
            return await _ended(cluster, key, view, ran, stopped=stop.is_set())
        if not done.plan.actions:
            await _first_of(cluster.changed, stop)


async def delete_object(
    document: Mapping[str, Any], folder: Path, profiles: Mapping[str, Profile]
) -> EventDraft | None:
    """Delete a LoraFineTune of this machine according to its deletionPolicy.

    Returns:
        The final Event; None if nothing had to be removed from the store.

    Raises:
        ObjectBusy: a run is working on the object.
        DeletionStopped: a signal stopped it first; another call continues.
    """
    key = Key(document["metadata"].get("namespace", "default"), document["metadata"]["name"])
    spec = parse_spec(document["spec"])
    async with LocalCluster(folder, key) as cluster:
        cluster.objects.apply(key, spec.model_dump(mode="json", exclude_none=True), retry="")
        cluster.objects.delete(key, finalizers_wanted(spec, ()))
        with _stop_on_signals() as stop:
            while not stop.is_set():
                cluster.changed.clear()
                # A profile that is not found now appears no later: there is one file.
                done = await run_once(cluster, key, profiles, datetime.now(UTC), profile_grace=timedelta(0))
                if not isinstance(done, DeletionPass) or done.plan.final_event is not None:
                    return done.plan.final_event if isinstance(done, DeletionPass) else None
                await _first_of(cluster.changed, stop)
    raise DeletionStopped


async def _ended(cluster: LocalCluster, key: Key, view: View, ran: set[Stage], stopped: bool) -> Ended:
    document = await cluster.read_object(key) or {}
    row = next((row for row in view.rows if row.name is view.stage), None)
    return Ended(
        outcome=view.outcome,
        message=view.message,
        status=read_status(document),
        ran=frozenset(ran),
        stopped=stopped and view.outcome is Outcome.RUNNING,
        log=cluster.log_path(row.job) if row is not None and row.job else None,
    )


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[asyncio.Event]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _first_of(*events: asyncio.Event) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
