"""Which namespaces a profile names or selects."""

import pytest
from pydantic import ValidationError

from edgetune_operator.api.profiles.tenants import LabelSelector, Namespaces, Tenant

LABELS = {"team": "a", "gpu": "yes"}


@pytest.mark.parametrize(
    ("requirement", "matches"),
    [
        ({"key": "team", "operator": "In", "values": ["a", "b"]}, True),
        ({"key": "team", "operator": "In", "values": ["b"]}, False),
        ({"key": "absent", "operator": "In", "values": ["b"]}, False),
        ({"key": "team", "operator": "NotIn", "values": ["b"]}, True),
        ({"key": "team", "operator": "NotIn", "values": ["a"]}, False),
        ({"key": "absent", "operator": "NotIn", "values": ["a"]}, True),
        ({"key": "gpu", "operator": "Exists"}, True),
        ({"key": "absent", "operator": "Exists"}, False),
        ({"key": "absent", "operator": "DoesNotExist"}, True),
        ({"key": "gpu", "operator": "DoesNotExist"}, False),
    ],
)
def test_requirements_mean_what_they_mean_in_kubernetes(requirement: dict[str, object], *, matches: bool) -> None:
    selector = LabelSelector.model_validate({"matchExpressions": [requirement]})

    assert selector.matches(LABELS) is matches


def test_all_requirements_of_a_selector_must_hold() -> None:
    both = {"matchLabels": {"team": "a"}, "matchExpressions": [{"key": "gpu", "operator": "Exists"}]}
    selector = LabelSelector.model_validate(both)

    assert selector.matches(LABELS)
    assert not selector.matches({"team": "a"})
    assert not selector.matches({"gpu": "yes", "team": "b"})


def test_a_namespace_is_chosen_by_its_name_or_by_its_labels() -> None:
    namespaces = Namespaces.model_validate({"names": ["team-b"], "selector": {"matchLabels": {"team": "a"}}})

    assert namespaces.include(Tenant("team-b"))
    assert namespaces.include(Tenant("anything", LABELS))
    assert not namespaces.include(Tenant("team-a"))
    assert not Namespaces().include(Tenant("team-a", LABELS))


@pytest.mark.parametrize(
    ("selector", "problem"),
    [
        ({}, "an empty selector matches every namespace"),
        ({"matchExpressions": [{"key": "a", "operator": "In"}]}, "the operator In needs values"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}, "Exists must have no values"),
        ({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}, "'In', 'NotIn', 'Exists' or"),
    ],
)
def test_a_selector_that_selects_by_mistake_is_refused(selector: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        LabelSelector.model_validate(selector)
