"""Status: project a plan's view to the object's status. Status is a view of the facts; conditions follow kstatus."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from edgetune_contract.pipeline import ADAPTER, MERGED, PIPELINE
from edgetune_contract.stages import Stage
from edgetune_contract.values.text import escaped
from edgetune_contract.values.times import timestamp
from edgetune_contract.values.units import format_bytes, format_share
from edgetune_operator.api.profiles.gpu_use import GpuStatus, GpuUse
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.status.edge_model import edge_artifact
from edgetune_operator.api.status.object_status import (
    MAX_DISPLAY,
    MAX_HISTORY,
    MAX_RETRIES,
    MAX_WARNINGS,
    SHORT_VERSION,
    Condition,
    Display,
    HistoryEntry,
    LoraFineTuneStatus,
    Phase,
    Sizes,
)
from edgetune_operator.api.status.stage_status import MAX_TEXT, StageState, StageStatus
from edgetune_operator.decisions.deletion import CLEANED_UP, DeletionPlan
from edgetune_operator.decisions.live import AVAILABLE, why_available
from edgetune_operator.decisions.observe import Snapshot
from edgetune_operator.decisions.plans import Outcome, View

STAGE_CONDITIONS = frozenset(definition.condition for definition in PIPELINE.values())
"""Types of the stages' conditions."""

_OTHER_PHASES: Mapping[Outcome, Phase] = {
    Outcome.QUEUED: Phase.QUEUED,
    Outcome.BLOCKED: Phase.STALLED,
    Outcome.STALLED: Phase.STALLED,
    Outcome.SUSPENDED: Phase.SUSPENDED,
    Outcome.PUBLISHED: Phase.SUCCEEDED,
    Outcome.REFUSED: Phase.REFUSED,
    Outcome.FAILED: Phase.FAILED,
}
_IN_PROGRESS = (Reason.JOB_RUNNING, Reason.RESUMED, Reason.RESULT_LOST)
_STALLED = (Outcome.BLOCKED, Outcome.REFUSED, Outcome.FAILED, Outcome.STALLED)
_ConditionStatus = Literal["True", "False", "Unknown"]
_ConditionDraft = tuple[str, _ConditionStatus, str, str]
"""Type, status, reason and message of a condition."""


def project(view: View, snapshot: Snapshot, now: datetime) -> dict[str, Any]:
    """The whole status as plain JSON values; equal to the previous one if nothing changed.

    Args:
        view: the content that plan decided on.
        snapshot: the previous status and the object's generation.
        now: time of the pass, with a time zone.
    """
    previous, time = snapshot.previous, timestamp(now)
    sizes = _sizes(view)
    finished_at = _finished_at(view.outcome, previous.finished_at, time)
    is_restarted = previous.finished_at is not None and finished_at is None
    started_at = time if is_restarted or previous.started_at is None else previous.started_at
    status = LoraFineTuneStatus(
        observed_generation=snapshot.generation,
        phase=_phase(view),
        conditions=_conditions(view, snapshot, time),
        started_at=started_at,
        finished_at=finished_at,
        waiting_since=view.wait.since if view.wait is not None else None,
        last_handled_retry=next(iter(view.handled_retries), ""),
        handled_retries=_remembered(view.handled_retries, snapshot.retries),
        pending_retries=view.pending_retries[-MAX_RETRIES:],
        retryable_spec=view.retryable_spec,
        store=view.store,
        resolved=view.resolved,
        progress=view.progress,
        gpu=_gpu(view, previous, is_restarted),
        stages=tuple(map(_shown, view.rows)),
        sizes=sizes,
        scores=view.scores,
        edge=view.edge,
        candidates=view.candidates,
        artifacts=view.artifacts,
        publication=view.publication,
        live=view.live,
        warnings=(*view.warnings, *(warning for row in view.rows for warning in row.warnings))[:MAX_WARNINGS],
        history=previous.history,
        display=_display(view, sizes),
    )
    if finished_at is not None and previous.finished_at is None:
        status = status.model_copy(update={"history": (_entry(status, view), *previous.history)[:MAX_HISTORY]})
    return dump(status)


def _remembered(handled: Sequence[str], present: Sequence[str]) -> tuple[str, ...]:
    """The newest handled retry tokens, and those that the object still has: forgotten, they would be new requests."""
    older = [token for token in handled[MAX_RETRIES:] if token in present]
    return (*handled[: MAX_RETRIES - len(older)], *older)


