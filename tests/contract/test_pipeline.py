"""The pipeline's table: the stages of a run, and the inputs and outputs of each."""

import pytest

from edgetune_contract.digest import stage_digests
from edgetune_contract.pipeline import (
    ADAPTER,
    BASE,
    EVALUATION,
    MERGED,
    PIPELINE,
    PREPARED,
    inputs_of,
    maker_of,
    outputs_of,
    stages_of,
)
from edgetune_contract.request import Resolved, Result
from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_contract.stages import Stage

RESOLVED = Resolved(base="a" * 64, train="b" * 64)
BNB, GGUF = EdgeFormat.BITSANDBYTES_INT8.artifact, EdgeFormat.GGUF_Q8_0.artifact


def parameters(*, keep: bool = True, **sections: object) -> Parameters:
    return Parameters.model_validate(
        {
            "baseModel": {"uri": "s3://models/base"},
            "dataset": {"train": {"uri": "s3://datasets/train.jsonl"}},
            "merge": {"keep": keep},
            "quantization": {"formats": ["GGUF-Q8_0", "BitsAndBytesInt8"]},
            **sections,
        }
    )


KEPT = parameters()
NOT_KEPT = parameters(keep=False)


def test_every_stage_has_a_row_with_its_own_condition_and_phase() -> None:
    assert list(PIPELINE) == list(Stage)
    assert len({definition.condition for definition in PIPELINE.values()}) == len(Stage)
    assert len({definition.phase for definition in PIPELINE.values()}) == len(Stage)


@pytest.mark.parametrize(
    ("stage", "kept", "not_kept"),
    [
        (Stage.PREPARE, (), ()),
        (Stage.TRAIN, (BASE, PREPARED), (BASE, PREPARED)),
        (Stage.QUANTIZE, (MERGED,), (BASE, ADAPTER)),
        (Stage.EVALUATE, (BASE, PREPARED, ADAPTER, MERGED, GGUF, BNB), (BASE, PREPARED, ADAPTER, GGUF, BNB)),
        (Stage.PUBLISH, (), ()),
    ],
)
def test_without_a_merged_model_its_readers_read_the_inputs_of_merge(
    stage: Stage, kept: tuple[str, ...], not_kept: tuple[str, ...]
) -> None:
    assert inputs_of(stage, KEPT) == kept
    assert inputs_of(stage, NOT_KEPT) == not_kept


def test_a_merged_model_that_is_not_scored_is_not_read() -> None:
    scored = parameters(evaluation={"models": ["Base", "Tuned", "Edge"]})

    assert set(inputs_of(Stage.EVALUATE, KEPT)) - set(inputs_of(Stage.EVALUATE, scored)) == {MERGED}


@pytest.mark.parametrize("run", [KEPT, NOT_KEPT])
def test_every_input_but_the_base_is_made_by_an_earlier_stage_of_the_run(run: Parameters) -> None:
    made: set[str] = set()
    for stage in stages_of(run):
        assert set(inputs_of(stage, run)) - {BASE} <= made
        assert all(maker_of(artifact) is stage for artifact in outputs_of(stage, run))
        made.update(outputs_of(stage, run))

    assert made == {PREPARED, ADAPTER, GGUF, BNB, EVALUATION} | ({MERGED} if run.merge.keep else set())


@pytest.mark.parametrize("run", [KEPT, NOT_KEPT])
def test_the_digests_are_those_of_the_runs_stages(run: Parameters) -> None:
    assert tuple(stage_digests(run, RESOLVED, "sensor-faults")) == stages_of(run)[1:]


def test_every_report_is_a_field_of_the_result() -> None:
    reported = {definition.reports for definition in PIPELINE.values() if definition.reports}

    assert reported <= set(Result.model_fields)


def test_no_stage_makes_the_base() -> None:
    with pytest.raises(KeyError):
        maker_of(BASE)


def test_an_importance_matrix_of_k_quants_needs_the_training_rows() -> None:
    def inputs(*formats: str) -> tuple[str, ...]:
        quantization = {"formats": list(formats), "importanceMatrix": True}
        return inputs_of(Stage.QUANTIZE, parameters(quantization=quantization))

    assert inputs("GGUF-Q8_0", "GGUF-Q6_K") == (MERGED, PREPARED)
    assert inputs("GGUF-Q8_0") == (MERGED,)
    auto = parameters(
        quantization={"formats": "Auto", "importanceMatrix": True}, evaluation={"gates": {"maxEdgeBytes": "1Gi"}}
    )
    assert PREPARED in inputs_of(Stage.QUANTIZE, auto)
