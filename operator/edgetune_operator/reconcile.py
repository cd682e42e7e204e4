"""Reconcile: one pass over one object. Observe, plan, render, act, report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.objects import LoraFineTuneSpec, ProgressStatus
from edgetune_operator.api.profiles import Profile
from edgetune_operator.api.spec_check import InvalidSpec, parse_spec
from edgetune_operator.decisions.deletion import (
    CreateCleanUp,
    DeletionPlan,
    finalizers_wanted,
    observe_clean_up,
    plan_deletion,
    refused_clean_up,
    waiting_for_pods,
)
from edgetune_operator.decisions.diagnosis import silent_wait
from edgetune_operator.decisions.observe import Snapshot, observe, observe_events
from edgetune_operator.decisions.plan import DeleteJob, Plan, plan, refused
from edgetune_operator.decisions.render import render_clean_up, render_job
from edgetune_operator.decisions.status import project, project_deletion


class Conflict(Exception):
    """What the pass has read is out of date; the next one sees what has changed since."""


class JobRefused(Exception):
    """The cluster does not take a Job, for a reason that lies outside the object and may pass.

    Attributes:
        reason: CamelCase reason for the Stalled condition.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Cluster(Protocol):
    """What a pass needs of a cluster: Kubernetes, or this machine."""

    async def read_object(self, key: Key) -> dict[str, Any] | None:
        """The LoraFineTune, or None if it is gone."""
        ...

    async def list_jobs(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Jobs that belong to the object."""
        ...

    async def list_pods(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Pods of the object's Jobs, also those that have ended."""
        ...

    async def list_events(self, owner: Mapping[str, Any], uid: str) -> list[dict[str, Any]]:
        """Events of the object's Job or Pod with this UID."""
        ...

    async def read_progress(self, owner: Mapping[str, Any]) -> ProgressStatus | None:
        """How far the running stage is, if it says so."""
        ...

    async def create_job(self, job: Mapping[str, Any]) -> None:
        """Create a Job; one of the same name that is ours already is no error.

        Raises:
            JobRefused: quota, admission or a foreign Job of the same name stands in the way.
        """
        ...

    async def delete_job(self, owner: Mapping[str, Any], name: str) -> None:
        """Delete a Job of the object and its Pods, with their grace period.

        Raises:
            Conflict: the Job is gone already, and the pass has not seen that.
        """
        ...

    async def namespace_is_going(self, namespace: str) -> bool:
        """Whether a namespace is being deleted with all that is in it."""
        ...

    async def is_quiet(self, owner: Mapping[str, Any]) -> bool:
        """Whether no stage's Job is left and no Pod of one runs. Asks the cluster itself: watches may lag behind."""
        ...

    async def write_finalizers(self, owner: Mapping[str, Any], finalizers: Sequence[str]) -> Mapping[str, Any]:
        """Replace the object's finalizers; its metadata after that. A deleted object without any is gone.

        Raises:
            Conflict: the object changed since it was read, or is gone.
        """
        ...

    async def write_status(self, owner: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Replace the object's status.

        Raises:
            Conflict: the object changed since it was read.
        """
        ...


@dataclass(frozen=True)
class Pass:
    """What one pass did."""

    snapshot: Snapshot
    plan: Plan
    wrote_status: bool


@dataclass(frozen=True)
class DeletionPass:
    """What one pass over an object did that is deleted with its artifacts."""

    plan: DeletionPlan
    wrote_status: bool


async def run_once(
    cluster: Cluster, key: Key, profiles: Mapping[str, Profile], now: datetime
) -> Pass | DeletionPass | None:
    """One pass: at most one Job created, at most one status write, last. None if the object is gone.

    Errors of the cluster come out as they are; the caller tries again later, and nothing was written about
    what did not happen.
    """
    document = await cluster.read_object(key)
    if document is None:
        return None
    owner = document["metadata"]
    spec = _parse(document.get("spec"))
    profile = profiles.get(spec.profile) if isinstance(spec, LoraFineTuneSpec) else None
    if owner.get("deletionTimestamp"):
        holds = names.FINALIZER in owner.get("finalizers", ())
        return await _delete(cluster, document, spec, profile, now) if holds else None
    owner = await _settle_finalizer(cluster, owner, spec)
    jobs, pods = await cluster.list_jobs(owner), await cluster.list_pods(owner)
    snapshot = observe(document, jobs, pods, await cluster.read_progress(owner))
    wait = silent_wait(snapshot)
    if wait is not None and wait.is_due(now):
        snapshot = replace(snapshot, events=observe_events(await cluster.list_events(owner, wait.uid)))
    decided = plan(spec, profile, snapshot, now)
    try:
        await _act(cluster, owner, spec, profile, decided)
    except JobRefused as error:
        decided = refused(decided, error.reason, str(error))
    status = project(decided.view, snapshot, now)
    changed = status != (document.get("status") or {})
    if changed:
        await cluster.write_status(owner, status)
    return Pass(snapshot, decided, changed)


async def _settle_finalizer(
    cluster: Cluster, owner: Mapping[str, Any], spec: LoraFineTuneSpec | InvalidSpec
) -> Mapping[str, Any]:
    """Bring the finalizer in line with the spec, before there is anything to clean up; the metadata after that."""
    present = list(owner.get("finalizers") or ())
    wanted = finalizers_wanted(spec, present)
    return owner if wanted == present else await cluster.write_finalizers(owner, wanted)


async def _delete(
    cluster: Cluster,
    document: Mapping[str, Any],
    spec: LoraFineTuneSpec | InvalidSpec,
    profile: Profile | None,
    now: datetime,
) -> DeletionPass:
    """One pass over an object that is deleted with its artifacts; with its end, the finalizer goes."""
    owner = document["metadata"]
    jobs, pods = await cluster.list_jobs(owner), await cluster.list_pods(owner)
    snapshot = observe(document, jobs, pods, progress=None)
    going = await cluster.namespace_is_going(owner["namespace"])
    decided = plan_deletion(spec, profile, snapshot, observe_clean_up(snapshot, jobs, pods), going, now)
    for action in decided.actions:
        if isinstance(action, DeleteJob):
            await cluster.delete_job(owner, action.name)
        elif profile is None:
            raise TypeError("a clean-up was planned without a profile")
        elif not await cluster.is_quiet(owner):
            decided = waiting_for_pods(decided)
        else:
            decided = await _create_clean_up(cluster, owner, profile, decided, action)
    if decided.final_event is not None:
        await cluster.write_finalizers(owner, [each for each in owner["finalizers"] if each != names.FINALIZER])
        return DeletionPass(decided, wrote_status=False)
    status = project_deletion(snapshot, decided.reason, decided.message, now)
    changed = status != (document.get("status") or {})
    if changed:
        await cluster.write_status(owner, status)
    return DeletionPass(decided, changed)


async def _create_clean_up(
    cluster: Cluster, owner: Mapping[str, Any], profile: Profile, decided: DeletionPlan, action: CreateCleanUp
) -> DeletionPlan:
    try:
        await cluster.create_job(render_clean_up(owner, profile, action.request))
    except JobRefused as error:
        return refused_clean_up(decided, error.reason, str(error))
    return decided


async def _act(
    cluster: Cluster,
    owner: Mapping[str, Any],
    spec: LoraFineTuneSpec | InvalidSpec,
    profile: Profile | None,
    decided: Plan,
) -> None:
    for action in decided.actions:
        if isinstance(action, DeleteJob):
            await cluster.delete_job(owner, action.name)
        elif isinstance(spec, LoraFineTuneSpec) and profile is not None:
            await cluster.create_job(render_job(owner, spec, profile, action.request, action.retry))
        else:
            raise TypeError("a Job was planned without a spec and a profile")


def _parse(spec: Any) -> LoraFineTuneSpec | InvalidSpec:
    try:
        return parse_spec(spec)
    except InvalidSpec as error:
        return error
