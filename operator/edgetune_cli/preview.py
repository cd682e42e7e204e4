"""What a run would do, and why, without running anything."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune_contract.digest import pin_digest, prepare_digest, stage_digests
from edgetune_contract.stages import Stage
from edgetune_operator.api.objects import LoraFineTuneSpec, LoraFineTuneStatus, StageState, StageStatus


@dataclass(frozen=True)
class StagePreview:
    """What a run would do with one stage."""

    stage: Stage
    action: str
    """run, check, keep, or skip."""

    why: str


def preview(
    name: str, spec: LoraFineTuneSpec, status: LoraFineTuneStatus, previous_spec: Mapping[str, Any] | None
) -> tuple[StagePreview, ...]:
    """Which stages would run, by digest; with a pin, publish comes first.

    Args:
        name: name of the object.
        spec: the spec as it is now.
        status: status of the last run; empty if there was none.
        previous_spec: spec of the last run with its defaults; None if there was none.
    """
    rows = {row.name: row for row in status.stages}
    changes = (
        list(_changed_paths(previous_spec, spec.model_dump(mode="json", exclude_none=True))) if previous_spec else []
    )
    previews = [_prepare(rows.get(Stage.PREPARE), spec, changes)]
    inputs_known = previews[0].action == "check" and status.resolved is not None
    digests = stage_digests(spec.parameters, status.resolved, name) if inputs_known and status.resolved else {}
    for stage in list(Stage)[1:]:
        if stage is Stage.MERGE and not spec.merge.keep:
            previews.append(StagePreview(stage, "skip", "spec.merge.keep is false: quantize merges on the fly"))
        elif stage is Stage.PUBLISH and spec.publish.pin:
            previews.insert(0, _pinned(rows.get(stage), spec.publish.pin, pin_digest(spec.parameters, name)))
        elif not digests:
            previews.append(
                StagePreview(stage, "run", "unless the store has its output for the inputs that prepare finds")
            )
        else:
            previews.append(_later(stage, rows.get(stage), digests[stage], changes, previews))
    return tuple(previews)


def _prepare(row: StageStatus | None, spec: LoraFineTuneSpec, changes: list[str]) -> StagePreview:
    if row is None or row.state is not StageState.SUCCEEDED:
        return StagePreview(Stage.PREPARE, "run", "never finished")
    if row.digest != prepare_digest(spec.parameters):
        return StagePreview(Stage.PREPARE, "run", _changed(changes))
    return StagePreview(Stage.PREPARE, "check", "looks whether base and data are still the same")


def _pinned(row: StageStatus | None, pin: str, digest: str) -> StagePreview:
    if row is not None and row.state is StageState.SUCCEEDED and row.digest == digest:
        return StagePreview(Stage.PUBLISH, "keep", f"latest.json names version {pin[:12]}, as spec.publish.pin says")
    return StagePreview(Stage.PUBLISH, "run", f"points latest.json at version {pin[:12]}, as spec.publish.pin says")


def _later(
    stage: Stage, row: StageStatus | None, digest: str, changes: list[str], before: list[StagePreview]
) -> StagePreview:
    if row is not None and row.state is StageState.SUCCEEDED and row.digest == digest:
        return StagePreview(stage, "keep", f"done, digest {digest[:12]}")
    reruns = [preview.stage for preview in before if preview.action == "run"]
    if row is None or not row.digest or row.digest == digest:
        return StagePreview(stage, "run", "never finished")
    if reruns:
        return StagePreview(stage, "run", f"{reruns[-1]} runs again")
    return StagePreview(stage, "run", _changed(changes))


def _changed(paths: list[str]) -> str:
    return f"changed: {', '.join(paths)}" if paths else "the stage's version or the object's name changed"


def _changed_paths(before: Any, after: Any, path: str = "spec") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from _changed_paths(before.get(key), after.get(key), f"{path}.{key}")
    elif before != after:
        yield path
