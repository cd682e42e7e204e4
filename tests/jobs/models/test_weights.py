"""Errors about missing or invalid weights name the spec field or the artifact of the model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.adapters.adapter_files import RECORD
from edgetune_jobs.stages import merge, quantize
from support.base_folder import make_base
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_an_adapters_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def with_an_invalid_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[]")


def truncated(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])


TRAINING = {
    "method": "LoRA",
    "precision": "FP32",
    "baseDtype": "float32",
    "base": {"uri": "s3://models/tiny"},
    "steps": 1,
    "epochs": 1,
    "loss": 1,
    "trainableParameters": 1,
    "totalParameters": 2,
    "seed": 0,
}
DAMAGES = {
    without_weights: " has neither model.safetensors nor model.safetensors.index.json (found: config.json, ",
    with_an_adapters_weights: " is a LoRA adapter, not a model; merge it into its base model first",
    with_an_invalid_index: ": model.safetensors.index.json is not a JSON object; save or copy the model again",
    truncated: ": model.safetensors is not a valid safetensors file: ",
}


@pytest.fixture
def damaged(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = make_base(tmp_path / "model")
    request.param(folder)
    return folder


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as refused:
        call()
    return str(refused.value)


@pytest.mark.parametrize(("damaged", "problem"), DAMAGES.items(), indirect=["damaged"])
def test_the_error_about_a_damaged_merged_model_names_the_artifact(damaged: Path, problem: str, tmp_path: Path) -> None:
    context = stage_context(Stage.QUANTIZE, tiny_parameters(), tmp_path / "quantize", {"merged": damaged})

    assert refusal(lambda: quantize.run(context)).startswith(f"the merged model ({damaged.as_uri()}){problem}")


@pytest.mark.parametrize(("damaged", "problem"), DAMAGES.items(), indirect=["damaged"])
def test_the_error_about_a_damaged_base_names_the_spec_field_and_its_value(
    damaged: Path, problem: str, tmp_path: Path
) -> None:
    parameters = tiny_parameters(baseModel={"uri": "s3://models/tiny"})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / RECORD).write_text(json.dumps(TRAINING))
    context = stage_context(Stage.MERGE, parameters, tmp_path / "merge", {"base": damaged, "adapter": adapter})

    assert refusal(lambda: merge.run(context)).startswith(f"spec.baseModel.uri: s3://models/tiny{problem}")
