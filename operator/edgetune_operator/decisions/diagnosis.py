"""Diagnosis: why a Job waits, was interrupted or failed, as its Pods and the cluster's Events tell it.

Three questions, each with (reason, message) for an answer:

    why_waiting   a live Job: held by a queue, its Pod refused, pending, interrupted, or failed and tried again
    why_stopped   an attempt that was ended from outside
    why_failed    a Job that has ended, in the words of its last attempt that said something
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

from edgetune_contract.stages import ExitCode, reason_for
from edgetune_operator.api.objects import StageStatus
from edgetune_operator.api.reasons import Reason
from edgetune_operator.decisions.observe import (
    POD_STATUS_DELAY,
    EventObservation,
    JobObservation,
    JobState,
    PodObservation,
    Snapshot,
)

Diagnosis = tuple[str, str]
"""Reason and message."""

# Mounts and images are usually there by then; before, Events would be read for every healthy Pod.
_SILENCE = timedelta(seconds=10)
_LONGEST_LOOK = timedelta(seconds=120)
# The kubelet says these of every Pod that it takes, and no more while a volume is missing.
_SAYS_NOTHING = ("", "ContainerCreating", "PodInitializing")
_MISSING = re.compile(r'(secret|configmap) "([^"]+)" not found')
_MISSING_REASONS = {"secret": Reason.SECRET_NOT_FOUND, "configmap": Reason.CONFIG_MAP_NOT_FOUND}
# Each try of the Job controller has a Pod name of its own.
_POD_NAME = re.compile(r'^(\(combined from similar events\): )?(Error creating: )?(pods "[^"]*" is forbidden: )?')
_KILLED = 137

_DISRUPTIONS: Mapping[str, Diagnosis] = {
    "EvictionByEvictionAPI": (Reason.EVICTED, "evicted from its node, as when a node is drained"),
    "PreemptionByScheduler": (Reason.PREEMPTED, "preempted by a Pod of higher priority"),
    "DeletionByTaintManager": (Reason.NODE_LOST, "its node does not answer, or was tainted NoExecute"),
    "DeletionByPodGC": (Reason.NODE_LOST, "its node is gone"),
}
# With the disruption TerminationByKubelet, the Pod's own reason says more.
_KUBELET_DISRUPTIONS: Mapping[str, Diagnosis] = {
    "Evicted": (Reason.NODE_PRESSURE, "its node ran short of a resource"),
    "Preempting": (Reason.PREEMPTED, "made room for a critical Pod"),
    "Terminated": (Reason.NODE_SHUTDOWN, "its node shuts down"),
}


@dataclass(frozen=True)
class SilentWait:
    """A Job or Pod that does not get on, and whose status does not say why: only its Events do."""

    uid: str
    since: datetime

    def is_due(self, now: datetime) -> bool:
        """Whether it has been quiet for long enough to read its Events."""
        return now - self.since >= _SILENCE

    def next_look(self, now: datetime) -> timedelta:
        """When to look again: at first soon, then less and less often."""
        age = now - self.since
        return _SILENCE - age if age < _SILENCE else min(age, _LONGEST_LOOK)


def silent_wait(snapshot: Snapshot) -> SilentWait | None:
    """What the object's live Job waits for in silence; None if it runs or says what it waits for."""
    live = [job for job in snapshot.jobs if job.state is JobState.LIVE and not job.deleting and not job.suspended]
    if not live:
        return None
    job = live[-1]
    newest = job.pods[-1] if job.pods else None
    if newest is None or newest.ended:
        since = (newest.finished_at if newest else None) or job.created_at
        return SilentWait(job.uid, datetime.fromisoformat(since)) if since else None
    if newest.phase == "Pending" and newest.reason in _SAYS_NOTHING and newest.created_at:
        return SilentWait(newest.uid, datetime.fromisoformat(newest.created_at))
    return None


def why_waiting(job: JobObservation, snapshot: Snapshot) -> Diagnosis:
    """What a live Job waits for; JobRunning if it waits for nothing."""
    newest = job.pods[-1] if job.pods else None
    if job.suspended:
        return Reason.QUEUED, "the Job is suspended until a queue admits it"
    if newest is not None and newest.disrupted and not newest.ended:
        reason, what = why_stopped(newest)
        return reason, f"{what}; the next attempt starts when this one has ended"
    if newest is not None and newest.phase == "Pending" and newest.reason not in _SAYS_NOTHING:
        return newest.reason, newest.message
    return _told_by_events(snapshot) or _told_by_ended_pods(job)


def _told_by_events(snapshot: Snapshot) -> Diagnosis | None:
    """What the newest Events complain of. An older complaint is mended: something else has happened since."""
    if not snapshot.events:
        return None
    complaints = tuple(takewhile(lambda event: event.warning, reversed(snapshot.events)))
    if not complaints:
        newest = snapshot.events[-1]
        return ("ContainerCreating", newest.message) if newest.reason == "Pulling" else None
    return _missing(complaints, snapshot.namespace) or _complaint(complaints[0])