def _gpu(view: View, previous: LoraFineTuneStatus, is_restarted: bool) -> GpuStatus | None:
    """GPU time of the object with what this pass adds; that of a new run begins at 0."""
    before = previous.gpu
    if before is None and not view.gpu_used:
        return None
    before = before or GpuStatus()
    return (before.model_copy(update={"run": GpuUse()}) if is_restarted else before).plus(view.gpu_used)


def _shown(row: StageStatus) -> StageStatus:
    """The row with a message that is safe on a terminal: it may repeat what a Pod or an Event says."""
    message = escaped(row.message)[:MAX_TEXT]
    return row if message == row.message else row.model_copy(update={"message": message})


def _finished_at(outcome: Outcome, previous: str | None, time: str) -> str | None:
    """When the run ended; a stalled run has not, and continues once the cause is removed."""
    if outcome is Outcome.STALLED:
        return previous
    return (previous or time) if outcome.is_final else None


def project_deletion(snapshot: Snapshot, decided: DeletionPlan, now: datetime) -> dict[str, Any]:
    """The whole status of a deleted object that still exists: what its runs recorded is kept.

    Args:
        snapshot: the previous status and the object's generation.
        decided: what the deletion does or waits for.
        now: time of the pass, with a time zone.
    """
    reason, message = decided.reason, decided.message
    previous = snapshot.previous
    recorded = [
        (each.type, each.status, each.reason, each.message)
        for each in previous.conditions
        if each.type in (*STAGE_CONDITIONS, AVAILABLE)
    ]
    drafts: list[_ConditionDraft] = [("Ready", "False", reason, message), ("Reconciling", "True", reason, message)]
    if reason != Reason.DELETED:
        drafts.append((CLEANED_UP, "False", reason, message))
    stopped = {"state": StageState.PENDING, "reason": "", "message": ""}
    rows = (row.model_copy(update=stopped) if row.state.has_job else row for row in previous.stages)
    changes = {
        "observed_generation": snapshot.generation,
        "phase": Phase.DELETING,
        "clean_up_job": decided.created or previous.clean_up_job,
        "conditions": _timed([*drafts, *recorded], snapshot, timestamp(now)),
        "progress": None,
        "stages": tuple(rows),
        "display": previous.display.model_copy(update={"progress": ""}) if previous.display else None,
    }
    return dump(previous.model_copy(update=changes))


def dump(status: LoraFineTuneStatus) -> dict[str, Any]:
    """Plain JSON values of a status, without unset fields."""
    dumped: dict[str, Any] = status.model_dump(mode="json", exclude_none=True)
    return {key: value for key, value in dumped.items() if value not in ([], {}, "")}


class UnwritableStatus(Exception):
    """The API server would refuse the status, or it could not be read again."""


def check_writable(status: Mapping[str, Any]) -> None:
    """Check a status before anything is done for it: if it is never written, the same is done again and again.

    Raises:
        UnwritableStatus: it is outside the limits of the CRD, which come from the same models.
    """
    try:
        LoraFineTuneStatus.model_validate(status)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, ("status", *first["loc"])))
        raise UnwritableStatus(f"the status cannot be written: {path}: {first['msg']}") from None


def _phase(view: View) -> Phase:
    if view.outcome in _OTHER_PHASES and not view.is_patient:
        return _OTHER_PHASES[view.outcome]
    if any(row.name is view.stage and row.state is StageState.QUEUED for row in view.rows):
        return Phase.QUEUED
    return Phase(PIPELINE[view.stage].phase) if view.stage else Phase.PENDING


def _conditions(view: View, snapshot: Snapshot, time: str) -> tuple[Condition, ...]:
    drafts: list[_ConditionDraft] = []
    ready: _ConditionStatus = "True" if view.outcome is Outcome.PUBLISHED else "False"
    drafts.append(("Ready", ready, view.reason, view.message))
    if view.outcome in (Outcome.RUNNING, Outcome.QUEUED) or view.is_patient:
        drafts.append(("Reconciling", "True", view.reason, view.message))
    elif view.outcome in _STALLED:
        drafts.append(("Stalled", "True", view.reason, view.message))
    drafts.append((AVAILABLE, *why_available(view.live, view.has_read_store, snapshot.previous)))
    drafts += [_stage_condition(row, view) for row in view.rows]
    return _timed(drafts, snapshot, time)


