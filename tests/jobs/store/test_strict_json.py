"""Strict JSON: what it takes, and what it refuses with line and column."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_jobs.store.strict_json import BrokenJson, parse_json


@given(text=st.text())
def test_json_is_parsed_as_the_standard_library_does_or_refused(text: str) -> None:
    try:
        value = parse_json(text)
    except BrokenJson:
        return
    assert value == json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason", "position"),
    [
        ('{"a": NaN}', "broken JSON: NaN is not a JSON number", (None, None)),
        ('{"a": 1, "b": 2, "a": 3}', "broken JSON: duplicate field 'a'", (None, None)),
        ('{"a":\n 1 2}', "broken JSON: Expecting ',' delimiter", (2, 4)),
        ("[" * 100_000, "broken JSON: nested too deeply", (None, None)),
        ("[\x00]", "broken JSON: Expecting value (NUL bytes: is the file UTF-16? save it as UTF-8)", (1, 2)),
    ],
)
def test_what_is_not_strict_json_is_refused_with_its_reason(
    text: str, reason: str, position: tuple[int | None, int | None]
) -> None:
    with pytest.raises(BrokenJson) as refused:
        parse_json(text)

    assert refused.value.reason == reason
    assert (refused.value.line, refused.value.column) == position
