"""What `edgetune plan` says."""

from typing import Any

from edgetune_cli.preview import preview
from edgetune_contract.digest import prepare_digest, stage_digests
from edgetune_contract.request import Resolved
from edgetune_operator.api.objects import LoraFineTuneStatus, StageState, StageStatus
from support.process_jobs import spec_of

RESOLVED = Resolved(base="a" * 64, train="b" * 64)


def finished(spec: Any) -> LoraFineTuneStatus:
    """Status after all stages of a spec are done."""
    from edgetune_contract.stages import Stage

    digests = {Stage.PREPARE: prepare_digest(spec.parameters), **stage_digests(spec.parameters, RESOLVED, "m")}
    rows = tuple(
        StageStatus(name=stage, state=StageState.SUCCEEDED, digest=digest) for stage, digest in digests.items()
    )
    return LoraFineTuneStatus(stages=rows, resolved=RESOLVED)


def lines(before: Any, after: Any) -> list[str]:
    previous = before.model_dump(mode="json", exclude_none=True)
    return [f"{p.stage}: {p.action} {p.why}" for p in preview("m", after, finished(before), previous)]


def test_before_the_first_run_every_stage_would_run() -> None:
    previews = preview("m", spec_of(), LoraFineTuneStatus(), None)
    assert {p.action for p in previews} == {"run"}
    assert previews[0].why == "never finished"


def test_an_unchanged_object_only_has_its_inputs_checked() -> None:
    actions = [line.split()[1] for line in lines(spec_of(), spec_of())]
    assert actions == ["check", "keep", "keep", "keep", "keep", "keep"]


def test_an_edit_of_the_evaluation_runs_evaluate_and_publish_and_names_the_field() -> None:
    changed = lines(spec_of(), spec_of(evaluation={"maxNewTokens": 8}))
    assert [line.split()[1] for line in changed] == ["check", "keep", "keep", "keep", "run", "run"]
    assert changed[4] == "evaluate: run changed: spec.evaluation.maxNewTokens"
    assert changed[5] == "publish: run evaluate runs again"


def test_new_training_data_runs_prepare_and_leaves_the_rest_to_what_it_finds() -> None:
    changed = lines(spec_of(), spec_of(dataset={"train": {"uri": "s3://datasets/other.jsonl"}}))
    assert changed[0] == "prepare: run changed: spec.dataset.train.uri"
    assert changed[1].startswith("train: run unless the store has its output")


def test_a_pin_comes_first_and_runs_publish_alone() -> None:
    pinned = spec_of(publish={"pin": "a" * 64})

    assert lines(spec_of(), pinned)[0] == (
        f"publish: run points latest.json at version {'a' * 12}, as spec.publish.pin says"
    )
    assert [line.split()[1] for line in lines(spec_of(), pinned)] == ["run", "check", "keep", "keep", "keep", "keep"]
    assert lines(pinned, pinned)[0] == (f"publish: keep latest.json names version {'a' * 12}, as spec.publish.pin says")
    assert lines(pinned, spec_of())[-1] == "publish: run changed: spec.publish.pin"


def test_merge_is_skipped_when_its_output_is_not_kept() -> None:
    changed = lines(spec_of(), spec_of(merge={"keep": False}))
    assert changed[2] == "merge: skip spec.merge.keep is false: quantize merges on the fly"
    assert changed[3].startswith("quantize: run changed: spec.merge.keep")
