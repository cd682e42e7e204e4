"""The order in which candidates of formats Auto are measured, and where that stops."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from edgetune_contract.request import ModelScores, Resolved, Scores
from edgetune_contract.results.candidates import AUTO_FORMATS, Candidate, PossibleFormat
from edgetune_contract.results.measurement import ModelSpeed
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import TrainingDiverged
from edgetune_jobs.evaluation.edge import budget, choosing
from edgetune_jobs.evaluation.edge.child_process import CannotRun, CannotStart, OutOfMemory
from edgetune_jobs.evaluation.edge.choosing import Choice, Choosing
from edgetune_jobs.evaluation.edge.process import MeasurementRequest
from edgetune_jobs.evaluation.edge.runtimes import RUNTIMES, Runtime
from edgetune_jobs.evaluation.gates import judge_candidates
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters

LARGE, MIDDLE, SMALL = EdgeFormat.COMPRESSED_TENSORS_W8A8, EdgeFormat.BITSANDBYTES_INT8, EdgeFormat.GGUF_Q8_0
SIZES = {LARGE: 300, MIDDLE: 200, SMALL: 100}
KNOWN = {"base": ModelScores(exact_match=0.1), "tuned": ModelScores(exact_match=0.9)}


@dataclass
class Device:
    """What measurements and scores would find."""

    scores: Mapping[EdgeFormat, float]
    speeds: Mapping[EdgeFormat, float] = field(default_factory=dict)
    peaks: Mapping[EdgeFormat, int] = field(default_factory=dict)
    errors: Mapping[EdgeFormat, Exception] = field(default_factory=dict)
    measured: list[EdgeFormat] = field(default_factory=list)
    scored: list[EdgeFormat] = field(default_factory=list)
    unscorable: Mapping[EdgeFormat, Exception] = field(default_factory=dict)

    def measure(self, request: MeasurementRequest, *_: Any) -> ModelSpeed:
        found = next((each for each in EdgeFormat if each.artifact == request.folder.name), None)
        if found is None:  # the base
            return ModelSpeed(runtime="transformers", peak_memory_bytes=1)
        self.measured.append(found)
        if found in self.errors:
            raise self.errors[found]
        return ModelSpeed(
            runtime="any",
            generation_tokens_per_second=self.speeds.get(found, 10.0),
            peak_memory_bytes=self.peaks.get(found, 1000),
        )

    def score(self, edge_format: EdgeFormat) -> ModelScores:
        self.scored.append(edge_format)
        if edge_format in self.unscorable:
            raise self.unscorable[edge_format]
        return ModelScores(exact_match=self.scores[edge_format], loss=1.0)


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Choice]:
    """Makes a choice among three formats, of which every runtime is here."""

    def run(
        device: Device,
        formats: tuple[EdgeFormat, ...] = (LARGE, MIDDLE, SMALL),
        missing: Callable[[EdgeFormat], str | None] = lambda _: None,
        **evaluation: Any,
    ) -> Choice:
        monkeypatch.setattr(budget, "measure", device.measure)
        monkeypatch.setattr(choosing, "missing_runtime", missing)
        monkeypatch.setitem(cast("dict[EdgeFormat, Runtime]", RUNTIMES), LARGE, Runtime.TRANSFORMERS)
        parameters = tiny_parameters(quantization={"formats": "Auto"}, evaluation=evaluation)
        for each, size in SIZES.items():
            (tmp_path / each.artifact).mkdir()
            (tmp_path / each.artifact / "weights").write_bytes(bytes(size))
        possible = tuple(PossibleFormat(format=each, least_bytes=size - 10) for each, size in SIZES.items())
        resolved = Resolved(base="a" * 64, train="b" * 64, possible=possible, formats=formats)
        inputs = {each.artifact: tmp_path / each.artifact for each in formats} | {"base": tmp_path}
        context = stage_context(Stage.EVALUATE, parameters, tmp_path / "stage", inputs, resolved=resolved)
        return Choosing(context, KNOWN, (3, 4), device.score).run()

    return run


def limits(choice: Choice) -> dict[EdgeFormat, tuple[str, ...]]:
    return {each.format: each.limits for each in choice.candidates if each.limits}


def notes(choice: Choice) -> dict[EdgeFormat, str]:
    return {each.format: each.note for each in choice.candidates if each.note}


def test_the_first_candidate_that_holds_all_limits_and_loses_nothing_is_the_answer(
    choose: Callable[..., Choice],
) -> None:
    device = Device({MIDDLE: 0.9}, peaks={LARGE: 3000})

    choice = choose(device, edge={"maxPeakMemory": "2000"})

    assert choice.chosen is MIDDLE
    assert (device.measured, device.scored) == ([LARGE, MIDDLE], [MIDDLE])
    assert limits(choice) == {LARGE: ("edge.maxPeakMemory",)}
    assert notes(choice) == {SMALL: "not measured: the answer was known before"}
    assert choice.candidates[1] == Candidate(
        format=MIDDLE, bytes=200, score=0.9, loss=1.0, tokens_per_second=10.0, peak_memory_bytes=1000, chosen=True
    )


def test_below_the_score_of_its_source_smaller_candidates_are_measured_too_and_the_best_one_is_chosen(
    choose: Callable[..., Choice],
) -> None:
    device = Device({LARGE: 0.7, MIDDLE: 0.8, SMALL: 0.75})

    choice = choose(device, edge={"maxPeakMemory": "2000"})

    assert choice.chosen is MIDDLE
    assert device.scored == [LARGE, MIDDLE, SMALL]
    assert [each.chosen for each in choice.candidates] == [False, True, False]


def test_a_limit_on_bytes_excludes_a_candidate_without_measuring_it(choose: Callable[..., Choice]) -> None:
    device = Device({MIDDLE: 0.9})

    choice = choose(device, formats=(MIDDLE, SMALL), edge={}, gates={"maxEdgeBytes": "250"})

    assert choice.chosen is MIDDLE
    assert device.measured == [MIDDLE]
    assert limits(choice) == {LARGE: ("maxEdgeBytes",)}
    assert choice.candidates[0].bytes == 290


def test_what_is_too_slow_or_takes_too_much_memory_is_not_scored(choose: Callable[..., Choice]) -> None:
    device = Device({SMALL: 0.5}, speeds={LARGE: 3.0}, peaks={LARGE: 3000, MIDDLE: 3000})

    choice = choose(device, edge={"memory": "2000", "minTokensPerSecond": 5})

    assert choice.chosen is SMALL
    assert device.scored == [SMALL]
    assert limits(choice) == {LARGE: ("edge.memory", "edge.minTokensPerSecond"), MIDDLE: ("edge.memory",)}


def test_if_no_candidate_fits_each_one_says_by_how_much(choose: Callable[..., Choice]) -> None:
    device = Device({MIDDLE: 0.5, SMALL: 0.7}, speeds={LARGE: 3.0})
    evaluation = {"edge": {"minTokensPerSecond": 5}, "gates": {"minScore": 0.6, "maxDrop": 0.1}}

    choice = choose(device, **evaluation)

    spec = tiny_parameters(evaluation=evaluation).evaluation
    assert choice.chosen is None
    assert choice.measured.measurement is None
    assert limits(choice) == {
        LARGE: ("edge.minTokensPerSecond",),
        MIDDLE: ("minScore", "maxDrop"),
        SMALL: ("maxDrop",),
    }
    assert judge_candidates(spec, choice.candidates, Scores(base=0.1, tuned=0.9)) == (
        "edge.minTokensPerSecond: CompressedTensorsW8A8 generates 3.0 tokens/s; the limit is 5.0 tokens/s",
        "minScore: BitsAndBytesInt8 scores 0.500; the limit is 0.600",
        "maxDrop: BitsAndBytesInt8 scores 0.500, 0.400 below the tuned model's 0.900; the limit is 0.100",
        "maxDrop: GGUF-Q8_0 scores 0.700, 0.200 below the tuned model's 0.900; the limit is 0.100",
    )


def test_nothing_is_measured_for_a_training_that_its_own_gate_refuses(choose: Callable[..., Choice]) -> None:
    device = Device({})

    choice = choose(device, edge={"memory": "2000"}, gates={"minImprovement": 0.95})

    spec = tiny_parameters(evaluation={"gates": {"minImprovement": 0.95}}).evaluation
    assert (device.measured, choice.chosen) == ([], None)
    assert set(notes(choice).values()) == {"not measured: no candidate can hold minImprovement"}
    assert judge_candidates(spec, choice.candidates, Scores(base=0.1, tuned=0.9)) == (
        "minImprovement: the tuned model scores 0.900, 0.800 above the base model's 0.100; the limit is 0.950",
    )


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (OutOfMemory("5 bytes are free"), "not measured: the machine has too little memory: 5 bytes are free"),
        (CannotStart("no instruction"), "not measured: transformers does not start here: no instruction"),
        (CannotRun("wrong\n  shape"), "not measured: transformers does not run it: wrong shape"),
    ],
)
def test_what_cannot_be_measured_is_not_chosen_and_is_said(
    choose: Callable[..., Choice], error: Exception, note: str
) -> None:
    device = Device({MIDDLE: 0.9}, errors={LARGE: error})

    choice = choose(device, edge={"memory": "2000"})

    assert choice.chosen is MIDDLE
    assert notes(choice)[LARGE] == note
    assert choice.warnings == (
        f"CompressedTensorsW8A8 is not chosen, because it was not measured: {note.partition(': ')[2]}",
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OutOfMemory("5 bytes are free"), "the machine has too little memory: 5 bytes are free"),
        (CannotRun("wrong\n  shape"), "transformers does not run it: wrong shape"),
        (TrainingDiverged("the loss is nan"), "the loss is nan"),
    ],
)
def test_what_cannot_be_scored_is_not_chosen_and_the_others_are_measured(
    choose: Callable[..., Choice], error: Exception, reason: str
) -> None:
    device = Device({MIDDLE: 0.9}, unscorable={LARGE: error})

    choice = choose(device, edge={"memory": "2000"})

    assert (choice.chosen, device.scored) == (MIDDLE, [LARGE, MIDDLE])
    assert notes(choice)[LARGE] == f"not measured: {reason}"
    assert choice.candidates[0].tokens_per_second == 10.0
    assert choice.warnings == (f"CompressedTensorsW8A8 is not chosen, because it was not measured: {reason}",)


def test_a_missing_runtime_is_said_with_the_formats_that_it_excludes(choose: Callable[..., Choice]) -> None:
    def missing(each: EdgeFormat) -> str | None:
        return "it is not here" if each in (LARGE, MIDDLE) else None

    choice = choose(Device({SMALL: 0.9}), formats=(MIDDLE, SMALL), missing=missing, edge={"memory": "2000"})

    assert choice.chosen is SMALL
    assert notes(choice) == {LARGE: "not measured: it is not here", MIDDLE: "not measured: it is not here"}
    assert choice.warnings == (
        "CompressedTensorsW8A8 is not chosen, because it was not measured: it is not here",
        "BitsAndBytesInt8 is not chosen, because it was not measured: it is not here",
    )


def test_a_format_that_prepare_left_out_because_its_runtime_is_missing_is_named(choose: Callable[..., Choice]) -> None:
    def missing(each: EdgeFormat) -> str | None:
        return "it is not here" if each not in SIZES else None

    choice = choose(Device({LARGE: 0.9}), missing=missing, edge={"memory": "2000"})

    others = ", ".join(each for each in AUTO_FORMATS if each not in SIZES)
    assert choice.warnings == ((f"not among the candidates: {others}: it is not here",) if others else ())
