"""The cases of /work/shared/cases: what was silently lost or undone is used, refused, or named."""

from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from support.cases import SMALL, Case, make_base


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama."""
    return make_base(tmp_path_factory.mktemp("llama") / "base", "llama", SMALL)


def test_05_a_training_of_one_step_learns(tmp_path: Path, llama: Path) -> None:
    from safetensors.torch import load_file

    training = {"maxSteps": None, "epochs": 1, "batchSize": 32, "microBatchSize": 32, "learningRate": 0.01}
    case = Case(tmp_path, llama, sections={"training": training})

    trained = case.run_up_to(Stage.TRAIN)[Stage.TRAIN]

    weights = load_file(case.artifact("adapter") / "adapter_model.safetensors")
    assert trained.metrics["steps"] == 1
    assert all(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)
