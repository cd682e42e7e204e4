"""Diagnosis: why a Job waits, was interrupted or failed, according to its Pods and Events.

Three questions, each answered with (reason, message):

    why_waiting   a live Job: queued, its Pod refused or pending, interrupted, or retried after a failure
    why_stopped   an attempt that was stopped from outside
    why_failed    a Job that has failed, as its last failed attempt reports it
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from edgetune_contract.request import Result
from edgetune_contract.stages import ExitCode, reason_for
from edgetune_contract.values.times import is_recent, timestamp
from edgetune_contract.values.units import format_bytes
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.status.stage_status import StageStatus
from edgetune_operator.decisions.causes.patience import quota_reason
from edgetune_operator.decisions.causes.queueing import Diagnosis, why_queued
from edgetune_operator.decisions.observe import EventObservation, JobObservation, JobState, Snapshot
from edgetune_operator.decisions.pods import POD_END_DELAY, POD_STATUS_DELAY, UNSPECIFIC, PodObservation

# Volumes are usually mounted and images pulled by then; a shorter time would report what passes by itself.
_SILENCE = timedelta(seconds=10)
_LONGEST_INTERVAL = timedelta(seconds=120)
STUCK_AFTER = timedelta(minutes=5)
"""Time after which a Pod that should have ended is reported. Its grace period is over before that starts."""

_MISSING = re.compile(r'(secret|configmap) "([^"]+)" not found')
_MISSING_REASONS = {"secret": Reason.SECRET_NOT_FOUND, "configmap": Reason.CONFIG_MAP_NOT_FOUND}
# The Job controller's message has a different Pod name at each retry.
_POD_NAME = re.compile(r'^(\(combined from similar events\): )?(Error creating: )?(pods "[^"]*" is forbidden: )?')
_UNHEALTHY = "Unhealthy"
# The last lines of a log: native code, such as that of bitsandbytes, ends the process after an error of CUDA.
_OUT_OF_GPU_MEMORY = re.compile(r"(?m)^(Error |.*\bCUDA\b.*)out of memory")
_KILLED = 137
_LONGEST_DETAIL = 300

_DISRUPTIONS: Mapping[str, Diagnosis] = {
    "EvictionByEvictionAPI": (Reason.EVICTED, "evicted from its node, for example by a drain"),
    "PreemptionByScheduler": (Reason.PREEMPTED, "preempted by a Pod of higher priority"),
    "DeletionByTaintManager": (Reason.NODE_LOST, "its node is unreachable or was tainted NoExecute"),
    "DeletionByPodGC": (Reason.NODE_LOST, "its node is gone"),
}
# For the disruption TerminationByKubelet, the Pod's own reason is more specific.
_KUBELET_DISRUPTIONS: Mapping[str, Diagnosis] = {
    "Evicted": (Reason.NODE_PRESSURE, "its node ran short of a resource"),
    "Preempting": (Reason.PREEMPTED, "preempted by a critical Pod"),
    "Terminated": (Reason.NODE_SHUTDOWN, "its node is shutting down"),
}


@dataclass(frozen=True)
class SilentWait:
    """A waiting Job or Pod whose status does not say why it waits; only its Events do."""

    uid: str
    since: datetime
    is_set_up: bool = False
    """Whether it is a Pod whose volumes and network are set up: only its image or its container is missing."""

    beside: tuple[str, ...] = ()
    """Other containers of the Pod that are running: an init container may have to end, or to be ready, first."""

    def is_due(self, now: datetime) -> bool:
        """Whether it has waited long enough to look at its Events."""
        return now - self.since >= _SILENCE

    def reasons(self, warnings: Sequence[EventObservation]) -> tuple[EventObservation, ...]:
        """What its Events say about this wait. Those from before it are about an earlier Pod."""
        found = tuple(event for event in warnings if event.at >= self.since)
        if not self.is_set_up:
            return found
        message = "its volumes are mounted; its node is pulling the image or creating the container"
        if self.beside:
            # Such as a failed startup probe of a mesh's sidecar, without which the stage does not start.
            unready = next((f": {event.message}" for event in reversed(found) if event.reason == _UNHEALTHY), "")
            message += f", or waits for {', '.join(self.beside)}{unready}"
        return (EventObservation("ContainerCreating", message, self.since),)

    def next_look(self, now: datetime) -> timedelta:
        """Time until its Events are read again; grows with the time that it has waited."""
        age = max(now - self.since, timedelta(0))
        return _SILENCE - age if age < _SILENCE else min(age, _LONGEST_INTERVAL)


def silent_wait(snapshot: Snapshot) -> SilentWait | None:
    """The object's live Job, or its Pod, if it waits without a stated reason; None if it runs or states one."""
    live = [job for job in snapshot.jobs if job.state is JobState.LIVE and not job.deleting and not job.suspended]
    if not live:
        return None
    job = live[-1]
    newest = job.pods[-1] if job.pods else None
    if newest is None or newest.ended:
        since = (newest.finished_at if newest else None) or job.created_at
        return SilentWait(job.uid, datetime.fromisoformat(since)) if since else None
    if newest.phase == "Pending" and newest.reason in UNSPECIFIC and newest.created_at:
        return SilentWait(newest.uid, datetime.fromisoformat(newest.created_at), newest.is_set_up, newest.beside)
    return None


