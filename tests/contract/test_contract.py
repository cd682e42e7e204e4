"""Requests, results and exit codes: the contract between the operator and its containers."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgetune_contract.request import (
    MAX_RESULT_BYTES,
    Artifact,
    ModelScores,
    Publication,
    Request,
    Resolved,
    Result,
    Scores,
    StoreLocation,
)
from edgetune_contract.results.measurement import EdgeMeasurement, ModelSpeed
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import ExitCode, Stage, reason_for
from edgetune_contract.values.quantities import parse_bytes
from edgetune_operator.api.spec_check import parse_spec
from support.builders import failed_result, lora_fine_tune

DIGEST = "d" * 64
LATER = tuple(Result(stage=stage, digest=DIGEST, metrics={"seconds": 1.5}) for stage in list(Stage)[1:])


def test_the_stages_run_in_the_designs_order() -> None:
    assert [stage.value for stage in Stage] == ["prepare", "train", "merge", "quantize", "evaluate", "publish"]


def test_exit_codes_determine_what_the_job_controller_does() -> None:
    assert [code for code in ExitCode if code.fails_job] == [ExitCode.INVALID, ExitCode.DENIED, ExitCode.DIVERGED]
    assert [code for code in ExitCode if code.is_ignored] == [ExitCode.INTERRUPTED, ExitCode.PEER_LOST]
    assert {int(code) for code in ExitCode} == {0, 10, 11, 12, 13, 14, 75, 76}


def test_an_exit_code_outside_the_contract_is_a_bug() -> None:
    assert reason_for(10) == "InvalidInput"
    assert reason_for(137) == "InternalError"


def test_a_request_survives_encoding_and_decoding() -> None:
    spec = parse_spec(
        lora_fine_tune().with_spec("evaluation.gates", {"minScore": 0.8, "maxEdgeBytes": 5}).build()["spec"]
    )
    request = Request(
        namespace="team-a",
        name="sensor-faults",
        stage=Stage.TRAIN,
        digest=DIGEST,
        store=StoreLocation(uri="s3://bucket/prefix/team-a", endpoint="http://minio:9000", path_style=True),
        parameters=spec.parameters,
        resolved=Resolved(base="a" * 64, train="b" * 64),
    )

    assert Request.decode(request.encode()) == request


def test_a_request_of_another_contract_version_is_refused() -> None:
    with pytest.raises(ValidationError, match="contractVersion"):
        Request.decode(json.dumps({"contractVersion": 2}))


def test_a_result_that_fits_is_encoded_completely() -> None:
    result = Result(
        stage=Stage.EVALUATE,
        digest=DIGEST,
        seconds=12.5,
        artifacts=(Artifact(name="adapter", uri="s3://b/k", bytes=5, sha256=DIGEST),),
        metrics={"rows": 64.0},
        facts={"precision": "BF16"},
        warnings=("few rows",),
        scores=Scores(base=0.1, tuned=0.9, edge=0.88, drop=0.02, details={"base": ModelScores(loss=2.0)}),
        publication=Publication(published=True, version=DIGEST, pointer="s3://b/latest.json"),
    )

    assert Result.decode(result.encode().decode()) == result


def test_facts_and_warnings_of_later_stages_are_left_out_first() -> None:
    later = tuple(each.model_copy(update={"facts": {"dtype": "x" * 800}, "warnings": ("few rows",)}) for each in LATER)
    result = Result(stage=Stage.PREPARE, digest=DIGEST, facts={"precision": "BF16"}, warnings=("kept",), done=later)

    sent = Result.decode(result.encode().decode())

    assert sent == result.model_copy(update={"done": LATER})


def test_figures_of_later_stages_are_left_out_before_any_of_their_results() -> None:
    """A revert needs no GPU: the evaluation of a large model has one, and its result must not be what is left out."""
    scores, result = done_before(prefix="research-team-a")

    sent = Result.decode(result.encode().decode())

    assert len(result._to_json()) > MAX_RESULT_BYTES
    assert [each.stage for each in sent.done] == list(Stage)[1:]
    assert [each.artifacts for each in sent.done] == [each.artifacts for each in result.done]
    assert sent.metrics == result.metrics
    evaluated = sent.done[3]
    assert evaluated.metrics == {"quantizedShare": 0.75}
    assert evaluated.scores == scores


def test_scores_by_model_of_an_earlier_evaluation_are_left_out_after_the_figures() -> None:
    scores, result = done_before(prefix="p" * 240)

    evaluated = Result.decode(result.encode().decode()).done[3]

    assert evaluated.scores == scores.model_copy(update={"details": {}})


def done_before(prefix: str) -> tuple[Scores, Result]:
    """The scores in the store, and the result of a prepare that finds all later stages there."""
    uri = f"s3://company-artifacts/edgetune/{prefix}/stages/quantize/" + DIGEST + "/43e72831c8629910/edge-bnb-int8"
    artifact = Artifact(name="edge-bnb-int8", uri=uri, bytes=10**10, sha256=DIGEST)
    metrics = {f"someLongerFigure{index}": 0.7448556370000006 for index in range(9)} | {"quantizedShare": 0.75}
    details = {name: ModelScores(keyword_recall=0.9, exact_match=0.9, loss=1.66) for name in ("base", "tuned", "edge")}
    scores = Scores(base=0.1, tuned=0.9, edge=0.9, examples=500, details=details)
    later = tuple(
        Result(
            stage=stage,
            digest=DIGEST,
            artifacts=(artifact,) if stage is not Stage.PUBLISH else (),
            metrics=metrics,
            scores=scores if stage is Stage.EVALUATE else None,
            cached=True,
        )
        for stage in list(Stage)[1:]
    )
    return scores, Result(stage=Stage.PREPARE, digest=DIGEST, artifacts=(artifact,), metrics=metrics, done=later)


@pytest.mark.parametrize("length", [100, 1024])
def test_the_artifacts_of_all_formats_fit_with_any_store(length: int) -> None:
    folder = f"s3://{'b' * (length - 5)}/stages/quantize/{DIGEST}/0123456789abcdef"
    artifacts = tuple(
        Artifact(name=each.artifact, uri=f"{folder}/{each.artifact}", bytes=10**13, sha256=DIGEST)
        for each in EdgeFormat
    )
    metrics = {f"figure{number}": 1234567.891 for number in range(16)}
    result = Result(stage=Stage.QUANTIZE, digest=DIGEST, artifacts=artifacts, metrics=metrics)

    encoded = result.encode()

    assert len(encoded) <= MAX_RESULT_BYTES
    assert Result.decode(encoded.decode()).artifacts == artifacts


def evaluated(length: int) -> Result:
    """A result of evaluate with the scores and speeds of all formats, long figures, and a URI of more than `length`."""
    runtime, (_, *further) = "llama.cpp (llama-cpp-python 0.3.36)", EdgeFormat
    speed = ModelSpeed(
        runtime=runtime,
        prompt_tokens_per_second=12345.6,
        generation_tokens_per_second=1234.56,
        time_to_first_token_seconds=123.4567,
        peak_memory_bytes=123_456_789_012,
        baseline_memory_bytes=1_234_567_890,
    )
    measured = EdgeMeasurement(
        **speed.model_dump(by_alias=False),
        cpu="Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz",
        threads=128,
        prompt_tokens=4096,
        new_tokens=32,
        base=speed,
        further={each.artifact: speed for each in further},
    )
    models = ("base", "tuned", "merged", "edge", *measured.further)
    score = ModelScores(keyword_recall=1 / 3, exact_match=1 / 7, loss=1.2345678901234567, runtime=runtime)
    return Result(
        stage=Stage.EVALUATE,
        digest=DIGEST,
        artifacts=(Artifact(name="evaluation", uri=f"s3://{'b' * length}/evaluation", bytes=10**10, sha256=DIGEST),),
        metrics={f"{each}Seconds": 1234.0381161209989 for each in models} | {"examples": 500.0},
        facts={"device": "NVIDIA H100 80GB HBM3", "loaded": "x" * 300},
        warnings=("w" * 300,),
        scores=Scores(
            base=1 / 3, tuned=2 / 3, merged=2 / 3, edge=1 / 7, examples=500, details=dict.fromkeys(models, score)
        ),
        edge=measured,
    )


def test_scores_of_all_formats_lose_digits_and_runtimes_before_any_of_them_is_left_out() -> None:
    result = evaluated(40)

    sent = Result.decode(result.encode().decode())

    assert result.scores is not None
    brief = ModelScores(keyword_recall=0.3333, exact_match=0.1429, loss=1.2346)
    assert sent.scores == result.scores.model_copy(update={"details": dict.fromkeys(result.scores.details, brief)})
    assert sent.edge == result.edge
    assert sent.metrics == result.metrics


@pytest.mark.parametrize("length", [600, 1800])
def test_the_scores_and_speeds_of_all_formats_fit_with_any_store(length: int) -> None:
    result = evaluated(length)

    encoded = result.encode()

    sent = Result.decode(encoded.decode())
    assert len(encoded) <= MAX_RESULT_BYTES
    assert result.scores is not None
    assert sent.scores is not None
    assert sent.scores.model_copy(update={"details": {}}) == result.scores.model_copy(update={"details": {}})
    assert set(sent.scores.details) >= {"base", "tuned", "merged", "edge"}
    assert result.edge is not None
    assert sent.edge == result.edge.model_copy(update={"further": {}})
    assert "the speeds of further edge formats are in the manifest" in sent.warnings
    left_out = set(sent.scores.details) < set(result.scores.details)
    assert ("the scores of further edge formats are in the manifest" in sent.warnings) == left_out
    assert sent.artifacts == result.artifacts


def test_an_artifact_elsewhere_keeps_its_uri() -> None:
    artifacts = tuple(
        Artifact(name=name, uri=f"s3://{'b' * 1024}/{name}/deep", bytes=1, sha256=DIGEST) for name in ("one", "two")
    )
    warnings = tuple("x" * 200 for _ in range(20))
    result = Result(stage=Stage.QUANTIZE, digest=DIGEST, artifacts=artifacts, warnings=warnings)

    assert Result.decode(result.encode().decode()).artifacts == artifacts


def test_the_first_artifact_has_a_uri() -> None:
    artifact = {"name": "edge-bnb-int8", "bytes": 1, "sha256": DIGEST}

    with pytest.raises(ValidationError, match=r"artifacts\.0\.uri"):
        Result.decode(json.dumps({"stage": "quantize", "digest": DIGEST, "artifacts": [artifact]}))


def test_results_of_later_stages_are_left_out_next() -> None:
    facts = {f"fact{index}": "x" * 40 for index in range(68)}
    result = Result(stage=Stage.PREPARE, digest=DIGEST, facts=facts, warnings=("kept",), done=LATER)

    sent = Result.decode(result.encode().decode())

    assert 0 < len(sent.done) < len(LATER)
    without_figures = tuple(each.model_copy(update={"metrics": {}}) for each in LATER)
    assert sent == result.model_copy(update={"done": without_figures[: len(sent.done)]})


def test_facts_are_left_out_then() -> None:
    facts = {f"fact{index}": "x" * 40 for index in range(90)}
    result = Result(stage=Stage.PREPARE, digest=DIGEST, facts=facts, warnings=("kept",), done=LATER)

    sent = Result.decode(result.encode().decode())

    assert sent == result.model_copy(update={"done": (), "facts": {}})


def test_the_last_warnings_are_left_out_and_counted() -> None:
    warnings = tuple(f"warning {index}: {'x' * 200}" for index in range(40))
    result = Result(stage=Stage.PREPARE, digest=DIGEST, warnings=warnings, metrics={"rows": 600.0})

    sent = Result.decode(result.encode().decode())

    kept = len(sent.warnings) - 1
    assert 10 < kept < 40
    assert sent.warnings == (*warnings[:kept], f"{40 - kept} more warnings are in the manifest")
    assert sent.metrics == result.metrics


def test_a_result_that_cannot_be_shortened_enough_is_an_error() -> None:
    result = Result(stage=Stage.TRAIN, digest=DIGEST, metrics={f"figure{index}": 1.0 for index in range(400)})

    with pytest.raises(ValueError, match=r"the result of train has \d+ bytes, more than 4096"):
        result.encode()


def test_a_long_failure_keeps_its_beginning_and_its_end() -> None:
    result = failed_result(Stage.TRAIN, DIGEST, 1, "InternalError", "first line\n" + "x" * 9000 + "\nlast line")

    assert result.failure is not None
    assert result.failure.message.startswith("first line\nxxx")
    assert result.failure.message.endswith("xxx\nlast line")
    assert " … " in result.failure.message


def test_a_file_name_that_is_not_utf8_is_reported_with_replacements() -> None:
    result = failed_result(Stage.PREPARE, DIGEST, 10, "InvalidInput", "bad file: caf\udce9.jsonl")

    assert Result.decode(result.encode().decode()).failure is not None
    assert result.failure is not None
    assert result.failure.message == "bad file: caf?.jsonl"


@given(message=st.text() | st.text(st.characters(categories=["Cc", "Cs", "So"])), repeats=st.integers(1, 3000))
def test_every_failure_fits_and_can_be_decoded(message: str, repeats: int) -> None:
    result = failed_result(Stage.TRAIN, DIGEST, 1, "InternalError", message * repeats, step=120)

    encoded = result.encode()

    assert len(encoded) <= MAX_RESULT_BYTES
    assert Result.decode(encoded.decode()) == result


results = st.builds(
    Result,
    stage=st.sampled_from(Stage),
    digest=st.just(DIGEST),
    cached=st.booleans(),
    seconds=st.floats(0, 1e6),
    metrics=st.dictionaries(st.text(max_size=20), st.floats(allow_nan=False, allow_infinity=False), max_size=10),
    facts=st.dictionaries(st.text(max_size=20), st.text(max_size=400), max_size=20),
    warnings=st.lists(st.text(max_size=600), max_size=40).map(tuple),
    done=st.just(LATER) | st.just(()),
)


@given(result=results)
def test_every_result_fits_and_keeps_its_figures(result: Result) -> None:
    encoded = result.encode()

    sent = Result.decode(encoded.decode())
    assert len(encoded) <= MAX_RESULT_BYTES
    assert (sent.stage, sent.digest, sent.metrics) == (result.stage, result.digest, result.metrics)


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [("0", 0), ("17", 17), ("500M", 500_000_000), ("8Gi", 8 * 2**30), ("1Ki", 1024), ("2k", 2000), ("1Ti", 2**40)],
)
def test_quantities_are_bytes_as_in_kubernetes(quantity: str, expected: int) -> None:
    assert parse_bytes(quantity) == expected


@pytest.mark.parametrize("quantity", ["", "8GiB", "1.5Gi", "-1", "Gi", "8 Gi", "1E"])
def test_an_invalid_quantity_is_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="is not a valid size: use an integer with an optional suffix Ki"):
        parse_bytes(quantity)


@pytest.mark.parametrize("text", ["", "{}", "null", "[]", '{"stage": "train"}', "Traceback (most recent call last):"])
def test_a_text_that_is_not_a_result_is_refused(text: Any) -> None:
    with pytest.raises(ValidationError):
        Result.decode(text)
