"""Events: what changed between two statuses, in sentences. Status is the record, Events are its echo."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgetune_operator.api import LoraFineTuneStatus, Phase, StageState, StageStatus

_TOLD = (Phase.SUCCEEDED, Phase.REFUSED, Phase.FAILED, Phase.SUSPENDED, Phase.DELETING)


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
    if after.phase is not before.phase and after.phase in _TOLD:
        ready = next(condition for condition in after.conditions if condition.type == "Ready")
        kind: Literal["Normal", "Warning"] = "Warning" if after.phase in (Phase.REFUSED, Phase.FAILED) else "Normal"
        yield EventDraft(kind, ready.reason, ready.message)


def _stage_transitions(before: StageStatus, after: StageStatus) -> Iterator[EventDraft]:
    stage = after.name.value.capitalize()
    if after.state is StageState.RUNNING and (before.state is not StageState.RUNNING or before.job != after.job):
        yield EventDraft("Normal", f"{stage}Started", f"created Job {after.job}")
    if after.preemptions > before.preemptions:
        yield EventDraft("Warning", f"{stage}Interrupted", after.message or "stopped from outside; it goes on later")
    if after.state is StageState.SUCCEEDED and (before.state is not after.state or before.digest != after.digest):
        how = "its output was in the store already" if after.cached else f"done in {after.seconds or 0:.0f} s"
        yield EventDraft("Normal", f"{stage}Succeeded", how)
