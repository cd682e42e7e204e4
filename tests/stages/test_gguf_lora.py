"""The format GGUF-LoRA: written beside the base, scored by llama.cpp, asked for an answer."""

import json
import math
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.request import Scores
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.evaluation.edge import measuring, runtimes
from edgetune_jobs.evaluation.edge.process import MeasurementRequest
from edgetune_jobs.evaluation.edge.runtimes import AS_STORED, Runtime
from edgetune_jobs.models import loading
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.stages import evaluate, merge, quantize
from support.answers import answer
from support.gguf_adapters import LORA, make_adapter
from support.llama_cpp import packages_of_llama_cpp
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Tuned:
    """A base, an adapter for it, and both merged."""

    base: Path
    adapter: Path
    merged: Path

    def quantize(self, folder: Path, formats: list[str], **inputs: Path) -> tuple[StageOutput, StageContext]:
        """Run quantize; `inputs` replace its inputs."""
        own = {"base": self.base, "adapter": self.adapter, "merged": self.merged}
        context = stage_context(
            Stage.QUANTIZE, tiny_parameters(quantization={"formats": formats}), folder, {**own, **inputs}
        )
        return quantize.run(context), context


@pytest.fixture(scope="module")
def tuned(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    adapter = make_adapter(folder / "adapter", random_base, lora_alpha=160)
    context = stage_context(Stage.MERGE, tiny_parameters(), folder / "merge", {"base": random_base, "adapter": adapter})
    merge.run(context)
    return Tuned(random_base, adapter, context.output / "merged")


@pytest.fixture
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp in the processes of evaluate."""
    monkeypatch.setenv("PYTHONPATH", str(packages_of_llama_cpp()))
    known = runtimes.missing_runtime
    monkeypatch.setattr(
        "edgetune_jobs.evaluation.edge.loading_check.missing_runtime",
        lambda each: None if "GGUF" in each else known(each),
    )


def test_the_artifact_has_adapter_base_and_the_files_of_a_model(tuned: Tuned, tmp_path: Path) -> None:
    output, context = tuned.quantize(tmp_path, ["GGUF-LoRA", "GGUF-Q8_0"])

    folder = context.output / LORA
    assert list(output.artifacts) == [LORA, "edge-gguf-q8_0"]
    assert {"adapter.gguf", "base.gguf", "config.json", "tokenizer.json", "edgetune.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert output.metrics["edgeBytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert output.metrics["updateBytes"] == (folder / "adapter.gguf").stat().st_size
    assert output.metrics["quantizedShare"] > 0.9
    assert output.facts["formats"] == "GGUF-LoRA GGUF-Q8_0"
    merged = context.output / "edge-gguf-q8_0" / "model-Q8_0.gguf"
    assert (folder / "base.gguf").stat().st_size == pytest.approx(merged.stat().st_size, rel=0.05)


def test_the_merged_model_is_not_read_if_no_format_needs_it(tuned: Tuned, tmp_path: Path) -> None:
    output, _ = tuned.quantize(tmp_path, ["GGUF-LoRA"], merged=tmp_path / "nothing")

    assert list(output.artifacts) == [LORA]
    assert output.metrics["quantizedLayers"] > 0


def test_a_base_that_only_the_libraries_read_is_the_same_file(tuned: Tuned, tmp_path: Path) -> None:
    base = shutil.copytree(tuned.base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": None}))
    _, streamed = tuned.quantize(tmp_path / "streamed", ["GGUF-LoRA"])

    output, loaded = tuned.quantize(tmp_path / "loaded", ["GGUF-LoRA"], base=base)

    files = [(each.output / LORA / "base.gguf").read_bytes() for each in (streamed, loaded)]
    assert files[0] == files[1]
    assert any("the whole model was loaded into memory" in warning for warning in output.warnings)


def test_an_adapter_that_is_more_than_two_matrices_a_layer_is_refused(tuned: Tuned, tmp_path: Path) -> None:
    special = make_adapter(tmp_path / "dora", tuned.base, use_dora=True)

    with pytest.raises(InvalidInput) as caught:
        tuned.quantize(tmp_path / "edge", ["GGUF-Q8_0", "GGUF-LoRA"], adapter=special)

    assert str(caught.value).startswith(
        "spec.quantization.formats[1]: GGUF-LoRA does not support this model: the adapter uses use_dora, and llama.cpp "
    )


def evaluated(tuned: Tuned, rows: Path, edge: Path, folder: Path, **evaluation: Any) -> StageOutput:
    parameters = tiny_parameters(quantization={"formats": ["GGUF-LoRA"]}, evaluation={"maxNewTokens": 4, **evaluation})
    inputs = {"base": tuned.base, "prepared": rows, "adapter": tuned.adapter, "merged": tuned.merged, LORA: edge}
    return evaluate.run(stage_context(Stage.EVALUATE, parameters, folder, inputs))


def is_tuned(scores: Scores) -> bool:
    """Whether the edge model's loss is much nearer to that of the tuned model than to that of the base."""
    base, tuned, edge = (scores.details[name].loss or math.nan for name in ("base", "tuned", "edge"))
    return abs(edge - tuned) < 0.3 * abs(base - tuned)


@pytest.mark.usefixtures("llama_cpp")
def test_llama_cpp_scores_the_adapter_on_its_base(tuned: Tuned, few_rows: Path, tmp_path: Path) -> None:
    _, context = tuned.quantize(tmp_path / "quantize", ["GGUF-LoRA"])

    output = evaluated(tuned, few_rows, context.output / LORA, tmp_path / "evaluate")

    assert output.scores is not None
    details = output.scores.details
    assert (details["edge"].runtime or "").startswith("llama.cpp")
    assert output.facts["loaded"] == f"{LORA} by llama.cpp"
    assert is_tuned(output.scores)


def test_without_llama_cpp_transformers_scores_it_and_a_warning_says_so(
    tuned: Tuned, few_rows: Path, tmp_path: Path
) -> None:
    _, context = tuned.quantize(tmp_path / "quantize", ["GGUF-LoRA"])

    output = evaluated(tuned, few_rows, context.output / LORA, tmp_path / "evaluate")

    assert output.scores is not None
    details = output.scores.details
    assert (details["edge"].runtime or "").startswith("transformers")
    assert is_tuned(output.scores)
    assert any(warning.startswith(f"{LORA} was not loaded by its runtime") for warning in output.warnings)


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"adapter.type", b"adapter.kind", "expect adapter.type to be 'lora'"),
        (b"blk.1.attn_q", b"blk.9.attn_q", "does not exist in base model"),
    ],
)
def test_an_adapter_that_llama_cpp_does_not_load_is_refused_with_its_message(
    tuned: Tuned, few_rows: Path, tmp_path: Path, old: bytes, new: bytes, reason: str
) -> None:
    _, context = tuned.quantize(tmp_path / "quantize", ["GGUF-LoRA"])
    file = context.output / LORA / "adapter.gguf"
    file.write_bytes(file.read_bytes().replace(old, new))

    with pytest.raises(InvalidInput, match=rf"formats\[0\]: llama.cpp does not run {LORA}.*{reason}.*remove"):
        evaluated(tuned, few_rows, context.output / LORA, tmp_path / "evaluate")


