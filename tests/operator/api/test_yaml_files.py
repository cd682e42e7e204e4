"""YAML that is read within bounds, and written so that it is read unchanged."""

from pathlib import Path

import pytest

from edgetune_operator.api.yaml_files import read_yaml, yaml_text

DIGEST = "5e5badad0bd41c5b45a7f63c757784da449f0e62b56b906f51bf3e0111da3789"


@pytest.mark.parametrize("text", [DIGEST, "12e4", "1e5-abc", "-1E+7", "0x1f", "1:20", "on", "2026-11-27"])
def test_a_text_that_looks_like_a_number_is_read_as_it_was_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "object.yaml"
    path.write_text(yaml_text({"value": text}), encoding="utf-8")

    assert read_yaml(path) == [{"value": text}]


@pytest.mark.parametrize(("written", "value"), [("2e-4", 2e-4), ("1E3", 1000.0), (DIGEST, DIGEST), ("1e5-a", "1e5-a")])
def test_an_exponent_makes_a_number_only_if_nothing_follows_it(
    tmp_path: Path, written: str, value: float | str
) -> None:
    path = tmp_path / "object.yaml"
    path.write_text(f"value: {written}\n", encoding="utf-8")

    assert read_yaml(path) == [{"value": value}]
