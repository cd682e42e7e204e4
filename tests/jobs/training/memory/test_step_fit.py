"""How a training step is fitted into memory."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.training import Layout, TrainingSpec
from edgetune_jobs.stage import StepSize
from edgetune_jobs.training.memory.activations import Activations
from edgetune_jobs.training.memory.step_fit import Lengths, StepFit

GIB = 2**30
HIDDEN, LAYERS = 4096, 32  # of a model with 8 billion parameters
ACTIVATIONS = Activations(layers=(34.0 * HIDDEN,) * LAYERS, layer_input=2.0 * HIDDEN, outside=0.0)


def memory_of_step(tokens: int, recompute: int) -> int:
    return ACTIVATIONS.bytes_for(tokens, recompute, tokens)


def fit(
    free: float,
    *,
    length: int = 2048,
    layout: str = "PaddingFree",
    reduced: tuple[int, int] | None = None,
    **fields: Any,
) -> StepFit:
    spec = TrainingSpec.model_validate({"layout": layout, **fields})
    left = reduced and StepSize(micro_batch_size=reduced[0], recompute=reduced[1])
    return StepFit(spec, Layout(layout), Lengths(length, length), LAYERS, memory_of_step, int(free * GIB), left)


def chosen(found: StepFit) -> tuple[int, int]:
    return found.choice.micro_batch_size, found.choice.recompute


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (75, (4, 0)),  # 8,192 tokens without recomputing anything
        (35, (2, 0)),  # half of the tokens cost less than recomputing
        (14, (1, 0)),
        (9, (1, 4)),  # recomputing some layers costs less than recomputing all of them
        (5, (4, 1)),  # if all are recomputed, more tokens cost less
        (0.1, (1, 1)),  # does not fit, and is tried
    ],
)
def test_auto_takes_the_fastest_step_that_fits(free: float, expected: tuple[int, int]) -> None:
    assert chosen(fit(free)) == expected


def test_a_forward_pass_of_more_than_8192_tokens_gains_nothing() -> None:
    assert chosen(fit(1000, length=200)) == (16, 0)
    assert chosen(fit(1000, length=200, batchSize=256)) == (64, 0)


def test_joined_examples_take_the_memory_of_their_tokens_not_of_the_longest() -> None:
    generator = random.Random(1)
    rows = [min(1024, round(90 * generator.lognormvariate(0, 0.6))) for _ in range(2000)]
    lengths = Lengths.of(rows)

    for size in (1, 4, 32, 256):
        sums = [sum(generator.sample(rows, size)) for _ in range(2000)]
        assert max(sums) <= lengths.tokens(size, joined=True)
        assert lengths.tokens(size, joined=False) == size * max(rows)
    assert lengths.tokens(256, joined=True) < 1.5 * 256 * lengths.mean
    assert lengths.tokens(1, joined=True) == max(rows)
    assert lengths.tokens(4096, joined=True) == lengths.tokens(2000, joined=True) == sum(rows)
    assert Lengths(100, 50).tokens(8, joined=True) == 800


def test_more_short_examples_than_long_ones_fit_only_if_they_are_joined() -> None:
    lengths = Lengths.of([100] * 999 + [2000])

    def size(layout: Layout) -> int:
        spec = TrainingSpec(batch_size=64, layout=layout, gradient_checkpointing="Never")
        return StepFit(spec, layout, lengths, LAYERS, memory_of_step, 70 * GIB).choice.micro_batch_size

    assert (size(Layout.PADDING_FREE), size(Layout.PADDED)) == (64, 4)


def test_a_number_is_kept_even_if_it_seems_not_to_fit() -> None:
    assert chosen(fit(1, microBatchSize=8)) == (8, 1)
    assert chosen(fit(1, microBatchSize=8, gradientCheckpointing="Never")) == (8, 0)


@pytest.mark.parametrize(("mode", "recompute"), [("Always", 1), ("Never", 0)])
def test_the_spec_can_fix_what_is_recomputed(mode: str, recompute: int) -> None:
    assert chosen(fit(1000, gradientCheckpointing=mode))[1] == recompute
    assert chosen(fit(1, gradientCheckpointing=mode))[1] == recompute


def test_packed_sequences_are_as_long_as_the_spec_allows() -> None:
    assert chosen(fit(75, layout="Packed", length=100, maxLength=2048)) == (4, 0)


def test_a_model_without_gradient_checkpointing_is_fitted_by_its_micro_batch_alone() -> None:
    spec = TrainingSpec()
    found = StepFit(
        spec, Layout.PADDING_FREE, Lengths(2048, 2048), LAYERS, memory_of_step, 9 * GIB, can_recompute=False
    )

    assert chosen(found) == (1, 0)


def test_each_smaller_choice_takes_at_most_three_quarters_of_the_memory_down_to_the_least() -> None:
    found = fit(75)
    taken = [found.choice.bytes]
    while found.shrink():
        taken.append(found.choice.bytes)

    assert all(after <= 0.75 * before for before, after in pairwise(taken))
    assert chosen(found) == (1, 1)
    assert found.smaller is None
    assert found.facts() == {
        "microBatchSize": "1 x 16 accumulated, chosen after the GPU ran out of memory",
        "gradientCheckpointing": "all layers are recomputed, chosen after the GPU ran out of memory",
    }


@pytest.mark.parametrize(
    ("free", "layers", "fields"), [(75, LAYERS, {}), (14, LAYERS, {}), (1.5, 2, {"microBatchSize": 4})]
)
def test_a_smaller_choice_has_no_more_examples_and_does_not_stop_to_recompute(
    free: float, layers: int, fields: dict[str, Any]
) -> None:
    activations = Activations((34.0 * HIDDEN,) * layers, 2.0 * HIDDEN, 0.0)
    found = StepFit(
        TrainingSpec(**fields),
        Layout.PADDING_FREE,
        Lengths(2048, 2048),
        layers,
        lambda tokens, recompute: activations.bytes_for(tokens, recompute, tokens),
        int(free * GIB),
    )
    taken = [chosen(found)]
    while found.shrink():
        taken.append(chosen(found))

    assert len(taken) > 1
    assert all(size <= size_before for (size_before, _), (size, _) in pairwise(taken))
    assert all(recompute or not recomputed for (_, recomputed), (_, recompute) in pairwise(taken))


def test_a_fixed_number_is_halved_without_memory() -> None:
    found = fit(75, microBatchSize=12, batchSize=12, gradientCheckpointing="Never")

    sizes = [found.choice.micro_batch_size]
    while found.shrink():
        sizes.append(found.choice.micro_batch_size)
    assert sizes == [12, 6, 3, 1]


@pytest.mark.parametrize(
    ("reduced", "expected"),
    [(None, (8, 2)), ((4, 4), (4, 4)), ((8, 1), (8, 1)), ((32, 0), (8, 2))],
    ids=["nothing", "fewer examples", "more recomputed layers", "a larger one"],
)
def test_an_attempt_begins_with_what_an_earlier_one_left(
    reduced: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    found = fit(60, microBatchSize=8, reduced=reduced)

    assert chosen(found) == expected
    assert ("instead of 8 because the GPU ran out" in found.facts()["microBatchSize"]) is (expected[0] < 8)
    assert ("ran out of memory" in found.facts()["gradientCheckpointing"]) is (expected != (8, 2))


@pytest.mark.parametrize("fields", [{}, {"microBatchSize": 8}], ids=["Auto", "a number"])
def test_each_attempt_that_runs_out_of_memory_leaves_the_next_one_less_down_to_the_least(
    fields: dict[str, Any],
) -> None:
    found = fit(75, **fields)
    taken = [found.choice.bytes]
    while (smaller := found.smaller) is not None:
        found = fit(75, reduced=(smaller.micro_batch_size, smaller.recompute), **fields)
        taken.append(found.choice.bytes)

    assert all(after < before for before, after in pairwise(taken))
    assert chosen(found) == (1, 1)


def test_a_checkpoint_whose_choice_ran_out_of_memory_is_resumed_with_less(tmp_path: Path) -> None:
    first = fit(75)
    first.save_to(tmp_path)
    smaller = first.smaller
    assert smaller is not None

    resumed = fit(75, reduced=(smaller.micro_batch_size, smaller.recompute))
    resumed.restore_from(tmp_path)

    assert chosen(resumed) == (smaller.micro_batch_size, smaller.recompute)


def test_a_resumed_training_continues_with_the_choice_of_its_checkpoint(tmp_path: Path) -> None:
    first, second, fixed = fit(9), fit(75), fit(75, microBatchSize=8)
    first.save_to(tmp_path)

    for each in (second, fixed):
        each.restore_from(tmp_path)

    assert chosen(second) == chosen(first)
    assert chosen(fixed)[0] == 8, "a choice that the spec does not allow any more is not taken"


def test_facts_say_what_was_chosen_and_why() -> None:
    assert fit(75).facts() == {
        "microBatchSize": "4 x 4 accumulated, chosen for 75.0 GiB of free memory",
        "gradientCheckpointing": "no layer is recomputed",
    }
    assert fit(9).facts()["gradientCheckpointing"] == "1 of 4 layers is recomputed"
    assert fit(9, microBatchSize=4).facts() == {
        "microBatchSize": "4 x 4 accumulated",
        "gradientCheckpointing": "all layers are recomputed",
    }
    packed = fit(75, layout="Packed", length=100, maxLength=2048).facts()
    assert packed["microBatchSize"] == "up to 8,192 tokens, chosen for 75.0 GiB of free memory"