@dataclass(frozen=True)
class StuckPod:
    """A Pod that should have ended or be gone: its node no longer reports, and nothing can replace it until it does."""

    pod: PodObservation
    since: datetime

    def is_due(self, now: datetime) -> bool:
        """Whether somebody has to act: what passes by itself has had its time."""
        return now - self.since >= STUCK_AFTER

    def next_look(self, now: datetime) -> timedelta | None:
        """Time until it is due; None if it is."""
        return None if self.is_due(now) else STUCK_AFTER - (now - self.since)

    @property
    def why(self) -> Diagnosis:
        """What is wrong and what to do."""
        node = self.pod.node or "unknown"
        message = (
            f"Pod {self.pod.name} should have ended by {timestamp(self.since)}, and its node {node} has not confirmed "
            f"it: if the node does not come back, shut it down and run `kubectl delete node {node}`; the stage then "
            "continues by itself"
        )
        return Reason.NODE_UNRESPONSIVE, message


def stuck_pod(snapshot: Snapshot) -> StuckPod | None:
    """The Pod of one of the object's Jobs that is stopped or deleted and does not end; None if there is none."""
    # The next Job waits until the deleted ones are gone, with their Pods, also with those whose stage has ended.
    is_waited_for = all(job.deleting or job.state is not JobState.LIVE for job in snapshot.jobs)
    found = [
        StuckPod(pod, datetime.fromisoformat(since))
        for job in snapshot.jobs
        for pod in job.every_pod
        if not pod.ended or (pod.is_left and job.deleting and is_waited_for)
        if (since := pod.gone_by or (pod.finished_at if pod.disrupted else None)) is not None
    ]
    return min(found, key=lambda stuck: stuck.since, default=None)


def why_waiting(job: JobObservation, snapshot: Snapshot) -> Diagnosis:
    """Why a live Job waits; JobRunning if it does not wait."""
    newest = job.pods[-1] if job.pods else None
    if job.past_deadline or (newest is not None and newest.ended and job.stopped_by_deadline(newest)):
        reason, message = why_past_deadline(job)
        return reason, f"{message}; its attempt is being stopped"
    if job.suspended:
        queueing = snapshot.queueing
        return why_queued(job.queue, snapshot.namespace, queueing.workloads.get(job.uid), queueing.state)
    if newest is not None and newest.disrupted and not newest.ended:
        reason, what = why_stopped(newest)
        return reason, f"{what}; the next attempt starts when this one has ended"
    if newest is not None and newest.phase == "Pending" and newest.reason not in UNSPECIFIC:
        admitted = f"admitted by queue {job.queue}: " if job.queue and newest.reason == "Unschedulable" else ""
        return newest.reason, f"{admitted}{newest.message}"
    return _why_by_events(snapshot) or _why_by_ended_pods(job)


def _why_by_events(snapshot: Snapshot) -> Diagnosis | None:
    """What the newest warnings report."""
    newest_first = snapshot.events[::-1]
    return (_missing(newest_first, snapshot.namespace) or _warning(newest_first[0])) if newest_first else None


