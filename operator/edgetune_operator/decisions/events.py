"""Events: the changes between two statuses, as sentences. Status is the record; Events repeat it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgetune_operator.api.objects import Condition, LoraFineTuneStatus, Phase, StageState, StageStatus
from edgetune_operator.api.reasons import Reason

_REPORTED_PHASES = (Phase.SUCCEEDED, Phase.SUSPENDED, Phase.DELETING)


@dataclass(frozen=True)
class EventDraft:
    """One Event to post."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def transitions(before: LoraFineTuneStatus, after: LoraFineTuneStatus) -> Iterator[EventDraft]:
    """Events for what became true between two statuses of an object."""
    known = {row.name: row for row in before.stages}
    for row in after.stages:
        yield from _stage_transitions(known.get(row.name, StageStatus(name=row.name)), row)
    stalled, was_stalled = _condition(after, "Stalled"), _condition(before, "Stalled")
    if stalled is not None and (was_stalled is None or was_stalled.reason != stalled.reason):
        yield EventDraft("Warning", stalled.reason, stalled.message)
    ready = _condition(after, "Ready")
    if ready is not None and after.phase is not before.phase and after.phase in _REPORTED_PHASES:
        yield EventDraft("Normal", ready.reason, ready.message)


def _condition(status: LoraFineTuneStatus, condition_type: str) -> Condition | None:
    return next((condition for condition in status.conditions if condition.type == condition_type), None)


def _stage_transitions(before: StageStatus, after: StageStatus) -> Iterator[EventDraft]:
    stage = after.name.value.capitalize()
    if after.state is StageState.RUNNING and (before.state is not StageState.RUNNING or before.job != after.job):
        yield EventDraft("Normal", f"{stage}Started", f"created Job {after.job}")
    if after.reason == Reason.REPLACED and before.reason != after.reason:
        yield EventDraft("Normal", f"{stage}Replaced", after.message)
    if after.preemptions > before.preemptions:
        yield EventDraft("Warning", f"{stage}Interrupted", after.message or "stopped from outside; it resumes later")
    if after.state is StageState.SUCCEEDED and (before.state is not after.state or before.digest != after.digest):
        how = "its output was already in the store" if after.cached else f"done in {after.seconds or 0:.0f} s"
        yield EventDraft("Normal", f"{stage}Succeeded", how)
