"""Warnings about settings that have no effect, or together less than they promise."""

from typing import Any

import pytest

from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.api.spec_warnings import spec_warnings
from support.builders import lora_fine_tune

PREPARED = {"trainExamples": 24, "evalExamples": 3, "trainTokens": 2_400}


def warnings(prepared: dict[str, float] | None = None, **fields: Any) -> tuple[str, ...]:
    """Warnings about the smallest spec with these fields, written as section__field."""
    builder = lora_fine_tune()
    for name, value in fields.items():
        builder = builder.with_spec(name.replace("__", "."), value)
    return spec_warnings(parse_spec(builder.build()["spec"]), PREPARED if prepared is None else prepared)


def test_the_defaults_have_no_warning() -> None:
    assert warnings() == ()
    assert warnings({}) == ()


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"training__scheduler": "constant", "training__warmupRatio": 0.1}, "spec.training.warmupRatio has no effect"),
        ({"training__maxSteps": 9, "training__epochs": 5}, "spec.training.epochs has no effect"),
        (
            {"dataset__eval": {"uri": "s3://data/eval.jsonl"}, "dataset__evalSplitPercent": 20},
            "spec.dataset.evalSplitPercent has no effect",
        ),
        ({"method": "LoRA", "merge__base": "Original"}, "spec.merge.base has no effect with method: LoRA"),
        (
            {"quantization": {"formats": ["GGUF-Q8_0"], "outlierThreshold": 5.0}},
            "spec.quantization.outlierThreshold has no effect without the format BitsAndBytesInt8",
        ),
        (
            {"quantization": {"importanceMatrix": True}},
            "spec.quantization.importanceMatrix has no effect without GGUF-Q6_K, GGUF-Q5_K_M or GGUF-Q4_K_M",
        ),
        ({"training__learningRate": 1e-9}, "spec.training.learningRate 1e-09 leaves the adapter nearly unchanged"),
    ],
)
def test_a_setting_without_effect_is_named_before_prepare_has_run(fields: dict[str, Any], warning: str) -> None:
    (found,) = warnings({}, **fields)

    assert found.startswith(warning)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"training__maxSteps": 1},
            ["spec.training.maxSteps 1 with batchSize 16 trains on 16 of 24 training", "one s"],
        ),
        (
            {"training__epochs": 0.1},
            ["spec.training.epochs 0.1 of 24 training examples is less than one step", "one s"],
        ),
        (
            {"training__batchSize": 32, "training__epochs": 1},
            ["spec.training.batchSize 32 is more than the 24 training examples: each step trains on all", "one step"],
        ),
        (
            {"training__epochs": 100, "training__checkpoint": {"everySteps": 200}},
            ["spec.training.checkpoint.everySteps 200 is not less than the 200 steps"],
        ),
        (
            {"training__evaluation": {"everySteps": 7}},
            ["spec.training.evaluation.everySteps 7 is more than the 6 steps"],
        ),
        (
            {"training__evaluation": {"everySteps": 2, "patience": 2}},
            ["spec.training.evaluation.patience 2 has no effect: with everySteps 2, the training of 6 steps ends"],
        ),
        ({"evaluation__maxExamples": 2}, ["spec.evaluation.maxExamples: 2 of 3 evaluation rows are scored"]),
    ],
)
def test_settings_that_do_less_than_they_promise_with_this_data_are_named(
    fields: dict[str, Any], expected: list[str]
) -> None:
    found = warnings(**fields)

    assert len(found) == len(expected)
    assert all(part in warning for part, warning in zip(expected, found, strict=True)), found


@pytest.mark.parametrize(
    "fields",
    [
        {"training__scheduler": "constant", "training__warmupRatio": 0},
        {"training__maxSteps": 2},
        {"training__epochs": 0.7},
        {"training__evaluation": {"everySteps": 1, "patience": 4}},
        {"training__evaluation": {"everySteps": 6}},
    ],
)
def test_settings_that_take_effect_have_no_warning(fields: dict[str, Any]) -> None:
    assert warnings(**fields) == ()