def _missing(complaints: Sequence[EventObservation], namespace: str) -> Diagnosis | None:
    found = next((match for event in complaints if (match := _MISSING.search(event.message))), None)
    if found is None:
        return None
    kind, name = found.groups()
    named = {"secret": "Secret", "configmap": "ConfigMap"}[kind]
    message = f"there is no {named} {name} in namespace {namespace}; create it, and the stage goes on by itself"
    return _MISSING_REASONS[kind], message


def _complaint(event: EventObservation) -> Diagnosis:
    said = _POD_NAME.sub("", event.message)
    if event.reason != "FailedCreate":
        return event.reason, said
    reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in said else Reason.PODS_REFUSED
    return reason, f"the cluster refuses the stage's Pod: {said}; the Job tries again by itself"


def _told_by_ended_pods(job: JobObservation) -> Diagnosis:
    """What earlier attempts of a live Job left behind."""
    ended = [pod for pod in job.pods if pod.failed or pod.interrupted]
    if not ended:
        return Reason.JOB_RUNNING, ""
    last = ended[-1]
    if not last.interrupted:
        reason, message = why_ended(last)
        return Reason.ATTEMPT_FAILED, f"an attempt failed and is tried again: {reason}: {message}"
    reason, what = why_stopped(last)
    failure = last.result.failure if last.result is not None else None
    step = failure.step if failure is not None else None
    goes_on = "its newest checkpoint" if step is None else f"the checkpoint of step {step}"
    return reason, f"{what}; goes on from {goes_on}"


def interruptions(row: StageStatus) -> str:
    """What interruptions cost a stage: "1 preemption; resumed at step 40, 3 steps lost"; empty if there were none."""
    if not row.preemptions:
        return ""
    times = f"{row.preemptions} preemption{'s' if row.preemptions > 1 else ''}"
    if row.resumed_from is None or row.lost_steps is None:
        return times
    return (
        f"{times}; resumed at step {row.resumed_from}, {row.lost_steps} step{'' if row.lost_steps == 1 else 's'} lost"
    )


def why_stopped(pod: PodObservation) -> Diagnosis:
    """Why an attempt was, or is, ended from outside."""
    if pod.disruption in _DISRUPTIONS:
        return _DISRUPTIONS[pod.disruption]
    if pod.disrupted:
        reason, what = _KUBELET_DISRUPTIONS.get(pod.pod_reason, (Reason.INTERRUPTED, "stopped by its node"))
        return reason, f"{what}: {pod.pod_message}" if pod.pod_message else what
    return Reason.INTERRUPTED, "stopped from outside"


def awaits_pod_status(job: JobObservation, now: datetime) -> bool:
    """Whether a Job has just ended and its last attempt is not seen to have: Jobs and Pods are watched apart."""
    if job.finished_at is None or job.reason == "DeadlineExceeded":
        return False
    if job.state is JobState.COMPLETE:
        heard = any(pod.exit_code == ExitCode.DONE for pod in job.pods)
    else:
        heard = sum(pod.ended and pod.exit_code != ExitCode.DONE for pod in job.pods) >= job.attempts
    return not heard and now - datetime.fromisoformat(job.finished_at) < POD_STATUS_DELAY


def why_failed(job: JobObservation) -> Diagnosis:
    """Why a Job failed, with its own limits: those of the spec may have been edited since it was made."""
    if job.reason == "DeadlineExceeded":
        message = f"not done after {job.deadline_seconds} seconds; raise spec.activeDeadlineSeconds or ask for less"
        return Reason.DEADLINE_EXCEEDED, message
    failed = [pod for pod in job.pods if pod.ended and pod.exit_code != ExitCode.DONE and not pod.disrupted]
    if not failed:
        return job.reason or Reason.JOB_FAILED, job.message or "the Job failed and left no Pod that says why"
    reason, message = why_ended(failed[-1])
    attempts = f" (attempt {job.attempts}, spec.retryLimit was {job.backoff_limit})" if job.attempts > 1 else ""
    return reason, message + attempts


def why_ended(pod: PodObservation) -> Diagnosis:
    """Why an attempt failed: in the stage's own words, else in the kubelet's."""
    if pod.exceeded_storage:
        advice = "raise workVolumeSize or the stage's limits.ephemeral-storage in the profile, then retry"
        return Reason.STORAGE_EXCEEDED, f"{pod.pod_message.rstrip('.')}; {advice}"
    result = pod.result
    if result is not None and result.failure is not None:
        return result.failure.reason, result.failure.message
    if pod.exit_code is None:
        return pod.pod_reason or Reason.JOB_FAILED, pod.pod_message or "its node ended the Pod without a reason"
    if pod.reason == "OOMKilled":
        return Reason.OUT_OF_MEMORY, "the container was killed at its memory limit; raise it in the profile"
    said = f": {pod.message}" if pod.message else ""
    if pod.reason == "StartError":
        return pod.reason, f"the container does not start; the profile's image is not one of the stages{said}"
    if pod.exit_code == _KILLED:
        return (
            Reason.KILLED,
            f"killed without notice: its node ran out of memory, or its grace period was over{said}",
        )
    return reason_for(pod.exit_code), f"exit code {pod.exit_code}{said}"
