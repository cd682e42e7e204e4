"""Gates: each refusal has the figure and the limit."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_contract.evaluation import EdgeBudget, EvaluationSpec, Gates
from edgetune_contract.request import Scores
from edgetune_contract.results.candidates import Candidate
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.evaluation.gates import Figures, FurtherEdge, judge, judge_resources

SCORES = Scores(base=0.25, tuned=0.853, merged=0.85, edge=0.812)
NO_SCORES = Scores()
WHY = "no evaluation row has an expected keyword or a reference answer; add some, or remove the gate"


@pytest.mark.parametrize(
    ("gates", "scores", "refusal"),
    [
        ({"minScore": 0.9}, SCORES, "minScore: the edge model scores 0.812; the limit is 0.900"),
        ({"minScore": 0.8124}, SCORES, "minScore: the edge model scores 0.8120; the limit is 0.8124"),
        ({"minScore": 0.9}, NO_SCORES, f"minScore: the edge model has no score: {WHY}"),
        (
            {"maxDrop": 0.02},
            SCORES,
            "maxDrop: the edge model scores 0.812, 0.041 below the tuned model's 0.853; the limit is 0.020",
        ),
        ({"maxDrop": 0.02}, NO_SCORES, f"maxDrop: the tuned model and the edge model have no scores: {WHY}"),
        (
            {"minImprovement": 0.7},
            SCORES,
            "minImprovement: the tuned model scores 0.853, 0.603 above the base model's 0.250; the limit is 0.700",
        ),
        (
            {"minImprovement": 0},
            Scores(base=0.5, tuned=0.4),
            "minImprovement: the tuned model scores 0.400, 0.100 below the base model's 0.500; the limit is 0.000",
        ),
        ({"minImprovement": 0}, NO_SCORES, f"minImprovement: the base and the tuned model have no scores: {WHY}"),
        (
            {"maxEdgeBytes": "1Ki"},
            SCORES,
            "maxEdgeBytes: the edge model has 2,000 bytes; the limit is 1Ki (1,024 bytes)",
        ),
    ],
)
def test_a_failed_gate_is_one_sentence_with_figure_and_limit(
    gates: Mapping[str, object], scores: Scores, refusal: str
) -> None:
    assert judge(EvaluationSpec(gates=Gates.model_validate(gates)), Figures(scores, edge_bytes=2000)) == (refusal,)


@pytest.mark.parametrize(
    "gates",
    [
        {},
        {"minScore": 0.812},
        {"maxDrop": 0.041},
        {"minImprovement": 0.603},
        {"maxEdgeBytes": 2000},
        {"maxEdgeBytes": "2k"},
    ],
)
def test_a_figure_at_the_limit_passes(gates: Mapping[str, object]) -> None:
    assert judge(EvaluationSpec(gates=Gates.model_validate(gates)), Figures(SCORES, edge_bytes=2000)) == ()


def test_each_failed_gate_has_its_own_sentence() -> None:
    gates = Gates(min_score=0.9, min_improvement=0.7, max_drop=0.01, max_edge_bytes="1")

    names = [refusal.partition(":")[0] for refusal in judge(EvaluationSpec(gates=gates), Figures(SCORES, edge_bytes=2))]

    assert names == ["minImprovement", "minScore", "maxDrop", "maxEdgeBytes"]


def test_every_format_must_pass_the_gates_and_a_refusal_names_the_format() -> None:
    evaluation = EvaluationSpec(gates=Gates(min_score=0.8, min_improvement=0.1, max_drop=0.05, max_edge_bytes="2k"))
    good = FurtherEdge(EdgeFormat.COMPRESSED_TENSORS_W8A8, 0.85, 2000)
    bad = FurtherEdge(EdgeFormat.GGUF_Q8_0, 0.7, 3000)

    assert judge(evaluation, Figures(SCORES, edge_bytes=2000, further=(good,))) == ()
    assert judge(evaluation, Figures(SCORES, edge_bytes=2000, further=(good, bad))) == (
        "minScore: the edge model in GGUF-Q8_0 scores 0.700; the limit is 0.800",
        "maxDrop: the edge model in GGUF-Q8_0 scores 0.700, 0.153 below the tuned model's 0.853; the limit is 0.050",
        "maxEdgeBytes: the edge model in GGUF-Q8_0 has 3,000 bytes; the limit is 2k (2,000 bytes)",
    )


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_the_drop_gate_compares_without_rounding_errors(tuned: int, edge: int, limit: int) -> None:
    scores = Scores(tuned=tuned / 1000, edge=edge / 1000)

    refused = judge(EvaluationSpec(gates=Gates(max_drop=limit / 1000)), Figures(scores, edge_bytes=0))

    assert bool(refused) == (tuned - edge > limit)


@given(st.floats(0, 1), st.floats(0, 1))
def test_figure_and_limit_of_a_refusal_are_never_printed_as_the_same_number(edge: float, limit: float) -> None:
    for refusal in judge(EvaluationSpec(gates=Gates(min_score=limit)), Figures(Scores(edge=edge), edge_bytes=0)):
        figure, _, printed_limit = refusal.removeprefix("minScore: the edge model scores ").partition("; the limit is ")
        assert figure != printed_limit


def measured(**changes: object) -> EdgeMeasurement:
    figures: dict[str, object] = {
        "runtime": "transformers 5.23.0",
        "promptTokensPerSecond": 200,
        "generationTokensPerSecond": 12.34,
        "timeToFirstTokenSeconds": 0.3,
        "peakMemoryBytes": 1_100_000_000,
        "baselineMemoryBytes": 700_000_000,
        "cpu": "AMD EPYC",
        "threads": 2,
        "promptTokens": 60,
        "newTokens": 32,
    }
    return EdgeMeasurement.model_validate(figures | changes)


STOPPED = measured(
    overMemory=True,
    promptTokensPerSecond=None,
    generationTokensPerSecond=None,
    timeToFirstTokenSeconds=None,
    baselineMemoryBytes=None,
)


@pytest.mark.parametrize(
    ("budget", "edge", "refusal"),
    [
        (
            {"minTokensPerSecond": 20},
            measured(),
            "edge.minTokensPerSecond: the edge model generates 12.3 tokens/s on 2 threads of AMD EPYC; "
            "the limit is 20.0 tokens/s",
        ),
        (
            {"maxPeakMemory": "1G"},
            measured(),
            "edge.maxPeakMemory: the edge model used 1,100,000,000 bytes of memory in transformers 5.23.0, "
            "700,000,000 of them before the model was loaded; the limit is 1G (1,000,000,000 bytes)",
        ),
        (
            {"memory": "1Gi", "minTokensPerSecond": 20},
            STOPPED,
            "edge.memory: the edge model used 1,100,000,000 bytes of memory in transformers 5.23.0; "
            "the limit is 1Gi (1,073,741,824 bytes)",
        ),
        ({}, None, "edge: the edge model was not measured; run the stage evaluate again"),
    ],
)
def test_an_edge_budget_that_is_exceeded_is_one_sentence_with_figure_and_limit(
    budget: Mapping[str, object], edge: EdgeMeasurement | None, refusal: str
) -> None:
    evaluation = EvaluationSpec(edge=EdgeBudget.model_validate(budget))

    assert judge(evaluation, Figures(SCORES, edge_bytes=2000, edge=edge)) == (refusal,)


@pytest.mark.parametrize(
    "budget",
    [None, {}, {"cpu": 2}, {"memory": "2Gi"}, {"minTokensPerSecond": 12.34}, {"maxPeakMemory": 1_100_000_000}],
)
def test_an_edge_budget_at_its_limit_passes(budget: Mapping[str, object] | None) -> None:
    evaluation = EvaluationSpec.model_validate({"edge": budget})

    assert judge(evaluation, Figures(SCORES, edge_bytes=2000, edge=measured())) == ()


@pytest.mark.parametrize(
    ("speed", "refusal"),
    [
        (5.0, "edge.memory: GGUF-Q8_0 used 2,000 bytes of memory; the limit is 1Ki (1,024 bytes)"),
        (None, "edge.memory: GGUF-Q8_0 was stopped at 2,000 bytes of memory; the limit is 1Ki (1,024 bytes)"),
    ],
)
def test_a_candidate_that_was_stopped_for_its_memory_is_not_said_to_need_only_that(
    speed: float | None, refusal: str
) -> None:
    found = Candidate(format=EdgeFormat.GGUF_Q8_0, bytes=1, peak_memory_bytes=2000, tokens_per_second=speed)

    assert judge_resources(EvaluationSpec(edge=EdgeBudget(memory="1Ki")), found) == (refusal,)
