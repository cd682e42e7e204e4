"""Training in two processes equals training in one: losses, gradient norms, tokens, checkpoints, and how it ends."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from support import tiny_data
from support.rank_runs import RankResult, RankRun, train_all, trained_tokens
from support.tiny_runs import TrainingRun, tiny_parameters, train

pytestmark = pytest.mark.slow

# Sums in another order.
TOLERANCE = 1e-5
# Of the weights, relative to the largest: Adam divides small gradients by their own size.
ADAPTER_TOLERANCE = 1e-3
# Batches of 6 from 14 rows: the third step has two examples, one for each rank.
TRAINING = {"maxSteps": 4, "batchSize": 6, "microBatchSize": 6, "maxLength": 256}
LAYOUTS: dict[str, dict[str, Any]] = {
    "PaddingFree": {"layout": "PaddingFree"},
    "Padded": {"layout": "Padded"},
    "Packed": {"layout": "Packed", "microBatchSize": 1},
    "validated": {"evaluation": {"everySteps": 2}},
}
RESUMED = {"maxSteps": 6, "batchSize": 6, "microBatchSize": 2}
# Of 14 rows, the second step has one: rank 1 has none.
ONE_ROW_LEFT = {"maxSteps": 3, "batchSize": 13, "microBatchSize": 7}


def _parameters(training: dict[str, Any]) -> Any:
    return tiny_parameters(training=TRAINING | training)


@pytest.fixture(scope="module")
def rows(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 1 to 6 sentences, so that ranks have unequal numbers of tokens."""
    from edgetune_jobs.models.loading import load_tokenizer

    examples = [
        replace(each, response=" ".join([each.response] * (1 + index % 6)))
        for index, each in enumerate(tiny_data.training_examples(14))
    ]
    folder = tmp_path_factory.mktemp("uneven") / "prepared"
    return tiny_data.write_prepared(folder, load_tokenizer(random_base), examples, tiny_data.held_out_examples(5))


@pytest.fixture(scope="module")
def found(random_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RankResult]]:
    """All trainings in two ranks."""
    resumed, scaled = _parameters(RESUMED), _parameters(ONE_ROW_LEFT)
    runs = [
        *(RankRun(name=name, parameters=_parameters(training)) for name, training in LAYOUTS.items()),
        RankRun(name="memory", parameters=_parameters({}), too_many=3),
        RankRun(name="no memory", parameters=_parameters({}), too_many=1),
        RankRun(name="infinite", parameters=_parameters({}), infinite_step=2),
        RankRun(name="first", parameters=resumed, checkpoints="resumed", stop_after=2),
        RankRun(name="second", parameters=resumed, checkpoints="resumed", stop_after=4, ranks=1),
        RankRun(name="third", parameters=resumed, checkpoints="resumed"),
        RankRun(name="scaled", parameters=scaled, checkpoints="scaled", scaled=True, stop_after=1),
        RankRun(name="scaled, resumed", parameters=scaled, checkpoints="scaled", scaled=True),
    ]
    with pytest.MonkeyPatch.context() as patch:
        yield train_all(tmp_path_factory.mktemp("ranks") / "run", runs, random_base, rows, patch)


def _steps(run: TrainingRun, name: str) -> list[float]:
    lines = (run.adapter / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[name] for line in lines]


def _largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Of the adapters' weights, relative to the largest one."""
    assert ours.keys() == theirs.keys()
    largest = max(float(weight.abs().max()) for weight in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours) / largest


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_ranks_learn_what_one_process_learns(
    tmp_path: Path, random_base: Path, rows: Path, found: dict[str, RankResult], name: str
) -> None:
    alone, ours = train(tmp_path / "alone", _parameters(LAYOUTS[name]), random_base, rows), found[name]

    assert not ours.error
    assert [update["loss"] for update in ours.updates] == pytest.approx(alone.figures("loss"), rel=TOLERANCE)
    assert ours.figures("gradientNorm") == pytest.approx(_steps(alone, "gradientNorm"), rel=TOLERANCE)
    assert ours.trained_tokens() == trained_tokens(alone.checkpoints.root / "step-4")
    assert _largest_difference(ours.weights(), alone.weights()) < ADAPTER_TOLERANCE
    assert ours.metrics["quantizedShare"] == alone.output.metrics["quantizedShare"] > 0
    assert ours.metrics["worldSize"] == 2
    validation = alone.output.metrics.get("validationLoss")
    assert ours.metrics.get("validationLoss") == (validation and pytest.approx(validation, rel=TOLERANCE))


def test_the_facts_name_the_ranks_and_the_one_with_the_most_memory(found: dict[str, RankResult]) -> None:
    assert re.fullmatch(
        "2 on this CPU, gradients by Gloo; the most memory is that of rank [01]", found["Padded"].facts["ranks"]
    )
    assert found["Padded"].facts["microBatchSize"] == "3 x 1 accumulated"


def test_ranks_take_smaller_forward_passes_together_when_one_runs_out_of_memory(found: dict[str, RankResult]) -> None:
    healed, expected = found["memory"], found["PaddingFree"]

    assert [said for said in healed.said if "out of GPU memory" in said] == [
        "out of GPU memory: the step is computed again with a micro-batch of 1"
    ]
    assert healed.figures("loss") == pytest.approx(expected.figures("loss"), rel=TOLERANCE)
    assert healed.trained_tokens() == expected.trained_tokens(), "no token counts twice"


def test_a_rank_for_which_nothing_is_small_enough_ends_all(found: dict[str, RankResult]) -> None:
    assert found["no memory"].error == "PeerLost: rank 1 ran out of GPU memory"


def test_a_gradient_that_is_infinite_on_one_rank_ends_all_in_this_step(found: dict[str, RankResult]) -> None:
    assert re.match(r"TrainingDiverged: the gradient norm is (inf|nan) at step 2 of 4", found["infinite"].error)


def test_a_stopped_training_continues_with_another_number_of_ranks(
    tmp_path: Path, random_base: Path, rows: Path, found: dict[str, RankResult]
) -> None:
    alone = train(tmp_path / "alone", _parameters(RESUMED), random_base, rows)

    assert [found[name].stopped_at for name in ("first", "second", "third")] == [2, 4, None]
    assert found["third"].metrics["resumedFromStep"] == 4
    assert found["third"].figures("loss") == pytest.approx(_steps(alone, "loss"), rel=TOLERANCE)
    assert _largest_difference(found["third"].weights(), alone.weights()) < ADAPTER_TOLERANCE


def test_a_scaled_training_resumes_in_a_step_without_examples_for_a_rank(
    tmp_path: Path, random_base: Path, rows: Path, found: dict[str, RankResult]
) -> None:
    alone, resumed = train(tmp_path / "alone", _parameters(ONE_ROW_LEFT), random_base, rows), found["scaled, resumed"]

    assert found["scaled"].stopped_at == 1
    assert (found["scaled, resumed"].checkpoints / "step-3" / "scaler.pt").is_file()
    assert resumed.metrics["resumedFromStep"] == 1
    assert resumed.figures("loss") == pytest.approx(_steps(alone, "loss"), rel=TOLERANCE)
    assert _largest_difference(resumed.weights(), alone.weights()) < ADAPTER_TOLERANCE