def _missing(warnings: Sequence[EventObservation], namespace: str) -> Diagnosis | None:
    found = next((match for event in warnings if (match := _MISSING.search(event.message))), None)
    if found is None:
        return None
    resource, name = found.groups()
    kind = {"secret": "Secret", "configmap": "ConfigMap"}[resource]
    message = f"{kind} {name} not found in namespace {namespace}; create it, and the stage continues by itself"
    return _MISSING_REASONS[resource], message


def _warning(event: EventObservation) -> Diagnosis:
    message = _POD_NAME.sub("", event.message)
    if event.reason != "FailedCreate":
        return event.reason, message
    return quota_reason(
        message
    ) or Reason.PODS_REFUSED, f"the cluster refuses the stage's Pod: {message}; the Job retries by itself"


def _why_by_ended_pods(job: JobObservation) -> Diagnosis:
    """How the last attempt of a live Job ended."""
    ended = [pod for pod in job.pods if pod.failed or pod.interrupted]
    if not ended:
        return Reason.JOB_RUNNING, ""
    last = ended[-1]
    if not last.interrupted:
        reason, message = why_ended(last)
        if job.outlived is last:
            return Reason.JOB_RUNNING, f"the stage has ended: {reason}: {message}; waiting for the end of its Pod"
        return Reason.ATTEMPT_FAILED, f"an attempt failed and is retried: {reason}: {message}"
    reason, what = why_stopped(last)
    step = last_step(last)
    checkpoint = "its newest checkpoint" if step is None else f"the checkpoint of step {step}"
    return reason, f"{what}; resumes from {checkpoint}"


def last_step(attempt: PodObservation) -> int | None:
    """Optimizer step of the checkpoint that an interrupted attempt wrote last; None if it reports none."""
    results = (pod.result for pod in attempt.together)
    failures = [result.failure for result in results if result is not None and result.failure is not None]
    return max((failure.step for failure in failures if failure.step is not None), default=None)


def interruptions(row: StageStatus) -> str:
    """A stage's interruptions, such as "1 preemption; resumed at step 40, 3 steps lost"; empty if there were none."""
    if not row.preemptions:
        return ""
    preemptions = f"{row.preemptions} preemption{'s' if row.preemptions > 1 else ''}"
    if row.resumed_from is None or row.lost_steps is None:
        return preemptions
    steps = f"{row.lost_steps} step{'' if row.lost_steps == 1 else 's'}"
    return f"{preemptions}; resumed at step {row.resumed_from}, {steps} lost"


def why_stopped(pod: PodObservation) -> Diagnosis:
    """Why an attempt was or is stopped from outside."""
    if pod.disruption in _DISRUPTIONS:
        return _DISRUPTIONS[pod.disruption]
    if pod.disrupted:
        reason, what = _KUBELET_DISRUPTIONS.get(pod.pod_reason, (Reason.INTERRUPTED, "stopped by its node"))
        return reason, f"{what}: {pod.pod_message}" if pod.pod_message else what
    if pod.lost_peer:
        return reason_for(ExitCode.PEER_LOST), "a Pod on another node was gone"
    return Reason.INTERRUPTED, "stopped from outside"


def awaits_pod_status(job: JobObservation, now: datetime) -> bool:
    """Whether a Job has just ended and its last Pod's end is not observed yet: Jobs and Pods are watched separately."""
    if job.finished_at is None or job.runs_elsewhere or job.reason == "DeadlineExceeded":
        return False
    if job.state is JobState.COMPLETE:
        is_observed = any(pod.exit_code == ExitCode.DONE and not pod.index for pod in job.every_pod)
    elif job.nodes > 1:
        is_observed = bool(job.pods) and job.pods[-1].failed
    else:
        is_observed = sum(pod.ended and pod.exit_code != ExitCode.DONE for pod in job.pods) >= job.attempts
    return not is_observed and is_recent(job.finished_at, POD_STATUS_DELAY, now)


