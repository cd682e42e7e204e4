"""Why a stage would run or not, as a sentence, from the rows before the forecast and those at its end."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from edgetune_contract.digest import prepare_digest, stage_digests
from edgetune_contract.pipeline import stages_of
from edgetune_contract.request import Resolved
from edgetune_contract.stages import Stage
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.status.object_status import SHORT_VERSION, LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import StageState, StageStatus
from edgetune_operator.decisions.forecast.inputs import Inputs
from edgetune_operator.decisions.plans import View


class ForecastAction(StrEnum):
    """What the next passes would do with the stage."""

    RUN = "run"
    CHECK = "check"
    """Of prepare only: check whether base and data have changed."""

    KEEP = "keep"
    SKIP = "skip"
    WAIT = "wait"
    FAIL = "fail"


@dataclass(frozen=True)
class StageForecast:
    """What the next passes would do with one stage."""

    stage: Stage
    action: ForecastAction
    why: str
    requests: str = ""
    """What its Job would request of a node; empty if that is not known yet, or there would be no Job."""

    gpus: int = 0
    """GPUs that its Job would request."""


@dataclass(frozen=True)
class Explanation:
    """The states that are compared."""

    spec: LoraFineTuneSpec
    before: LoraFineTuneSpec | None
    """Spec of the last run; None if there was none or it is unknown."""

    name: str
    previous: LoraFineTuneStatus
    inputs: Inputs
    created: Collection[Stage]
    """Stages whose Jobs would be created."""

    last: View
    """The view at the end of the forecast."""

    is_store_asked: bool

    def stages(self) -> tuple[StageForecast, ...]:
        """Every stage, in the order in which they would run; with a pin, publish comes first."""
        order = (Stage.PUBLISH, *list(Stage)[:-1]) if self.spec.publish.pin else Stage
        changes = self._changes()
        return tuple(self._explain(stage, changes.get(stage, [])) for stage in order)

    def _explain(self, stage: Stage, changes: Sequence[str]) -> StageForecast:
        row = next(row for row in self.last.rows if row.name is stage)
        recorded = next((row for row in self.previous.stages if row.name is stage), StageStatus(name=stage))
        is_recorded = recorded.state is StageState.SUCCEEDED and recorded.digest == row.digest
        if row.state is StageState.FAILED:
            return StageForecast(stage, ForecastAction.FAIL, row.message)
        if row.state is StageState.SKIPPED:
            return StageForecast(stage, ForecastAction.SKIP, "spec.merge.keep is false: quantize merges on the fly")
        if row.state is not StageState.SUCCEEDED:
            return StageForecast(stage, ForecastAction.WAIT, self.last.message)
        if stage is Stage.PREPARE and stage in self.created and is_recorded:
            return StageForecast(stage, ForecastAction.CHECK, "whether base and data have changed")
        action = ForecastAction.RUN if stage in self.created else ForecastAction.KEEP
        if stage is Stage.PUBLISH and (pin := self.spec.publish.pin[:SHORT_VERSION]):
            what = "points latest.json at" if stage in self.created else "latest.json names"
            return StageForecast(stage, action, f"{what} version {pin}, as set by spec.publish.pin")
        if stage in self.created:
            return StageForecast(stage, action, self._why_run(row, recorded, changes))
        where = "done" if is_recorded else "its output is in the store"
        return StageForecast(stage, action, f"{where}, digest {row.digest[:SHORT_VERSION]}")

    def _why_run(self, row: StageStatus, recorded: StageStatus, changes: Sequence[str]) -> str:
        stage = row.name
        if stage is not Stage.PREPARE and stage not in self.inputs.known_digests(self.name):
            return "unless its output for the inputs that prepare finds is in the store"
        if recorded.state is StageState.FAILED:
            return f"it failed: {recorded.reason}"
        if stage is Stage.QUANTIZE and not changes and self.inputs.added_formats:
            added = ", ".join(self.inputs.added_formats)
            return f"changed: spec.evaluation.gates.maxEdgeBytes, which no longer excludes {added}"
        if changes:
            return f"changed: {', '.join(changes)}"
        if not recorded.digest:
            return "never finished"
        order = stages_of(self.spec.parameters)
        before = [each for each in order[1 : order.index(stage)] if each in self.created]
        if before:
            return f"{before[-1]} runs again"
        if recorded.digest != row.digest:
            return "the stage's version or the object's name changed"
        if recorded.state is not StageState.SUCCEEDED:
            return "never finished"
        if not self.is_store_asked:
            return "the profile's store changed"
        return "latest.json names another version" if stage is Stage.PUBLISH else "its output is not in the store"

    def _changes(self) -> dict[Stage, list[str]]:
        """By stage, the changed fields because of which it runs.

        A field is listed for prepare if it changes prepare's digest, and for the first later stage whose digest it
        changes: the digests of all following stages include that one, but not prepare's.
        """
        if self.before is None:
            return {}
        old, new = (spec.model_dump(mode="json", exclude_none=True) for spec in (self.before, self.spec))
        resolved = self.inputs.resolved()
        was = _digests(self.before, resolved, self.name)
        changes: dict[Stage, list[str]] = {}
        for path in _changed_paths(old, new):
            try:
                edited = LoraFineTuneSpec.model_validate(_with(old, new, path))
            except ValidationError:  # valid only together with another change
                edited = self.spec
            digests = _digests(edited, resolved, self.name)
            changed = [stage for stage in digests if digests[stage] != was.get(stage)]
            later = [stage for stage in changed if stage is not Stage.PREPARE]
            for stage in {*changed[:1], *later[:1]}:
                changes.setdefault(stage, []).append(".".join(("spec", *path)))
        return changes


def _digests(spec: LoraFineTuneSpec, resolved: Resolved, name: str) -> dict[Stage, str]:
    parameters = spec.parameters
    if (parameters.dataset.eval is None) != (resolved.eval is None):
        resolved = resolved.model_copy(update={"eval": None if parameters.dataset.eval is None else resolved.train})
    return {Stage.PREPARE: prepare_digest(parameters), **stage_digests(parameters, resolved, name)}


def _changed_paths(before: Any, after: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from _changed_paths(before.get(key), after.get(key), (*path, key))
    elif before != after:
        yield path


def _with(before: Mapping[str, Any], after: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """`before` with one field as `after` has it."""
    name, *rest = path
    value = _with(before.get(name) or {}, after.get(name) or {}, rest) if rest else after.get(name)
    return {key: each for key, each in {**before, name: value}.items() if each is not None}
