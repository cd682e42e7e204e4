"""Events: the changes between two statuses, as sentences. Status is the record; Events repeat it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.status.object_status import Condition, LoraFineTuneStatus, Phase
from edgetune_operator.api.status.stage_status import StageState, StageStatus

_REPORTED_PHASES = (Phase.SUCCEEDED, Phase.SUSPENDED, Phase.DELETING)


@dataclass(frozen=True)
class EventDraft:
    """One Event to post."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def transitions(before: LoraFineTuneStatus, after: LoraFineTuneStatus) -> Iterator[EventDraft]:
    """Events for what became true between two statuses of an object.

    Each Event is a write. What happens in one pass is one Event where one sentence says it: the end of a stage, the
    stages whose output was already in the store, and the next Job; the end of the last stage is in the outcome's.
    """
    known = {row.name: row for row in before.stages}
    changes = [(known.get(row.name, StageStatus(name=row.name)), row) for row in after.stages]
    outcome = tuple(_outcome(before, after))
    for was, row in changes:
        yield from _troubles(was, row)
    done = [row for was, row in changes if _has_succeeded(was, row)]
    created = next((row for was, row in changes if _has_new_job(was, row)), None)
    started = next((row for was, row in changes if _has_started(was, row)), None)
    if done and not (outcome and done == list(after.stages[-1:])):
        yield EventDraft("Normal", f"{_title(done[0])}Succeeded", _progress(done, created))
    elif created is not None:
        what = "Queued" if created.state is StageState.QUEUED else "Started"
        yield EventDraft("Normal", f"{_title(created)}{what}", _creation(created))
    elif started is not None:
        message = f"its queue has admitted Job {started.job}, and its container runs"
        yield EventDraft("Normal", f"{_title(started)}Started", message)
    yield from outcome


def _outcome(before: LoraFineTuneStatus, after: LoraFineTuneStatus) -> Iterator[EventDraft]:
    stalled, was_stalled = _condition(after, "Stalled"), _condition(before, "Stalled")
    if stalled is not None and (was_stalled is None or was_stalled.reason != stalled.reason):
        yield EventDraft("Warning", stalled.reason, stalled.message)
    ready = _condition(after, "Ready")
    if ready is not None and after.phase is not before.phase and after.phase in _REPORTED_PHASES:
        yield EventDraft("Normal", ready.reason, ready.message)


def _condition(status: LoraFineTuneStatus, condition_type: str) -> Condition | None:
    return next((condition for condition in status.conditions if condition.type == condition_type), None)


def _title(row: StageStatus) -> str:
    return row.name.value.capitalize()


def _has_new_job(before: StageStatus, after: StageStatus) -> bool:
    return after.state.has_job and (not before.state.has_job or before.job != after.job)


def _has_started(before: StageStatus, after: StageStatus) -> bool:
    """Whether a Job that waited in a queue runs now."""
    return before.job == after.job and before.started_at is None and after.started_at is not None


def _has_succeeded(before: StageStatus, after: StageStatus) -> bool:
    return after.state is StageState.SUCCEEDED and (before.state is not after.state or before.digest != after.digest)


def _creation(row: StageStatus) -> str:
    """Such as "created Job model-train-0123456789; the Job is suspended until queue gpu admits it"."""
    waits = f"; {row.message}" if row.state is StageState.QUEUED else ""
    return f"created Job {row.job}{waits}"


def _progress(done: Sequence[StageStatus], created: StageStatus | None) -> str:
    """Such as "done in 4 s; already in the store: train, merge; created Job model-quantize-0123456789"."""
    ran = [f"done in {row.seconds or 0:.0f} s" for row in done[:1] if not row.cached]
    cached = [row.name.value for row in done if row.cached]
    found = [f"already in the store: {', '.join(cached)}"] if cached else []
    also = [f"{row.name} is done too" for row in done[1:] if not row.cached]
    next_job = [_creation(created)] if created is not None else []
    return "; ".join((*ran, *also, *found, *next_job))


def _troubles(before: StageStatus, after: StageStatus) -> Iterator[EventDraft]:
    if after.reason == Reason.REPLACED and before.reason != after.reason:
        yield EventDraft("Normal", f"{_title(after)}Replaced", after.message)
    if after.preemptions > before.preemptions:
        message = after.message or "stopped from outside; it resumes later"
        yield EventDraft("Warning", f"{_title(after)}Interrupted", message)