def _timed(drafts: Sequence[_ConditionDraft], snapshot: Snapshot, time: str) -> tuple[Condition, ...]:
    """Conditions with their transition times; one whose status is unchanged keeps its time."""
    before = {condition.type: condition for condition in snapshot.previous.conditions}
    conditions = []
    for condition_type, status, reason, message in drafts:
        known = before.get(condition_type)
        conditions.append(
            Condition(
                type=condition_type,
                status=status,
                reason=reason,
                # The API server would refuse the message of a spec with hundreds of problems.
                message=escaped(message)[:MAX_TEXT],
                last_transition_time=known.last_transition_time
                if known is not None and known.status == status
                else time,
                observed_generation=snapshot.generation,
            )
        )
    return tuple(conditions)


def _stage_condition(row: StageStatus, view: View) -> _ConditionDraft:
    condition_type = PIPELINE[row.name].condition
    is_refused = row.name is Stage.PUBLISH and view.publication is not None and not view.publication.published
    if row.state is StageState.SUCCEEDED and is_refused:
        return condition_type, "False", view.reason, view.message
    status: _ConditionStatus = "True" if row.state is StageState.SUCCEEDED else "False"
    return condition_type, status, row.reason or row.state.value, row.message


def _sizes(view: View) -> Sizes | None:
    bytes_of = {each.name: each.bytes for each in view.artifacts}
    metrics = {row.name: row.metrics for row in view.rows}
    base = metrics.get(Stage.PREPARE, {}).get("baseBytes")
    edge_model = edge_artifact(view.artifacts, view.candidates, view.resolved)
    edge = edge_model.bytes if edge_model is not None else None
    if base is None:
        return None
    return Sizes(
        base_bytes=int(base),
        adapter_bytes=bytes_of.get(ADAPTER),
        merged_bytes=bytes_of.get(MERGED),
        edge_bytes=edge,
        ratio=round(edge / base, 4) if edge is not None and base else None,
        trained_quantized_share=metrics.get(Stage.TRAIN, {}).get("quantizedShare"),
        # That of the first format: which one a choice takes is not known to quantize.
        edge_quantized_share=None if view.candidates else metrics.get(Stage.QUANTIZE, {}).get("quantizedShare"),
    )


def _entry(status: LoraFineTuneStatus, view: View) -> HistoryEntry:
    publication = status.publication
    is_pinned = publication is not None and publication.pinned
    is_own_version = view.outcome is Outcome.PUBLISHED and not is_pinned
    return HistoryEntry(
        generation=max(status.observed_generation, 0),
        outcome=status.phase.value if is_own_version else f"{status.phase}: {view.reason}",
        version=publication.version if publication else "",
        started_at=status.started_at,
        finished_at=status.finished_at,
        scores=status.scores.model_copy(update={"details": {}}) if status.scores and not is_pinned else None,
        sizes=None if is_pinned else status.sizes,
        gpu=status.gpu.run if status.gpu is not None and status.gpu.run != GpuUse() else None,
    )


def _display(view: View, sizes: Sizes | None) -> Display:
    scores = view.scores
    return Display(
        progress=_display_progress(view),
        base=format_share(scores.base) if scores else "",
        tuned=format_share(scores.tuned) if scores else "",
        edge=format_share(scores.edge) if scores else "",
        adapter_size=format_bytes(sizes.adapter_bytes) if sizes else "",
        edge_size=format_bytes(sizes.edge_bytes) if sizes else "",
        version=view.live.version[:SHORT_VERSION] if view.live else "",
        processes=next((each.parallelism.described for each in view.rows if each.parallelism is not None), ""),
        note=view.note,
    )


def _display_progress(view: View) -> str:
    """Progress of the running stage or, if none is running, the reason: users look at this column first."""
    progress = view.progress
    # What a stage waits for is news; how far it was before is not.
    if progress is not None and view.outcome is Outcome.RUNNING and view.reason in _IN_PROGRESS:
        return f"{progress.step}/{progress.total_steps} {progress.unit} ({progress.percent} %)"[:MAX_DISPLAY]
    is_in_phase = view.outcome in (Outcome.PUBLISHED, Outcome.SUSPENDED) or view.reason == Reason.JOB_RUNNING
    return "" if is_in_phase else view.reason[:MAX_DISPLAY]
