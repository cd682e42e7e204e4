"""Values of the chart that are set to null, with which Helm leaves them out."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from support.apiserver import BINARIES_VARIABLE
from support.chart import ALL_SWITCHES, CHART, Refused, find_helm, rendered_text

pytestmark = pytest.mark.skipif(
    find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH: the chart is not tested"
)

Path = tuple[str, ...]
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
# What Helm's users leave out like this.
REMOVABLE = {("resources", "requests"), ("resources", "limits")}
# Their keys are the users' own.
FREE = {*REMOVABLE, ("metrics", "dashboard", "labels")}


def paths(values: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each value of the chart with its default, at every level."""
    for name, value in values.items():
        path = (*above, name)
        yield path, value
        if isinstance(value, dict) and path not in FREE:
            yield from paths(value, path)


OPTIONAL = {path: default for path, default in paths(VALUES) if not default}
REQUIRED = [path for path, default in paths(VALUES) if default and path not in REMOVABLE]


def with_null(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Values with another one that is null."""
    first, *rest = path
    below = with_null(values.get(first) or {}, tuple(rest)) if rest else None
    return {**values, first: below}


def without(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Values with the chart's default at a path."""
    first, *rest = path
    if first not in values:
        return dict(values)
    if not rest:
        return {name: value for name, value in values.items() if name != first}
    return {**values, first: without(values[first], tuple(rest))}


@pytest.mark.parametrize("is_switch", [True, False], ids=["switches", "others"])
def test_null_is_the_default_of_each_value_that_is_empty_by_default(is_switch: bool) -> None:
    chosen = [path for path, default in OPTIONAL.items() if (default is False) is is_switch]
    nulls, defaults = dict(ALL_SWITCHES), dict(ALL_SWITCHES)
    for path in chosen:
        nulls, defaults = with_null(nulls, path), without(defaults, path)

    assert rendered_text(nulls) == rendered_text(defaults)


def test_null_is_refused_by_name_for_every_other_value() -> None:
    refused = set()
    for depth in (1, 2, 3, 4):
        values: dict[str, Any] = {}
        for path in (path for path in REQUIRED if len(path) == depth):
            values = with_null(values, path)
        with pytest.raises(Refused) as refusal:
            rendered_text(values)
        refused |= {path for path in REQUIRED if len(path) == depth and _is_named(path, str(refusal.value))}

    assert [path for path in REQUIRED if path not in refused] == []


def _is_named(path: Path, message: str) -> bool:
    *above, name = path
    where = "/".join(("", *above))
    return any(
        line.strip().startswith(f"- at '{where}': missing propert") and f"'{name}'" in line
        for line in message.splitlines()
    )


def test_null_leaves_out_the_operators_requests_or_limits() -> None:
    assert "limits:" not in rendered_text({"resources": {"limits": None}}, "--show-only", "templates/deployment.yaml")