def overdue(job: JobObservation, now: datetime) -> PodObservation | None:
    """The Pod for which a Job waits although its stage has ended a while ago; None if there is none.

    Another container keeps the Pod alive, such as a service mesh's, or failed and let the Job start another attempt.
    The Job controller would wait until the deadline, and the Pod would hold its GPU.
    """
    ended = _outliving(job)
    if ended is None or (ended.finished_at is not None and is_recent(ended.finished_at, POD_END_DELAY, now)):
        return None
    return ended if ended.is_alive else next(pod for pod in reversed(job.every_pod) if pod.is_alive)


def _outliving(job: JobObservation) -> PodObservation | None:
    """The attempt that ended the stage of a live Job whose newest Pod lives on; None if there is none."""
    newest = job.pods[-1:] if job.nodes == 1 else job.every_pod
    if job.state is not JobState.LIVE or job.deleting or not any(pod.is_alive for pod in newest):
        return None
    done = (pod for pod in reversed(job.every_pod) if pod.exit_code == ExitCode.DONE and not pod.index)
    return next(done, job.outlived)


def look_at_overdue(snapshot: Snapshot, now: datetime) -> timedelta | None:
    """Time until a Job whose Pod outlives its stage is looked at again; None if there is none."""
    is_awaited = any(_outliving(job) is not None and overdue(job, now) is None for job in snapshot.jobs)
    return POD_END_DELAY if is_awaited else None


def why_overdue(pod: PodObservation) -> str:
    """Why a Pod lives on, as part of a sentence."""
    if not pod.beside:
        return "its Pod is still running"
    return f"its Pod is still running container{'s' if len(pod.beside) > 1 else ''} {', '.join(pod.beside)}"


def why_failed(job: JobObservation, earlier: int = 0) -> Diagnosis:
    """Why a Job failed, with the Job's own limits: those of the spec may have changed since.

    Args:
        job: a failed Job.
        earlier: failed attempts of the Jobs that it replaced.
    """
    if job.reason == "DeadlineExceeded":
        return why_past_deadline(job)
    failed = [pod for pod in job.pods if pod.ended and pod.exit_code != ExitCode.DONE and not pod.disrupted]
    if not failed:
        return job.reason or Reason.JOB_FAILED, job.message or "the Job failed and no Pod is left that says why"
    # A Pod of another node may have been stopped after the one that failed.
    reason, message = why_ended(next((pod for pod in reversed(failed) if pod.failed), failed[-1]))
    return reason, message + _counted(job, earlier)


def why_past_deadline(job: JobObservation) -> Diagnosis:
    """Why a Job fails that has reached its deadline."""
    message = f"not done after {job.deadline_seconds} seconds; raise spec.activeDeadlineSeconds or reduce the work"
    return Reason.DEADLINE_EXCEEDED, message


def _attempts(job: JobObservation) -> int:
    """Attempts of a Job that failed. One on several nodes also counts the Pods that it stops when it fails."""
    return job.attempts if job.nodes == 1 else max(sum(attempt.failed for attempt in job.pods), 1)


def _counted(job: JobObservation, earlier: int) -> str:
    attempts = earlier + _attempts(job)
    return f" (attempt {attempts}, spec.retryLimit was {earlier + job.retry_limit})" if attempts > 1 else ""


def why_unreadable(job: JobObservation) -> str:
    """What is wrong with the message of the attempt that finished a stage, in parentheses; empty if it has none."""
    done = (pod.message for pod in reversed(job.every_pod) if pod.exit_code == ExitCode.DONE and not pod.index)
    message = next(done, "")
    try:
        if message:
            Result.decode(message)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"])) or "the message"
        return f" ({path}: {str(first['msg'])[:_LONGEST_DETAIL]})"
    return ""


def why_not_retried(pod: PodObservation, job: JobObservation, earlier: int) -> Diagnosis | None:
    """Why an attempt is the last one; None if another one follows. For a Pod that outlives its stage."""
    if pod.interrupted:
        return None
    reason, message = why_ended(pod)
    if pod.exit_code in tuple(code for code in ExitCode if code.fails_job):
        return reason, message
    return (reason, message + _counted(job, earlier)) if failed_attempts(job) > job.retry_limit else None


