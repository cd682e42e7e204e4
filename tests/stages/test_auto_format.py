"""evaluate chooses the edge model among candidates that quantize wrote, by what it measures on this CPU."""

import shutil
import sys
from pathlib import Path

import pytest

from edgetune_contract.request import Resolved
from edgetune_contract.results.candidates import PossibleFormat
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.evaluation import scored_models
from edgetune_jobs.evaluation.edge.child_process import CannotRun, OutOfMemory
from edgetune_jobs.models.inspection import inspect_base
from edgetune_jobs.models.loading import load_tokenizer
from edgetune_jobs.models.quantization.llama_cpp import HOW_TO_INSTALL
from edgetune_jobs.models.saving import folder_bytes
from edgetune_jobs.models.skeleton import build_skeleton
from edgetune_jobs.stage import StageOutput
from edgetune_jobs.stages import evaluate, quantize
from edgetune_jobs.store.sources.source import FolderSource, SourceKind
from edgetune_jobs.tensors.formats.candidates import find_candidates
from edgetune_jobs.tensors.formats.suitability import Suitability
from support.edge_models import set_weight
from support.llama_cpp import packages_of_llama_cpp
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters, train

pytestmark = pytest.mark.slow

FORMATS = (EdgeFormat.BITSANDBYTES_INT8, EdgeFormat.GGUF_Q8_0)
RESOLVED = Resolved(
    base="a" * 64,
    train="b" * 64,
    possible=tuple(PossibleFormat(format=each, least_bytes=1) for each in FORMATS),
    formats=FORMATS,
)


@pytest.fixture
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp for this process, and for those that measure and score."""
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.syspath_prepend(packages_of_llama_cpp())
    monkeypatch.setenv("PYTHONPATH", str(packages_of_llama_cpp()))


@pytest.fixture(scope="module")
def inputs(random_base: Path, few_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Inputs of evaluate: an adapter of one step, and both candidates."""
    folder = tmp_path_factory.mktemp("candidates")
    parameters = tiny_parameters(
        training={"maxSteps": 1, "warmupRatio": 0},
        quantization={"formats": "Auto"},
        evaluation={"gates": {"maxEdgeBytes": "1Gi"}},
    )
    adapter = train(folder / "train", parameters, random_base, few_rows).adapter
    context = stage_context(
        Stage.QUANTIZE, parameters, folder / "quantize", {"base": random_base, "adapter": adapter}, resolved=RESOLVED
    )
    output = quantize.run(context)
    assert output.artifacts == tuple(each.artifact for each in FORMATS)
    edges = {name: context.output / name for name in output.artifacts}
    return {"base": random_base, "prepared": few_rows, "adapter": adapter, **edges}


def evaluated(inputs: dict[str, Path], folder: Path, **evaluation: object) -> StageOutput:
    parameters = tiny_parameters(quantization={"formats": "Auto"}, evaluation={"maxNewTokens": 2, **evaluation})
    return evaluate.run(stage_context(Stage.EVALUATE, parameters, folder, inputs, resolved=RESOLVED))


@pytest.mark.usefixtures("llama_cpp")
def test_the_memory_of_a_device_decides_which_runtime_and_format_it_gets(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    # transformers and its libraries take more than this before any model is loaded, llama.cpp less than half of it.
    output = evaluated(inputs, tmp_path, edge={"cpu": 1, "memory": "500Mi"})

    first, second = output.candidates
    assert (first.format, first.limits, first.score) == (EdgeFormat.BITSANDBYTES_INT8, ("edge.memory",), None)
    assert (second.format, second.limits, second.chosen) == (EdgeFormat.GGUF_Q8_0, (), True)
    assert (first.peak_memory_bytes or 0) > 500 * 2**20 > (second.peak_memory_bytes or 2**40)
    assert output.edge is not None
    assert output.edge.runtime.startswith("llama.cpp")
    assert output.edge.generation_tokens_per_second == second.tokens_per_second
    assert output.scores is not None
    assert output.scores.edge == second.score
    assert set(output.scores.details) == {"base", "tuned", "edge"}


def test_without_llama_cpp_its_format_is_not_chosen_and_that_is_said(inputs: dict[str, Path], tmp_path: Path) -> None:
    output = evaluated(inputs, tmp_path, edge={"cpu": 1, "memory": "500Mi"})

    assert not any(each.chosen for each in output.candidates)
    assert output.candidates[1].note.startswith("not measured: llama.cpp is not installed")
    assert (output.scores and output.scores.edge, output.edge) == (None, None)
    why = f"llama.cpp is not installed: {HOW_TO_INSTALL}"
    assert f"GGUF-Q8_0 is not chosen, because it was not measured: {why}" in output.warnings


@pytest.mark.usefixtures("llama_cpp")
def test_a_candidate_whose_loss_is_not_finite_is_not_chosen(inputs: dict[str, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(inputs["edge-bnb-int8"], tmp_path / "broken"))
    set_weight(broken, "model.norm.weight", float("nan"))

    output = evaluated({**inputs, "edge-bnb-int8": broken}, tmp_path / "stage", gates={"maxEdgeBytes": "1Gi"})

    first, second = output.candidates
    assert first.note.startswith("not measured: the loss of the edge-bnb-int8 model on the evaluation rows is nan")
    assert (first.chosen, second.chosen) == (False, True)
    assert output.scores is not None
    assert set(output.scores.details) == {"base", "tuned", "edge"}


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("error", [OutOfMemory("5 bytes are free"), CannotRun("no such tensor")])
def test_a_candidate_that_llama_cpp_cannot_score_is_not_chosen(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(scored_models, "score_in_llama_cpp", fail)
    size = sum(each.stat().st_size for each in inputs["edge-gguf-q8_0"].iterdir())

    output = evaluated(inputs, tmp_path, gates={"maxEdgeBytes": str(size)})

    assert str(error) in output.candidates[1].note
    assert not any(each.chosen for each in output.candidates)


@pytest.mark.usefixtures("llama_cpp")
def test_a_limit_on_bytes_alone_needs_no_measurement_of_speed(inputs: dict[str, Path], tmp_path: Path) -> None:
    size = sum(each.stat().st_size for each in inputs["edge-gguf-q8_0"].iterdir())
    output = evaluated(inputs, tmp_path, gates={"maxEdgeBytes": str(size)})

    first, second = output.candidates
    assert (first.limits, first.loss) == (("maxEdgeBytes",), None)
    assert (second.bytes, second.chosen, second.tokens_per_second) == (size, True, None)
    assert second.loss is not None
    assert output.edge is None


def test_no_format_has_fewer_bytes_than_prepare_says(inputs: dict[str, Path]) -> None:
    base = inspect_base(FolderSource(inputs["base"].as_uri(), "spec.baseModel", SourceKind.MODEL))
    suitability = Suitability(base, build_skeleton(base.folder), lambda: load_tokenizer(base.folder))
    parameters = tiny_parameters(quantization={"formats": "Auto"}, evaluation={"gates": {"maxEdgeBytes": "1Gi"}})

    found = find_candidates(suitability, parameters, lambda each: None if each in FORMATS else "not written")

    written = {each: folder_bytes(inputs[each.artifact]) for each in FORMATS}
    assert {each.format for each in found.possible} == set(FORMATS)
    for each in found.possible:
        assert 0.3 * written[each.format] < each.least_bytes < written[each.format]
