"""The candidates of formats Auto: which formats are written, and how a run with them is identified."""

from collections.abc import Callable
from typing import Any

import pytest

from edgetune_contract.digest import prepared_digest, recipe_digest, stage_digests
from edgetune_contract.pipeline import inputs_of, outputs_of
from edgetune_contract.request import MAX_RESULT_BYTES, Artifact, ModelScores, Resolved, Result, Scores
from edgetune_contract.results.candidates import MAX_NOTE, Candidate, PossibleFormat, formats_to_write
from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_contract.stages import Stage

LARGE, MIDDLE, SMALL = EdgeFormat.COMPRESSED_TENSORS_W8A8, EdgeFormat.BITSANDBYTES_INT8, EdgeFormat.GGUF_Q8_0
POSSIBLE = tuple(
    PossibleFormat(format=each, least_bytes=size) for each, size in ((LARGE, 300), (MIDDLE, 200), (SMALL, 100))
)
CONTENT = Resolved(base="a" * 64, train="b" * 64)
FOUND = CONTENT.model_copy(update={"possible": POSSIBLE, "formats": (MIDDLE, SMALL)})


def auto(**evaluation: Any) -> Parameters:
    return Parameters.model_validate(
        {
            "baseModel": {"uri": "s3://models/base"},
            "dataset": {"train": {"uri": "s3://datasets/train.jsonl"}},
            "quantization": {"formats": "Auto"},
            "evaluation": {"gates": {"maxEdgeBytes": "250"}, **evaluation},
        }
    )


def nothing(_: tuple[EdgeFormat, ...]) -> bool:
    return False


@pytest.mark.parametrize(
    ("most_bytes", "is_written", "formats"),
    [
        (None, nothing, (LARGE, MIDDLE, SMALL)),
        (300, nothing, (LARGE, MIDDLE, SMALL)),
        (299, nothing, (MIDDLE, SMALL)),
        (100, nothing, (SMALL,)),
        (99, nothing, ()),
        (100, lambda formats: formats == (MIDDLE, SMALL), (MIDDLE, SMALL)),
        (100, lambda formats: formats[0] is LARGE, (LARGE, MIDDLE, SMALL)),
        (100, lambda formats: formats[0] in (LARGE, MIDDLE), (MIDDLE, SMALL)),
        (299, lambda formats: formats == (SMALL,), (MIDDLE, SMALL)),
    ],
)
def test_formats_that_the_limit_excludes_are_not_written_and_those_that_are_there_are_not_written_again(
    most_bytes: int | None, is_written: Callable[[tuple[EdgeFormat, ...]], bool], formats: tuple[EdgeFormat, ...]
) -> None:
    assert formats_to_write(POSSIBLE, most_bytes, is_written) == formats


def test_auto_is_written_as_the_word() -> None:
    parameters = auto()

    assert parameters.quantization.is_auto
    assert parameters.model_dump(mode="json")["quantization"]["formats"] == "Auto"
    assert Parameters.model_validate_json(parameters.model_dump_json()) == parameters


def test_the_stages_of_auto_write_and_read_the_formats_that_prepare_found() -> None:
    formats = (MIDDLE, SMALL)
    artifacts = tuple(each.artifact for each in formats)

    assert outputs_of(Stage.QUANTIZE, auto(), formats) == artifacts
    assert inputs_of(Stage.EVALUATE, auto(), formats)[-2:] == artifacts
    assert outputs_of(Stage.QUANTIZE, auto()) == ()


def test_the_formats_that_are_written_are_part_of_quantize_and_not_of_prepare() -> None:
    fewer = FOUND.model_copy(update={"formats": (SMALL,)})
    one, other = (stage_digests(auto(), each, "name") for each in (FOUND, fewer))

    assert prepared_digest(auto(), FOUND) == prepared_digest(auto(), fewer) == prepared_digest(auto(), CONTENT)
    assert {stage for stage in one if one[stage] != other[stage]} == {Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH}


@pytest.mark.parametrize(
    "evaluation",
    [
        {"gates": {"maxEdgeBytes": "150"}},
        {"gates": {"maxEdgeBytes": "250", "minScore": 0.9}},
        {"gates": {"maxEdgeBytes": "250"}, "edge": {"memory": "1Gi"}},
        {"gates": {"maxEdgeBytes": "250"}, "edge": {"minTokensPerSecond": 3}},
    ],
)
def test_a_changed_limit_of_auto_evaluates_again_and_lets_prepare_look(evaluation: dict[str, Any]) -> None:
    one, other = (stage_digests(each, FOUND, "name") for each in (auto(), auto(**evaluation)))

    assert {stage for stage in one if one[stage] != other[stage]} == {Stage.EVALUATE, Stage.PUBLISH}
    assert recipe_digest(auto()) != recipe_digest(auto(**evaluation))


def evaluated(rows: int, note: str) -> Result:
    """A result of evaluate with many candidates, and long figures."""
    scores = Scores(base=1 / 3, tuned=2 / 3, merged=2 / 3, edge=2 / 3, examples=500)
    details = {
        name: ModelScores(keyword_recall=1 / 3, exact_match=1 / 7, loss=1.2345678901234567, runtime="transformers 5.23")
        for name in ("base", "tuned", "merged", "edge")
    }
    candidate = Candidate(
        format=LARGE,
        bytes=16_060_522_240,
        score=0.6979166666666666,
        loss=1.2345678901234567,
        tokens_per_second=10.17,
        peak_memory_bytes=16_821_497_344,
        limits=("edge.maxPeakMemory", "edge.minTokensPerSecond"),
        note=note,
    )
    return Result(
        stage=Stage.EVALUATE,
        digest="0" * 64,
        artifacts=(Artifact(name="evaluation", uri=f"s3://{'x' * 240}", bytes=1, sha256="0" * 64),),
        scores=scores.model_copy(update={"details": details}),
        facts={"device": "AMD EPYC 9R14", "decoding": "greedy"},
        warnings=("w" * 300,),
        candidates=(candidate,) * rows,
    )


def test_a_table_of_eight_candidates_fits_into_a_termination_message() -> None:
    result = evaluated(8, "")

    assert Result.decode(result.encode().decode()).candidates == result.candidates


def test_of_a_table_that_is_too_long_first_the_notes_are_left_out_and_then_the_rows() -> None:
    noted, long = evaluated(10, "n" * MAX_NOTE), evaluated(16, "n" * MAX_NOTE)

    bare = Result.decode(noted.encode().decode()).candidates

    assert bare == tuple(each.model_copy(update={"note": ""}) for each in noted.candidates)
    assert Result.decode(long.encode().decode()).candidates == ()
    assert len(long.encode()) <= MAX_RESULT_BYTES
