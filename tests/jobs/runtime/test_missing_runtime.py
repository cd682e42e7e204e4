"""A model that was scored without the runtime it is for: evaluate runs again where the runtime is installed."""

from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from support.llama_cpp import python_path_with_llama_cpp
from support.local_runs import new_runs, parameters
from support.stage_runs import StageRuns


def runs_with(folder: Path, edge_format: str) -> StageRuns:
    """Runs of an object with one format."""
    runs = new_runs(folder)
    runs.parameters = parameters(folder, quantization={"formats": [edge_format]})
    return runs


def missing(runs: StageRuns, **environment: str) -> tuple[str, ...] | None:
    """Run prepare; the runtimes that are missing."""
    resolved = runs.run(Stage.PREPARE, **environment).result.resolved
    assert resolved is not None
    return resolved.missing_runtimes


def test_once_llama_cpp_is_installed_models_are_scored_again(tmp_path: Path) -> None:
    runs, later = runs_with(tmp_path, "GGUF-Q8_0"), list(Stage)[1:]
    assert missing(runs) == ("llama.cpp",)
    before = {stage: runs.request(stage).digest for stage in later}

    assert missing(runs, PYTHONPATH=python_path_with_llama_cpp()) is None
    changed = [stage for stage in later if runs.request(stage).digest != before[stage]]
    assert changed == [Stage.EVALUATE, Stage.PUBLISH]


@pytest.mark.parametrize("edge_format", ["BitsAndBytesInt8", "CompressedTensorsW8A8"])
def test_a_format_that_does_not_need_llama_cpp_misses_nothing(tmp_path: Path, edge_format: str) -> None:
    assert missing(runs_with(tmp_path, edge_format)) is None
