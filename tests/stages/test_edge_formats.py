"""Several edge formats in one run: one pass over the weights, and every format is scored."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.spec import EdgeFormat, Method
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models import loading
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.stages import evaluate, merge, quantize
from support import families
from support.answers import answer
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters
from support.tiny_tokenizer import make_tokenizer

pytestmark = pytest.mark.slow

ALL = ["GGUF-Q8_0", "BitsAndBytesInt8", "CompressedTensorsW8A8"]
ARTIFACTS = ["edge-gguf-q8_0", "edge-bnb-int8", "edge-ct-w8a8"]


@dataclass(frozen=True)
class Tuned:
    """A base, an adapter for it, and both merged."""

    base: Path
    adapter: Path
    merged: Path

    def quantize(
        self, folder: Path, formats: list[str], *, keep: bool = True, **sections: Any
    ) -> tuple[StageOutput, StageContext]:
        parameters = tiny_parameters(quantization={"formats": formats}, merge={"keep": keep}, **sections)
        inputs = {"merged": self.merged} if keep else {"base": self.base, "adapter": self.adapter}
        context = stage_context(Stage.QUANTIZE, parameters, folder, inputs)
        return quantize.run(context), context


def make_adapter(folder: Path, base: Path, **options: Any) -> Path:
    targets = {"target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    return families.make_adapter(folder, base, method=Method.LORA, base_dtype="bfloat16", dtype="float32", **targets)


@pytest.fixture(scope="module")
def tuned(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    adapter = make_adapter(folder / "adapter", random_base)
    context = stage_context(Stage.MERGE, tiny_parameters(), folder / "merge", {"base": random_base, "adapter": adapter})
    merge.run(context)
    return Tuned(random_base, adapter, context.output / "merged")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_pass_for_all_formats_writes_the_same_bytes_as_a_pass_for_each(tuned: Tuned, tmp_path: Path) -> None:
    together, context = tuned.quantize(tmp_path / "together", ALL)

    assert list(together.artifacts) == ARTIFACTS
    read = [update["done"] for update in context.progress.updates]  # type: ignore[attr-defined]
    assert read == sorted(read)
    assert read[-1] == context.progress.updates[-1]["total"]  # type: ignore[attr-defined]
    for edge_format, artifact in zip(ALL, ARTIFACTS, strict=True):
        alone, its_context = tuned.quantize(tmp_path / artifact, [edge_format])
        assert files_of(context.output / artifact) == files_of(its_context.output / artifact)
        size = sum(map(len, files_of(its_context.output / artifact).values()))
        assert alone.metrics["edgeBytes"] == size
    first = sum(map(len, files_of(context.output / ARTIFACTS[0]).values()))
    assert together.metrics["edgeBytes"] == first
    assert together.facts["formats"] == "GGUF-Q8_0 BitsAndBytesInt8 CompressedTensorsW8A8"


def test_formats_have_the_same_bytes_without_a_stored_merged_model(tuned: Tuned, tmp_path: Path) -> None:
    _, kept = tuned.quantize(tmp_path / "kept", ALL)
    _, fused = tuned.quantize(tmp_path / "fused", ALL, keep=False)

    for artifact in ARTIFACTS:
        assert files_of(fused.output / artifact) == files_of(kept.output / artifact)


def test_an_adapter_that_only_peft_can_merge_gets_all_formats_too(tuned: Tuned, tmp_path: Path) -> None:
    special = make_adapter(tmp_path / "dora", tuned.base, use_dora=True)

    output, context = Tuned(tuned.base, special, tuned.merged).quantize(tmp_path / "edge", ALL, keep=False)

    assert output.facts["path"] == "library"
    for artifact in ARTIFACTS:
        loading.load_stored(context.output / artifact, loading.choose_device())


def test_a_model_type_that_gguf_does_not_support_is_refused_in_quantize_too(tmp_path: Path) -> None:
    gemma = families.make_model(tmp_path / "gemma", "gemma", tied=True, dtype="bfloat16")

    with pytest.raises(InvalidInput) as caught:
        Tuned(gemma, gemma, gemma).quantize(tmp_path / "edge", ["BitsAndBytesInt8", "GGUF-Q8_0"])
    assert str(caught.value).startswith(
        "spec.quantization.formats[1]: GGUF-Q8_0 does not support this model: the model type 'gemma' is not one of "
    )


@pytest.mark.parametrize("edge_format", ALL)
def test_a_broken_tokenizer_of_the_merged_model_is_said_to_be_there(
    edge_format: str, tuned: Tuned, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    shutil.copytree(tuned.merged, merged)
    (merged / "tokenizer.json").write_text("{}")
    broken = Tuned(merged, tuned.adapter, merged)

    with pytest.raises(InvalidInput) as of_merged:
        broken.quantize(tmp_path / "edge", [edge_format])
    with pytest.raises(InvalidInput) as of_base:
        broken.quantize(tmp_path / "fused", [edge_format], keep=False)

    assert str(of_merged.value).startswith(f"the merged model ({merged.as_uri()}): cannot load the tokenizer")
    assert str(of_base.value).startswith("spec.baseModel.uri: s3://models/tiny: cannot load the tokenizer")


def test_every_format_is_scored_and_the_first_is_the_edge_model(tuned: Tuned, few_rows: Path, tmp_path: Path) -> None:
    _, quantized = tuned.quantize(tmp_path / "quantize", ALL)
    parameters = tiny_parameters(quantization={"formats": ALL}, evaluation={"maxNewTokens": 4})
    inputs = {"base": tuned.base, "prepared": few_rows, "adapter": tuned.adapter, "merged": tuned.merged}
    inputs |= {artifact: quantized.output / artifact for artifact in ARTIFACTS}
    context = stage_context(Stage.EVALUATE, parameters, tmp_path / "evaluate", inputs)

    scores = evaluate.run(context).scores

    assert scores is not None
    assert list(scores.details) == ["base", "tuned", "merged", "edge", "edge-bnb-int8", "edge-ct-w8a8"]
    merged = scores.details["merged"].loss
    assert merged is not None
    for name in ("edge", "edge-bnb-int8", "edge-ct-w8a8"):
        assert scores.details[name].loss == pytest.approx(merged, rel=0.02)
    answers = json.loads((context.output / "evaluation" / "answers.jsonl").read_text().splitlines()[0])
    assert {"edge", "edge-bnb-int8", "edge-ct-w8a8"} <= answers.keys()


def test_edge_models_in_other_formats_answer_prompts(tuned: Tuned, tmp_path: Path) -> None:
    _, context = tuned.quantize(tmp_path / "quantize", ["GGUF-Q8_0", "CompressedTensorsW8A8"])
    expected = answer(tuned.merged, "pump 7", max_new_tokens=3)

    for edge_format in (EdgeFormat.GGUF_Q8_0, EdgeFormat.COMPRESSED_TENSORS_W8A8):
        assert answer(context.output / edge_format.artifact, "pump 7", max_new_tokens=3) == expected


@pytest.mark.parametrize(("start", "adds_bos"), [("", True), ("<s>", False)])
def test_llama_cpp_adds_bos_unless_the_template_has_it(
    tuned: Tuned, tmp_path: Path, start: str, adds_bos: bool
) -> None:
    from gguf import GGUFReader

    make_tokenizer(adds_bos=True).save_pretrained(shutil.copytree(tuned.merged, tmp_path / "merged"))
    dataset = {"train": {"uri": "s3://datasets/x.jsonl"}, "template": f"{start}{{instruction}}\n"}
    edited = replace(tuned, merged=tmp_path / "merged")

    _, context = edited.quantize(tmp_path / "quantize", ["GGUF-Q8_0"], dataset=dataset)

    (file,) = (context.output / "edge-gguf-q8_0").glob("*.gguf")
    assert bool(GGUFReader(file).fields["tokenizer.ggml.add_bos_token"].contents()) is adds_bos
