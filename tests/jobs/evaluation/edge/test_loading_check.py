"""Edge models are loaded by the runtime they are for; what it refuses is not published."""

from pathlib import Path

import pytest

from edgetune_contract.results.measurement import ModelSpeed
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.evaluation.edge import budget, runtimes
from edgetune_jobs.evaluation.edge.loading_check import check_loading
from edgetune_jobs.stage import StageContext
from support.edge_models import make_model, write_gguf
from support.llama_cpp import packages_of_llama_cpp
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters


def context_of(folder: Path, **inputs: Path) -> StageContext:
    formats = ["GGUF-Q8_0", "BitsAndBytesInt8", "CompressedTensorsW8A8"]
    parameters = tiny_parameters(quantization={"formats": formats})
    named = {name.replace("_", "-", 2): path for name, path in inputs.items()}
    return stage_context(Stage.EVALUATE, parameters, folder, named)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp in the processes of the check."""
    monkeypatch.setenv("PYTHONPATH", str(packages_of_llama_cpp()))
    known = runtimes.missing_runtime
    monkeypatch.setattr(
        "edgetune_jobs.evaluation.edge.loading_check.missing_runtime",
        lambda each: None if "GGUF" in each else known(each),
    )


def test_what_no_runtime_here_loads_is_said(tmp_path: Path) -> None:
    loaded = check_loading(context_of(tmp_path), (3, 4))

    assert loaded.facts == (
        "edge-gguf-q8_0 not loaded by its runtime, edge-bnb-int8 by transformers, "
        "edge-ct-w8a8 not loaded by its runtime"
    )
    assert [warning.partition(":")[0] for warning in loaded.warnings] == [
        "edge-gguf-q8_0 was not loaded by its runtime",
        "edge-ct-w8a8 was not loaded by its runtime",
    ]


def test_a_missing_runtime_is_said_once_with_all_that_it_prevents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "measure", lambda *_: ModelSpeed(runtime="transformers", peak_memory_bytes=1))
    parameters = tiny_parameters(quantization={"formats": ["BitsAndBytesInt8", "GGUF-Q8_0"]}, evaluation={"edge": {}})
    inputs = dict.fromkeys(("base", "edge-bnb-int8", "edge-gguf-q8_0"), tmp_path)
    context = stage_context(Stage.EVALUATE, parameters, tmp_path / "stage", inputs)

    warnings = (*check_loading(context, (3, 4)).warnings, *budget.measure_models(context, (3, 4)).warnings)

    (warning,) = [each for each in warnings if "edge-gguf-q8_0" in each]
    assert warning.startswith(
        "edge-gguf-q8_0 was not loaded by its runtime, and its speed not measured: llama.cpp is not installed"
    )


@pytest.mark.usefixtures("installed")
def test_gguf_is_loaded_by_llama_cpp(tmp_path: Path) -> None:
    edge = write_gguf(make_model(tmp_path / "model", "llama"), tmp_path / "edge").parent

    loaded = check_loading(context_of(tmp_path / "stage", edge_gguf_q8_0=edge), (3, 4))

    assert loaded.facts.startswith("edge-gguf-q8_0 by llama.cpp,")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("changed", "reason"), [("tensors", "wrong number of tensors"), ("bytes", "tensor|read|bounds")]
)
def test_what_llama_cpp_does_not_load_is_refused_with_its_message(tmp_path: Path, changed: str, reason: str) -> None:
    model = make_model(tmp_path / "model", "llama biases" if changed == "tensors" else "llama")
    file = write_gguf(model, tmp_path / "edge")
    data = file.read_bytes()
    # Biases of no known name are more tensors than llama.cpp reads.
    file.write_bytes(data.replace(b"attn_q.bias", b"attn_x.bias") if changed == "tensors" else data[: len(data) // 2])

    with pytest.raises(InvalidInput, match=rf"formats\[0\]: llama.cpp does not run edge-gguf-q8_0.*({reason}).*remove"):
        check_loading(context_of(tmp_path / "stage", edge_gguf_q8_0=file.parent), (3, 4))


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        ("raise OSError('libgomp.so.1: cannot open shared object file')", "its process ended with exit code 1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "the CPU of this machine lacks an instruction"),
    ],
)
def test_a_runtime_that_does_not_start_here_is_said_and_refuses_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, reason: str
) -> None:
    (tmp_path / "llama_cpp.py").write_text(library)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("edgetune_jobs.evaluation.edge.loading_check.missing_runtime", lambda _: None)
    parameters = tiny_parameters(quantization={"formats": ["GGUF-Q8_0"]})
    context = stage_context(Stage.EVALUATE, parameters, tmp_path / "stage", {"edge-gguf-q8_0": tmp_path})

    loaded = check_loading(context, (3, 4))

    assert loaded.facts == "edge-gguf-q8_0 not loaded by its runtime"
    (warning,) = loaded.warnings
    assert warning.startswith("edge-gguf-q8_0 was not loaded by its runtime: llama.cpp does not start here: ")
    assert reason in warning
