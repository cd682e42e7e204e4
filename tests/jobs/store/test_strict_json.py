"""Strict JSON: accepted texts, and refusals with line and column."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_jobs.store.strict_json import InvalidJson, parse_json


@given(text=st.text())
def test_a_text_is_refused_or_parsed_as_by_the_standard_library(text: str) -> None:
    try:
        value = parse_json(text)
    except InvalidJson:
        return
    assert value == json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason", "position"),
    [
        ('{"a": NaN}', "invalid JSON: NaN is not a JSON number", (None, None)),
        ('{"a": 1, "b": 2, "a": 3}', "invalid JSON: duplicate field 'a'", (None, None)),
        (
            "{" + '"x": 0, ' * 2 + ", ".join(f'"{n}": 0' for n in range(300_000)) + "}",
            "invalid JSON: duplicate field 'x'",
            (None, None),
        ),
        (
            "{" + ", ".join(f'"{n}": 0' for n in range(300_000)) + ', "299999": 0}',
            "invalid JSON: duplicate field '299999'",
            (None, None),
        ),
        ('{"a":\n 1 2}', "invalid JSON: Expecting ',' delimiter", (2, 4)),
        ("[" * 100_000, "invalid JSON: nested too deeply", (None, None)),
        (
            "[\x00]",
            "invalid JSON: Expecting value (NUL bytes: if the file is UTF-16, save it as UTF-8)",
            (1, 2),
        ),
    ],
)
def test_a_text_that_is_not_strict_json_is_refused_with_the_reason(
    text: str, reason: str, position: tuple[int | None, int | None]
) -> None:
    with pytest.raises(InvalidJson) as refused:
        parse_json(text)

    assert refused.value.reason == reason
    assert (refused.value.line, refused.value.column) == position
