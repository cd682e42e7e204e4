"""K-quants: llama.cpp's quantizer makes them in quantize, from one file on the disk."""

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.data.prepared_data import TRAIN
from edgetune_jobs.errors import Interrupted, InvalidInput, TransientError
from edgetune_jobs.evaluation.edge.loading_check import check_loading
from edgetune_jobs.models import loading
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.stages import quantize
from edgetune_jobs.tensors.formats.gguf import quantizer
from support.edge_models import FAMILIES, make_model
from support.llama_cpp import install_for_children, run_llama_cpp
from support.stage_context import RecordedProgress, stage_context
from support.tiny_runs import tiny_parameters

pytestmark = pytest.mark.slow

K_QUANTS = ("GGUF-Q4_K_M", "GGUF-Q5_K_M", "GGUF-Q6_K")
# Rows of whole blocks of 256 values, and weights of such a size that attention is not decided by rounding.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.08}
CPU = torch.device("cpu")
# Root mean square of the difference, relative to that of the logits: llama.cpp rounds activations to 8 bits.
CLOSE = 0.09


@pytest.fixture(autouse=True)
def _llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    install_for_children(monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "llama", "llama", dtype="bfloat16", **WIDE)


def context_of(folder: Path, merged: Path, formats: tuple[str, ...], **options: Any) -> StageContext:
    parameters = tiny_parameters(quantization={"formats": list(formats)})
    return stage_context(Stage.QUANTIZE, parameters, folder, {"merged": merged}, **options)


def run(folder: Path, merged: Path, *formats: str) -> tuple[StageOutput, StageContext]:
    context = context_of(folder, merged, formats)
    return quantize.run(context), context


def file_of(context: StageContext, edge_format: str) -> Path:
    (file,) = (context.output / EdgeFormat(edge_format).artifact).glob("*.gguf")
    return file


def types_of(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return loading.load_stored(folder, CPU)(ids[None]).logits[0].float()


def by_llama_cpp(file: Path, ids: torch.Tensor) -> torch.Tensor:
    answer = run_llama_cpp(file, prompts=[ids.tolist()], max_new_tokens=1, context=256)
    return torch.tensor(answer["logits"][0])


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).pow(2).mean().sqrt() / expected.std())


def test_all_k_quants_are_written_from_one_pass_and_load_in_both_runtimes(model: Path, tmp_path: Path) -> None:
    output, context = run(tmp_path, model, *K_QUANTS, "GGUF-BF16")

    files = {each: file_of(context, each) for each in (*K_QUANTS, "GGUF-BF16")}
    sizes = [file.stat().st_size for file in files.values()]
    assert sizes == sorted(sizes)
    assert [file.name for file in files.values()] == [
        "model-Q4_K_M.gguf",
        "model-Q5_K_M.gguf",
        "model-Q6_K.gguf",
        "model-BF16.gguf",
    ]
    assert output.warnings == ()
    assert output.metrics["edgeBytes"] == sum(path.stat().st_size for path in files["GGUF-Q4_K_M"].parent.iterdir())
    shares = dict(each.rsplit(" ", 1) for each in output.facts["quantizedShares"].split(", "))
    assert shares["GGUF-Q4_K_M"] == shares["GGUF-Q6_K"]
    assert float(shares["GGUF-Q4_K_M"].rstrip("%")) > 99
    assert shares["GGUF-BF16"] == "0.0%"
    assert list(context.scratch.iterdir()) == [context.scratch / "quantizer.log"]

    ids = torch.randint(4, 340, (60,), generator=torch.Generator().manual_seed(1))
    expected = logits(model, ids)
    lost = []
    for file in files.values():
        read = logits(file.parent, ids)
        assert difference(by_llama_cpp(file, ids), read) < CLOSE, file.name
        lost.append(difference(read, expected))
    assert lost == sorted(lost, reverse=True)
    assert lost[0] < 0.5
    assert lost[-1] < 0.03


def test_the_types_of_the_tensors_are_those_of_llama_cpps_own_choice(model: Path, tmp_path: Path) -> None:
    _, context = run(tmp_path, model, "GGUF-Q4_K_M")
    file = file_of(context, "GGUF-Q4_K_M")

    found = types_of(file)

    assert found["blk.0.attn_q.weight"] == "Q4_K"
    assert found["output.weight"] == "Q6_K"
    assert found["blk.0.attn_norm.weight"] == "F32"
    assert gguf.GGUFReader(file).fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_quantizes_and_runs_each_family(family: str, tmp_path: Path) -> None:
    source = make_model(tmp_path / "model", family, dtype="bfloat16", intermediate_size=512, initializer_range=0.1)
    _, context = run(tmp_path / "stage", source, "GGUF-Q6_K")
    file = file_of(context, "GGUF-Q6_K")
    ids = torch.randint(4, 340, (60,), generator=torch.Generator().manual_seed(1))

    assert difference(by_llama_cpp(file, ids), logits(file.parent, ids)) < CLOSE