def why_not_continued(job: JobObservation, earlier: int) -> Diagnosis | None:
    """Why a live Job on several nodes starts no further attempt; None if it may. The Job counts its Pods.

    Args:
        job: the Job.
        earlier: failed attempts of the Jobs that it replaced.
    """
    if job.nodes == 1 or failed_attempts(job) <= job.retry_limit:
        return None
    reason, message = why_ended([attempt for attempt in job.pods if attempt.failed][-1])
    return reason, message + _counted(job, earlier)


def failed_attempts(job: JobObservation) -> int:
    """Failed attempts of a live Job, whose status may count the next one already, or not yet count the last one."""
    if job.nodes > 1:
        return sum(attempt.failed for attempt in job.pods)
    return max(job.attempts - _newest_waits(job), sum(pod.failed for pod in job.pods))


def _newest_waits(job: JobObservation) -> bool:
    """Whether the newest attempt has not begun, on one of its nodes or on all."""
    newest = job.pods[-1] if job.pods else None
    if newest is None or newest.ended:
        return False
    return newest.phase == "Pending" or len(newest.together) < job.nodes


def why_outlived(pod: PodObservation) -> Diagnosis:
    """Why another Job repeats a failed attempt whose Pod lives on."""
    reason, message = why_ended(pod)
    return Reason.POD_OUTLIVED, (
        f"an attempt failed and is retried by another Job, because {why_overdue(pod)}: {reason}: {message}"
    )


def killed_at_memory_limit(job: JobObservation, earlier: int) -> PodObservation | None:
    """The last attempt of a live Job, if it was killed at its memory limit and the next one is not seen running.

    The Job controller creates the next Pod within a second, and never shows a Job without an active one before.

    Args:
        job: the Job.
        earlier: failed attempts of the Jobs that it replaced.
    """
    pods = job.pods[:-1] if _newest_waits(job) else job.pods
    last = pods[-1] if pods else None
    if last is None or not last.exceeded_memory or job.outlived is not None:
        return None
    return last if why_not_retried(last, job, earlier) is None else None


def why_more_memory(limit: int | None) -> Diagnosis:
    """Why another Job repeats an attempt that was killed at a memory limit, in bytes."""
    at = f" of {format_bytes(limit)}" if limit is not None else ""
    return Reason.MORE_MEMORY, (
        f"an attempt was killed at its memory limit{at}: this model needs more than estimated; the next attempt gets "
        "twice the memory, within the profile's bounds"
    )


def why_ended(pod: PodObservation) -> Diagnosis:
    """Why an attempt failed: as the stage reports it or, if it reports nothing, as the kubelet does."""
    if pod.exceeded_storage:
        advice = "raise workVolumeSize, sizing.storage or the stage's ephemeral-storage in the profile, then retry"
        return Reason.STORAGE_EXCEEDED, f"{pod.pod_message.rstrip('.')}; {advice}"
    result = pod.result
    if result is not None and result.failure is not None:
        return result.failure.reason, result.failure.message
    if pod.exit_code is None and pod.failed_init:
        return pod.pod_reason or Reason.JOB_FAILED, pod.failed_init
    if pod.exit_code is None:
        return pod.pod_reason or Reason.JOB_FAILED, pod.pod_message or "the node stopped the Pod without a reason"
    if pod.reason == "OOMKilled":
        return Reason.OUT_OF_MEMORY, "the container was killed at its memory limit; raise it in the profile"
    details = f": {pod.message}" if pod.message else ""
    if pod.reason == "StartError":
        return pod.reason, f"the container does not start; the profile's image is not an image of the stages{details}"
    if pod.exit_code == _KILLED:
        return (
            Reason.KILLED,
            f"killed without notice: the node ran out of memory or the grace period expired{details}",
        )
    if _OUT_OF_GPU_MEMORY.search(pod.message):
        advice = "use a profile with a larger GPU or, for a training, lower spec.training.microBatchSize or maxLength"
        reason = reason_for(ExitCode.OUT_OF_GPU_MEMORY)
        return reason, f"a library ended the stage when the GPU ran out of memory; {advice}{details}"
    return reason_for(pod.exit_code), f"exit code {pod.exit_code}{details}"
