"""Which models are scored, and models that cannot be scored: a loss that is not finite."""

import json
import shutil
import time
from pathlib import Path

import pytest

from edgetune_contract.request import ModelScores
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput, TrainingDiverged
from edgetune_jobs.evaluation import scored_models
from edgetune_jobs.stages import evaluate
from support.edge_models import set_weight
from support.stage_context import RecordedProgress, stage_context
from support.tiny_runs import tiny_parameters, train

PARAMETERS = tiny_parameters(training={"maxSteps": 1, "warmupRatio": 0}, evaluation={"maxNewTokens": 1})


@pytest.fixture
def inputs(random_base: Path, few_rows: Path, tmp_path: Path) -> dict[str, Path]:
    """Inputs of evaluate, with a base that computes only NaN."""
    adapter = train(tmp_path / "train", PARAMETERS, random_base, few_rows).adapter
    broken = Path(shutil.copytree(random_base, tmp_path / "broken"))
    set_weight(broken, "model.norm.weight", float("nan"))
    return {"base": broken, "prepared": few_rows, "adapter": adapter, "edge-bnb-int8": broken}


def test_a_base_whose_loss_is_not_finite_is_invalid(inputs: dict[str, Path], tmp_path: Path) -> None:
    context = stage_context(Stage.EVALUATE, PARAMETERS, tmp_path / "evaluate", inputs)

    with pytest.raises(InvalidInput, match=r"^spec\.baseModel: the loss of the base model .* is nan: .* check"):
        evaluate.run(context)


def test_a_tuned_model_whose_loss_is_not_finite_has_diverged(inputs: dict[str, Path], tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.mkdir()
    (known / "scores.json").write_text(ModelScores(loss=1.0).model_dump_json())
    context = stage_context(Stage.EVALUATE, PARAMETERS, tmp_path / "evaluate", inputs | {"base-scores": known})

    with pytest.raises(TrainingDiverged, match=r"^the loss of the tuned model .* is nan: .* lower spec"):
        evaluate.run(context)


def test_only_the_models_of_the_spec_are_scored(random_base: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    parameters = tiny_parameters(evaluation={"maxNewTokens": 1, "models": ["Edge", "Tuned"]})
    models = {"base": random_base, "merged": inputs["base"], "edge-bnb-int8": random_base}
    context = stage_context(Stage.EVALUATE, parameters, tmp_path / "evaluate", inputs | models)

    scores = evaluate.run(context).scores

    assert scores is not None
    assert set(scores.details) == {"tuned", "edge"}
    assert (scores.base, scores.merged) == (None, None)
    assert not (context.output / "base-scores").exists()


def test_every_row_has_the_scores_and_answers_of_all_models_also_of_a_base_that_was_scored_before(
    random_base: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    models = {"base": random_base, "merged": random_base, "edge-bnb-int8": random_base}
    first = stage_context(Stage.EVALUATE, PARAMETERS, tmp_path / "first", inputs | models)
    evaluate.run(first)
    known = models | {"base-scores": first.output / "base-scores"}
    second = stage_context(Stage.EVALUATE, PARAMETERS, tmp_path / "second", inputs | known)
    evaluate.run(second)

    for context in (first, second):
        rows, answers = (
            [json.loads(line) for line in (context.output / "evaluation" / name).read_text().splitlines()]
            for name in ("row_scores.jsonl", "answers.jsonl")
        )
        assert [row["row"] for row in rows] == list(range(8))
        assert [set(row) for row in rows] == [{"row", "base", "tuned", "merged", "edge"}] * 8
        for row, line in zip(rows, answers, strict=True):
            assert line["scores"] == {name: score for name, score in row.items() if name != "row"}
            assert set(line) == {"prompt", "reference", "scores", *row}
    kept = [(context.output / "evaluation" / "answers.jsonl").read_text() for context in (first, second)]
    assert kept[0] == kept[1]


def test_models_that_are_scored_side_by_side_have_the_scores_and_answers_of_one_after_the_other(
    random_base: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    models = inputs | {"base": random_base, "merged": random_base, "edge-bnb-int8": random_base}
    progress, parameters = RecordedProgress(), tiny_parameters(evaluation={"maxNewTokens": 8})
    alone = stage_context(Stage.EVALUATE, parameters, tmp_path / "alone", models)
    side_by_side = stage_context(Stage.EVALUATE, parameters, tmp_path / "side-by-side", models, progress=progress)

    expected, found = evaluate.run(alone), evaluate.run(side_by_side, ["cpu", "cpu"])

    assert found.scores == expected.scores
    assert found.facts == {**expected.facts, "device": f"{expected.facts['device']}, one model at a time on each of 2"}
    assert found.metrics.keys() == expected.metrics.keys()
    for name in ("evaluation/row_scores.jsonl", "evaluation/answers.jsonl", "base-scores/scores.json"):
        assert (side_by_side.output / name).read_bytes() == (alone.output / name).read_bytes()
    assert progress.updates[-1] == {"done": 32, "total": 32, "unit": "rows of 4 models"}
    assert sorted(progress.said) == [f"scoring the {name} model" for name in ("base", "edge", "merged", "tuned")]


def test_a_model_that_fails_beside_others_ends_the_stage_as_it_does_alone(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    parameters = tiny_parameters(evaluation={"maxNewTokens": 1, "models": ["Edge", "Tuned"]})
    context = stage_context(Stage.EVALUATE, parameters, tmp_path / "evaluate", inputs)

    with pytest.raises(TrainingDiverged, match=r"^the loss of the (tuned|edge) model .* is nan: .* lower spec"):
        evaluate.run(context, ["cpu", "cpu"])


def test_scoring_that_cannot_end_before_the_deadline_ends_after_its_first_batches(
    random_base: Path,
    many_rows: Path,
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scored_models, "_BATCH_SIZE", 8)
    parameters = tiny_parameters(evaluation={"maxNewTokens": 8})
    models = {"base": random_base, "prepared": many_rows, "edge-bnb-int8": random_base}
    progress = RecordedProgress()
    context = stage_context(
        Stage.EVALUATE, parameters, tmp_path / "evaluate", inputs | models, progress=progress, deadline=0.0
    )

    with pytest.raises(InvalidInput) as raised:
        evaluate.run(context)

    assert str(raised.value).startswith("scoring the base model takes about ")
    assert (
        "spec.activeDeadlineSeconds ends the stage in at most 0 s; raise it, lower spec.evaluation.maxExamples ("
        in str(raised.value)
    )
    counted = [(update["done"], update["total"], update["unit"]) for update in progress.updates]
    assert counted == [(4, 192, "rows of 3 models"), (8, 192, "rows of 3 models")]


def test_scoring_with_time_left_ends(
    random_base: Path, many_rows: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    parameters = tiny_parameters(evaluation={"maxNewTokens": 2, "models": ["Edge"]})
    models = {"base": random_base, "prepared": many_rows, "edge-bnb-int8": random_base}
    context = stage_context(
        Stage.EVALUATE, parameters, tmp_path / "evaluate", inputs | models, deadline=time.monotonic() + 3600
    )

    assert evaluate.run(context).scores is not None
