"""Addresses of models, versions, stages and artifacts."""

from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.addresses import ModelAddress, StageAddress, parse_address
from support.published import ATTEMPT, EDGE

WEIGHTS = "model.safetensors"
DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b/models/m", ModelAddress("s3://b", "m", None)),
        ("s3://b/p/ns/models/m/latest.json", ModelAddress("s3://b/p/ns", "m", None)),
        ("s3://b/models/x/models/m/", ModelAddress("s3://b/models/x", "m", None)),
        (f"s3://b/ns/models/m/versions/{DIGEST}.json", ModelAddress("s3://b/ns", "m", DIGEST)),
        ("s3://b/ns/models/models/latest.json", ModelAddress("s3://b/ns", "models", None)),
        ("s3://b/models/models/models/models", ModelAddress("s3://b/models/models", "models", None)),
        (f"file:///s/models/models/models/versions/{DIGEST}.json", ModelAddress("file:///s/models", "models", DIGEST)),
        ("s3://b/ns/models/latest.json/latest.json", ModelAddress("s3://b/ns", "latest.json", None)),
        ("file:///s/ns/models/m", ModelAddress("file:///s/ns", "m", None)),
        (f"s3://b/ns/stages/merge/{DIGEST}", StageAddress("s3://b/ns", Stage.MERGE, DIGEST, None)),
        (f"s3://b/ns/stages/train/{DIGEST}/manifest.json", StageAddress("s3://b/ns", Stage.TRAIN, DIGEST, None)),
        (
            f"s3://b/ns/stages/quantize/{DIGEST}/{ATTEMPT}/{EDGE}/",
            StageAddress("s3://b/ns", Stage.QUANTIZE, DIGEST, f"{ATTEMPT}/{EDGE}"),
        ),
    ],
)
def test_an_address_is_split_into_the_store_and_the_model_or_stage(text: str, expected: object) -> None:
    assert parse_address(text) == expected


def test_a_relative_path_is_an_address_below_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert parse_address("a b/../store/models/m") == ModelAddress((tmp_path / "store").as_uri(), "m", None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "s3://b",
        "s3://models/m",
        "https://h/models/m",
        "s3://b/models/m/versions",
        f"s3://b/stages/{DIGEST}",
        f"s3://b/stages/quantize/{DIGEST}/{ATTEMPT}",
        f"s3://b/stages/quantize/{DIGEST}/{ATTEMPT}/{EDGE}/{WEIGHTS}",
    ],
)
def test_the_message_about_an_invalid_address_lists_valid_ones(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"is not an address in a store: use a model's …/models/NAME/latest\.json"):
        parse_address(text)