@pytest.mark.usefixtures("llama_cpp")
def test_its_speed_is_measured_unmerged(tuned: Tuned, tmp_path: Path) -> None:
    _, context = tuned.quantize(tmp_path / "quantize", ["GGUF-LoRA"])
    request = MeasurementRequest(Runtime.LLAMA_CPP, context.output / LORA, AS_STORED, (3, 4, 5, 6), 8, 1, os.getpid())

    speed = measuring.measure(request, tmp_path, threading.Event(), None)

    assert speed.runtime.startswith("llama.cpp")
    assert (speed.generation_tokens_per_second or 0) > 0


def test_it_answers_prompts_as_the_merged_model_does(tuned: Tuned, tmp_path: Path) -> None:
    _, context = tuned.quantize(tmp_path, ["GGUF-LoRA"])

    assert answer(context.output / LORA, "pump 7", max_new_tokens=3) == answer(tuned.merged, "pump 7", max_new_tokens=3)


def test_an_adapter_for_a_layer_that_the_model_lacks_is_refused(tuned: Tuned, tmp_path: Path) -> None:
    _, context = tuned.quantize(tmp_path, ["GGUF-LoRA"])
    file = context.output / LORA / "adapter.gguf"
    file.write_bytes(file.read_bytes().replace(b"blk.1.attn_q", b"blk.9.attn_q"))

    with pytest.raises(InvalidInput, match=r"adapter\.gguf changes blk\.9\.attn_q\.weight\.lora_a"):
        loading.load_stored(context.output / LORA, loading.choose_device())


def test_a_tokenizer_that_adds_bos_where_training_did_not_is_said(tuned: Tuned, tmp_path: Path) -> None:
    from support.tiny_tokenizer import make_tokenizer

    base = shutil.copytree(tuned.base, tmp_path / "base")
    make_tokenizer(adds_bos=True).save_pretrained(base)
    parameters = tiny_parameters(
        quantization={"formats": ["GGUF-LoRA"]},
        dataset={"train": {"uri": "s3://datasets/x.jsonl"}, "template": "<s>{instruction}\n"},
    )
    inputs = {"base": base, "adapter": tuned.adapter, "merged": tuned.merged}

    output = quantize.run(stage_context(Stage.QUANTIZE, parameters, tmp_path / "edge", inputs))

    assert any("llama.cpp adds BOS to each prompt" in warning for warning in output.warnings)


def test_formats_name_the_artifact() -> None:
    assert EdgeFormat("GGUF-LoRA").artifact == LORA
    assert json.loads(json.dumps(EdgeFormat.GGUF_LORA)) == "GGUF-LoRA"