def test_rows_that_are_not_whole_blocks_are_said(tmp_path: Path) -> None:
    narrow = make_model(tmp_path / "model", "llama", dtype="bfloat16", hidden_size=288, intermediate_size=512)

    output, context = run(tmp_path / "stage", narrow, "GGUF-Q4_K_M")

    assert types_of(file_of(context, "GGUF-Q4_K_M"))["blk.0.attn_q.weight"] == "Q5_0"
    (warning,) = output.warnings
    assert warning == (
        "GGUF-Q4_K_M: 81% of the weights have rows that are not a multiple of 256 values, which llama.cpp writes with "
        "more bits: Q5_0 instead of Q4_K, Q5_1 instead of Q5_K, Q8_0 instead of Q6_K"
    )


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "F16"), ("float32", "F32"), ("bfloat16", "BF16")])
def test_llama_cpp_quantizes_the_weights_as_they_are(
    dtype: str, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_model(tmp_path / "model", "llama", dtype=dtype, **WIDE)
    seen: dict[str, str] = {}
    known = quantizer.quantize

    def looking(edge_format: EdgeFormat, path: str, context: StageContext, matrix: Path | None) -> int:
        seen.update(types_of(context.scratch / quantizer.SOURCE))
        return known(edge_format, path, context, matrix)

    monkeypatch.setattr(quantizer, "quantize", looking)
    run(tmp_path / "stage", source, "GGUF-Q6_K")

    assert seen["blk.0.attn_q.weight"] == stored
    assert seen["blk.0.attn_norm.weight"] == "F32"


def test_progress_counts_tensors_and_a_stop_leaves_nothing(model: Path, tmp_path: Path) -> None:
    stop, progress = threading.Event(), RecordedProgress()
    context = context_of(tmp_path, model, K_QUANTS, progress=progress, stop=stop)
    progress.on_update = lambda _: stop.set() if progress.updates[-1]["unit"] == "tensors" else None

    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        quantize.run(context)

    assert progress.said[-1] == "quantizing to GGUF-Q4_K_M in llama.cpp"
    assert progress.updates[-1]["total"] == len(types_of_model(model))
    assert [path.name for path in context.scratch.iterdir()] == ["quantizer.log"]
    assert list(context.output.rglob("*.gguf")) == []


def types_of_model(model: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as file:
        return list(file.keys())


def test_what_llama_cpp_does_not_quantize_is_refused_with_its_message_and_its_log(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = quantizer.quantize

    def damaging(edge_format: EdgeFormat, path: str, context: StageContext, matrix: Path | None) -> int:
        os.truncate(context.scratch / quantizer.SOURCE, 100_000)
        return known(edge_format, path, context, matrix)

    monkeypatch.setattr(quantizer, "quantize", damaging)

    with pytest.raises(
        InvalidInput, match=r"formats\[0\]: GGUF-Q4_K_M does not .*: llama.cpp does not quantize it: .*failed to quant"
    ):
        run(tmp_path, model, "GGUF-Q4_K_M")

    assert "failed to quantize" in capsys.readouterr().err


def test_llama_cpps_log_is_not_shown_when_it_succeeds(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, model, "GGUF-Q6_K")

    assert "blk.0" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("library", "error", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", TransientError, "give the stage quantize more"),
        ("raise OSError('libgomp.so.1: not found')", InvalidInput, "it does not start here: libgomp.so.1: not found"),
        ("import os; os.abort()", InvalidInput, "its process ended with exit code -6"),
    ],
)
def test_a_process_that_ends_badly_is_said(
    library: str, error: type[Exception], reason: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text(library)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(error, match=reason):
        run(tmp_path / "stage", model, "GGUF-Q4_K_M")


def test_a_full_disk_is_said_as_such(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise OSError('basic_ios::clear: iostream error')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        run(tmp_path / "stage", model, "GGUF-Q4_K_M")
    assert caught.value.errno == errno.ENOSPC


def uneven(model: Path) -> Path:
    """Make some inputs of the linear layers much larger than others, by the weights of the norms before them."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(2)
    for name, weight in weights.items():
        if "layernorm" in name:
            weights[name] = weight * torch.randn(weight.shape, generator=generator).mul(1.5).exp().to(weight.dtype)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


def prepared_rows(folder: Path, ids: torch.Tensor) -> Path:
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    parquet.write_table(pyarrow.table({"input_ids": ids.tolist()}), folder / TRAIN)
    return folder


def test_an_importance_matrix_from_training_rows_loses_less_on_such_rows(tmp_path: Path) -> None:
    source = uneven(make_model(tmp_path / "model", "llama", dtype="bfloat16", **WIDE))
    ids = torch.randint(4, 340, (8, 60), generator=torch.Generator().manual_seed(1))
    inputs = {"merged": source, "prepared": prepared_rows(tmp_path / "prepared", ids)}
    lost, files = [], []
    for is_weighed in (False, True):
        parameters = tiny_parameters(quantization={"formats": list(K_QUANTS), "importanceMatrix": is_weighed})
        context = stage_context(Stage.QUANTIZE, parameters, tmp_path / f"{is_weighed}", inputs)
        quantize.run(context)
        files.append(file_of(context, "GGUF-Q4_K_M"))
        lost.append(difference(logits(files[-1].parent, ids[0]), logits(source, ids[0])))

    assert types_of(files[0]) == types_of(files[1])
    assert lost[1] < 0.9 * lost[0]
    assert context.progress.said.count("computing the importance matrix on training rows") == 1  # type: ignore[attr-defined]


def test_a_k_quant_that_llama_cpp_cannot_load_is_not_published(model: Path, tmp_path: Path) -> None:
    _, quantized = run(tmp_path / "quantize", model, "GGUF-Q4_K_M")
    file = file_of(quantized, "GGUF-Q4_K_M")
    folder = file.parent
    parameters = tiny_parameters(quantization={"formats": ["GGUF-Q4_K_M"]})
    context = stage_context(Stage.EVALUATE, parameters, tmp_path / "evaluate", {folder.name: folder})

    assert check_loading(context, (3, 4)).facts == "edge-gguf-q4_k_m by llama.cpp"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(
        InvalidInput, match=r"llama.cpp does not run edge-gguf-q4_k_m, so it is not published: .*GGUF-Q4_K_M"
    ):
        check_loading(context, (3, 4))
