"""Reconcile: one pass over one object. Observe, plan, render, act, report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from edgetune_contract.stages import INTERNAL_ERROR
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.profiles.tenants import Tenant
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.spec import DeletionTerms, LoraFineTuneSpec
from edgetune_operator.api.spec_check import InvalidSpec, parse_deletion_terms, parse_spec
from edgetune_operator.api.status.stage_status import ProgressStatus
from edgetune_operator.decisions.accounting.gpu_accounting import accounted
from edgetune_operator.decisions.admission import Refusal, admit, find_profile, needs_labels
from edgetune_operator.decisions.causes.diagnosis import silent_wait
from edgetune_operator.decisions.causes.queueing import Queueing, is_unseen, observe_queue, observe_workloads
from edgetune_operator.decisions.deletion import (
    PROFILE_GRACE,
    CreateCleanUp,
    DeletionPlan,
    finalizers_wanted,
    observe_clean_up,
    plan_deletion,
    plan_held_deletion,
    refused_clean_up,
    waiting_for_pods,
)
from edgetune_operator.decisions.manifests.job_manifests import (
    change_of,
    render_clean_up,
    render_job,
    render_service,
)
from edgetune_operator.decisions.observe import Snapshot, observe, observe_events
from edgetune_operator.decisions.plans import ChangeJob, CreateJob, CreateService, DeleteJob, Plan
from edgetune_operator.decisions.reporting.status import check_writable, project, project_deletion
from edgetune_operator.decisions.state_machine import plan, refused, stalled


class StaleRead(Exception):
    """The cluster refused a write because the pass had read an outdated state; the next pass reads the new one."""


class JobRefused(Exception):
    """The cluster refuses a Job, or the Service of one, for a reason outside the object, which may disappear.

    Attributes:
        reason: CamelCase reason for the Stalled condition.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Cluster(Protocol):
    """The operations that a pass needs: implemented by Kubernetes and by the local machine."""

    async def read_object(self, key: Key) -> dict[str, Any] | None:
        """The LoraFineTune; None if it is gone."""
        ...

    async def list_jobs(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Jobs that belong to the object."""
        ...

    async def list_pods(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Pods of the object's Jobs, including ended ones."""
        ...

    async def list_warnings(self, owner: Mapping[str, Any], uid: str) -> Sequence[dict[str, Any]]:
        """Warning Events of the object's Job or Pod with this UID."""
        ...

    async def read_progress(self, owner: Mapping[str, Any]) -> ProgressStatus | None:
        """Progress of the running stage; None if it reports none."""
        ...

    async def list_workloads(self, owner: Mapping[str, Any], jobs: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        """Kueue's Workloads of the object's Jobs with these UIDs, as `queueing.observe_workloads` reads them."""
        ...

    async def read_queue(self, namespace: str, queue: str, priority: str) -> Mapping[str, Any] | None:
        """A queue, as `queueing.observe_queue` reads it; None if the operator does not watch queues.

        Args:
            namespace: of the LocalQueue.
            queue: its name.
            priority: name of a WorkloadPriorityClass to look for; empty for none.
        """
        ...

    async def change_job(self, owner: Mapping[str, Any], name: str, patch: Sequence[Mapping[str, Any]]) -> None:
        """Change a Job of the object that waits in a queue, by a JSON patch.

        Raises:
            StaleRead: the Job is already gone, or waits no longer.
            JobRefused: admission prevents it.
        """
        ...

    async def create_job(self, job: Mapping[str, Any]) -> str:
        """Create a Job; does nothing if the object already has a Job with this name.

        Returns:
            UID of the new Job; empty if there was one already.

        Raises:
            JobRefused: a quota, admission, or a foreign Job with the same name prevents it.
        """
        ...

    async def has_service(self, owner: Mapping[str, Any], name: str, job: str) -> bool:
        """Whether a Job has its Service.

        Args:
            owner: the object's metadata.
            name: of the Service.
            job: UID of the Job. A Service of another Job with the same name is not its own.
        """
        ...

    async def create_service(self, service: Mapping[str, Any]) -> None:
        """Create the Service of a Job; does nothing while there is another one with this name.

        Raises:
            JobRefused: a quota, admission, or a missing right prevents it.
        """
        ...

    async def delete_job(self, owner: Mapping[str, Any], name: str) -> None:
        """Delete a Job of the object and its Pods, with their grace period.

        Raises:
            StaleRead: the Job is already gone.
        """
        ...

    async def read_labels(self, namespace: str) -> Mapping[str, str]:
        """Labels of a namespace, which may be some seconds old; empty if it is gone."""
        ...

    async def is_namespace_terminating(self, namespace: str) -> bool:
        """Whether a namespace is being deleted with everything in it."""
        ...

    async def have_stages_stopped(self, owner: Mapping[str, Any]) -> bool:
        """Whether the object has no stage Job and no running stage Pod. Reads the cluster, not the watch cache."""
        ...

    async def write_finalizers(self, owner: Mapping[str, Any], finalizers: Sequence[str]) -> Mapping[str, Any]:
        """Replace the object's finalizers. A deleted object without finalizers is gone.

        Returns:
            The object's metadata after the write.

        Raises:
            StaleRead: the object has changed since it was read, or is gone.
        """
        ...

    async def write_status(self, owner: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Replace the object's status.

        Raises:
            StaleRead: the object has changed since it was read.
        """
        ...


@dataclass(frozen=True)
class Pass:
    """Outcome of one pass."""

    snapshot: Snapshot
    plan: Plan
    wrote_status: bool


@dataclass(frozen=True)
class DeletionPass:
    """Outcome of one pass over an object that is deleted with its artifacts."""

    plan: DeletionPlan
    wrote_status: bool


async def run_once(
    cluster: Cluster,
    key: Key,
    profiles: Mapping[str, Profile],
    now: datetime,
    profile_grace: timedelta = PROFILE_GRACE,
) -> Pass | DeletionPass | None:
    """One pass: creates at most one Job, then writes the status at most once. None if there is nothing to do.

    Errors of the cluster propagate unchanged and the caller retries later; the status never reports an action that
    failed.
    """
    document = await cluster.read_object(key)
    if document is None:
        return None
    owner = document["metadata"]
    if owner.get("deletionTimestamp"):
        finalizers = owner.get("finalizers") or ()
        if names.FINALIZER in finalizers:
            return await _delete(cluster, document, profiles, now, profile_grace)
        return await _stop(cluster, document, now) if finalizers else None
    spec = _parse(document.get("spec"))
    profile = admit(spec, profiles, await _tenant(cluster, key.namespace, profiles))
    owner = await _settle_finalizer(cluster, owner, spec)
    jobs, pods = await cluster.list_jobs(owner), await cluster.list_pods(owner)
    snapshot = observe(document, jobs, pods, await cluster.read_progress(owner))
    snapshot = await _with_services(cluster, owner, await _with_queue(cluster, owner, snapshot, now))
    wait = silent_wait(snapshot)
    if wait is not None and wait.is_due(now):
        warnings = observe_events(await cluster.list_warnings(owner, wait.uid))
        snapshot = replace(snapshot, events=wait.reasons(warnings))
    decided = plan(spec, profile, snapshot, now)
    status = project(decided.view, snapshot, now)
    check_writable(status)
    try:
        await _act(cluster, owner, spec, profile, decided)
    except JobRefused as error:
        decided = refused(decided, error.reason, str(error), snapshot, now)
        status = project(decided.view, snapshot, now)
    changed = status != (document.get("status") or {})
    if changed:
        await cluster.write_status(owner, status)
    return Pass(snapshot, decided, changed)


async def _with_queue(cluster: Cluster, owner: Mapping[str, Any], snapshot: Snapshot, now: datetime) -> Snapshot:
    """The snapshot with what Kueue says about the Job that waits in a queue."""
    waiting = [job for job in snapshot.jobs if job.suspended and job.queue and not job.deleting]
    if not waiting:
        return snapshot
    workloads = observe_workloads(await cluster.list_workloads(owner, [job.uid for job in waiting]))
    job = waiting[-1]
    workload, state = workloads.get(job.uid), None
    if (workload is not None and workload.is_refused) or is_unseen(job.created_at, workload, now):
        found = await cluster.read_queue(snapshot.namespace, job.queue, job.priority)
        state = None if found is None else observe_queue(found)
    return replace(snapshot, queueing=Queueing(workloads, state))


async def _with_services(cluster: Cluster, owner: Mapping[str, Any], snapshot: Snapshot) -> Snapshot:
    """The snapshot with the Jobs on several nodes that have their Service."""
    needing = [job for job in snapshot.jobs if job.needs_service]
    served = [job.uid for job in needing if await cluster.has_service(owner, names.service_name(job.name), job.uid)]
    return replace(snapshot, served=frozenset(served))


async def report_failure(cluster: Cluster, key: Key, error: str, now: datetime) -> bool:
    """Report that passes over an object fail; what earlier passes recorded is kept. Whether the status changed."""
    document = await cluster.read_object(key)
    if document is None:
        return False
    owner = document["metadata"]
    is_deleted = bool(owner.get("deletionTimestamp"))
    if is_deleted and names.FINALIZER not in (owner.get("finalizers") or ()):
        return False
    snapshot = observe(document, (), (), None)
    message = f"the operator cannot reconcile this object, and keeps trying: {error}"
    if is_deleted:
        # The time limit of the deletion starts here too: it must end even if no pass over it ever succeeds.
        status = project_deletion(snapshot, DeletionPlan((), INTERNAL_ERROR, message), now)
    else:
        status = project(stalled(snapshot, INTERNAL_ERROR, message, now).view, snapshot, now)
    if status == (document.get("status") or {}):
        return False
    await cluster.write_status(owner, status)
    return True


async def _tenant(cluster: Cluster, namespace: str, profiles: Mapping[str, Profile]) -> Tenant:
    return Tenant(namespace, await cluster.read_labels(namespace) if needs_labels(profiles) else {})


async def _settle_finalizer(
    cluster: Cluster, owner: Mapping[str, Any], spec: LoraFineTuneSpec | InvalidSpec
) -> Mapping[str, Any]:
    """Add or remove the finalizer as the spec requires, before there are artifacts; returns the new metadata."""
    present = list(owner.get("finalizers") or ())
    wanted = finalizers_wanted(spec, present)
    return owner if wanted == present else await cluster.write_finalizers(owner, wanted)


async def _delete(
    cluster: Cluster,
    document: Mapping[str, Any],
    profiles: Mapping[str, Profile],
    now: datetime,
    profile_grace: timedelta,
) -> DeletionPass:
    """One pass over an object that is deleted with its artifacts; removes the finalizer when the deletion is done."""
    owner = document["metadata"]
    terms = _parse_deletion_terms(document.get("spec"))
    profile: Profile | Refusal = Refusal(Reason.INVALID_SPEC, str(terms))
    if isinstance(terms, DeletionTerms):
        profile = find_profile(terms.profile, profiles, await _tenant(cluster, owner["namespace"], profiles))
    jobs, pods = await cluster.list_jobs(owner), await cluster.list_pods(owner)
    snapshot = observe(document, jobs, pods, progress=None)
    is_terminating = await cluster.is_namespace_terminating(owner["namespace"])
    clean_up = observe_clean_up(snapshot, jobs, pods)
    decided = plan_deletion(terms, profile, snapshot, clean_up, is_terminating, now, profile_grace)
    for action in decided.actions:
        if isinstance(action, DeleteJob):
            await cluster.delete_job(owner, action.name)
        elif isinstance(profile, Refusal):
            raise TypeError("a clean-up was planned without a profile")
        elif not await cluster.have_stages_stopped(owner):
            decided = waiting_for_pods(decided)
        else:
            decided = await _create_clean_up(cluster, owner, profile, decided, action)
    if decided.final_event is not None:
        await cluster.write_finalizers(owner, [each for each in owner["finalizers"] if each != names.FINALIZER])
        return DeletionPass(decided, wrote_status=False)
    return await _report_deletion(cluster, document, snapshot, decided, now)


async def _stop(cluster: Cluster, document: Mapping[str, Any], now: datetime) -> DeletionPass:
    """One pass over a deleted object that others' finalizers hold: its stages stop."""
    owner = document["metadata"]
    snapshot = observe(document, await cluster.list_jobs(owner), await cluster.list_pods(owner), progress=None)
    decided = plan_held_deletion(snapshot, owner.get("finalizers") or ())
    for action in decided.actions:
        if isinstance(action, DeleteJob):
            await cluster.delete_job(owner, action.name)
    return await _report_deletion(cluster, document, snapshot, decided, now)


async def _report_deletion(
    cluster: Cluster, document: Mapping[str, Any], snapshot: Snapshot, decided: DeletionPlan, now: datetime
) -> DeletionPass:
    status = project_deletion(accounted(snapshot, now), decided, now)
    changed = status != (document.get("status") or {})
    if changed:
        await cluster.write_status(document["metadata"], status)
    return DeletionPass(decided, changed)


async def _create_clean_up(
    cluster: Cluster, owner: Mapping[str, Any], profile: Profile, decided: DeletionPlan, action: CreateCleanUp
) -> DeletionPlan:
    try:
        uid = await cluster.create_job(render_clean_up(owner, profile, action.request))
    except JobRefused as error:
        return refused_clean_up(decided, error.reason, str(error))
    return replace(decided, created=uid)


async def _act(
    cluster: Cluster,
    owner: Mapping[str, Any],
    spec: LoraFineTuneSpec | InvalidSpec,
    profile: Profile | Refusal,
    decided: Plan,
) -> None:
    for action in decided.actions:
        if isinstance(action, DeleteJob):
            await cluster.delete_job(owner, action.name)
        elif isinstance(action, CreateService):
            await cluster.create_service(render_service(owner, action.job, action.uid))
        elif not isinstance(spec, LoraFineTuneSpec) or not isinstance(profile, Profile):
            raise TypeError("a Job was planned without a spec and a profile")
        elif isinstance(action, ChangeJob):
            job = _rendered(owner, spec, profile, action.job)
            await cluster.change_job(owner, job["metadata"]["name"], change_of(job))
        else:
            await cluster.create_job(_rendered(owner, spec, profile, action))


def _rendered(owner: Mapping[str, Any], spec: LoraFineTuneSpec, profile: Profile, job: CreateJob) -> dict[str, Any]:
    before = (job.failed_before, job.active_before)
    return render_job(owner, spec, profile, job.request, job.retry, job.resources, *before)


def _parse_deletion_terms(spec: Any) -> DeletionTerms | InvalidSpec:
    try:
        return parse_deletion_terms(spec)
    except InvalidSpec as error:
        return error


def _parse(spec: Any) -> LoraFineTuneSpec | InvalidSpec:
    try:
        return parse_spec(spec)
    except InvalidSpec as error:
        return error
