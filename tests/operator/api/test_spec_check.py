"""The object's models: every verdict, and the messages that users read."""

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_operator.api.spec_check import EXPECTED, Problem, check_object
from edgetune_operator.generate.crd import object_schema
from support.builders import lora_fine_tune
from support.verdicts import INVALID, VALID, Verdict


def _named(verdicts: tuple[Verdict, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("verdict", verdicts, ids=[verdict.case for verdict in verdicts])


@_named(VALID)
def test_a_valid_object_is_accepted(verdict: Verdict) -> None:
    assert check_object(verdict.object) == ()


@_named(INVALID)
def test_an_invalid_object_is_refused_with_one_problem_and_its_path(verdict: Verdict) -> None:
    problems = [str(problem) for problem in check_object(verdict.object)]

    assert len(problems) == 1
    assert problems[0].startswith(verdict.problem)


def test_every_problem_of_an_object_is_reported_at_once() -> None:
    document = lora_fine_tune().with_spec("lora.rank", 0).with_spec("method", "Full").with_spec("image", "x").build()
    document |= {"kind": "FineTune", "data": {}}
    del document["metadata"]

    assert [problem.path for problem in check_object(document)] == [
        "kind",
        "metadata.name",
        "data",
        "spec.method",
        "spec.lora.rank",
        "spec.image",
    ]


@pytest.mark.parametrize("document", [None, [], "text", 5])
def test_a_document_that_is_not_an_object_is_one_problem(document: Any) -> None:
    assert check_object(document) == (Problem(path="(document)", message="must be a LoraFineTune object"),)


def test_an_object_without_a_spec_is_refused() -> None:
    document = lora_fine_tune().build()
    del document["spec"]

    assert [str(problem) for problem in check_object(document)] == ["spec: must be an object"]


def test_a_string_that_yaml_parses_as_a_date_is_refused_with_its_path() -> None:
    document = lora_fine_tune().with_spec("baseModel.revision", datetime.date(2026, 11, 24)).build()

    assert [problem.path for problem in check_object(document)] == ["spec.baseModel.revision"]


def _paths_with_a_pattern(node: Mapping[str, Any], path: str = "") -> Iterator[str]:
    if "pattern" in node:
        yield path.removeprefix(".")
    for name, field in node.get("properties", {}).items():
        yield from _paths_with_a_pattern(field, f"{path}.{name}")


def test_every_field_with_a_pattern_says_what_it_expects() -> None:
    by_its_model = {"training.gpus", "training.microBatchSize"}

    assert set(_paths_with_a_pattern(object_schema()["properties"]["spec"])) - by_its_model == set(EXPECTED)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(
    value=json_values, path=st.sampled_from(("baseModel", "dataset.train.uri", "lora.targetModules", "training", "x"))
)
def test_any_value_anywhere_is_accepted_or_refused_with_a_path(path: str, value: Any) -> None:
    problems = check_object(lora_fine_tune().with_spec(path, value).build())

    assert all(problem.path.startswith(f"spec.{path.split('.')[0]}") for problem in problems)
