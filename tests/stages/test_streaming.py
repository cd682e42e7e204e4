"""Models merged and quantized by tensor equal those of peft, bitsandbytes and transformers bit for bit."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_contract.spec import Method
from edgetune_contract.stages import Stage
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.models import loading
from edgetune_jobs.models.folder import LocalModelFolder
from edgetune_jobs.models.quantization.coverage import int8_linears
from edgetune_jobs.models.saving import folder_bytes, save_model, write_chat_template
from edgetune_jobs.models.tuned_model import merge_adapter
from edgetune_jobs.models.weights import read_tensors
from edgetune_jobs.stage import StageOutput
from edgetune_jobs.stages import merge, quantize
from edgetune_jobs.tensors.families import find_layout
from edgetune_jobs.tensors.streamed_model import can_stream
from support.families import FAMILIES, add_unused_tensors, make_adapter, make_model
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters
from support.tiny_tokenizer import save_tokenizer

pytestmark = pytest.mark.usefixtures("two_threads")

ALL_LINEAR = {"target_modules": "all-linear"}
DEMO = "smollm2-135m"
DEMO_BASE = Path(__file__).parents[2] / "examples" / "sensor-faults" / "base"


@dataclass(frozen=True)
class Case:
    """A base and an adapter for it."""

    family: str
    tied: bool = False
    stored: str = "bfloat16"
    """dtype of the base's files."""

    older: bool = False
    """Saved as by older versions of the libraries, with buffers and duplicate tensors."""

    held: str = "bfloat16"
    """dtype of the base during training."""

    adapter: str = "float32"
    shards: int = 1
    method: Method = Method.QLORA
    base: str = "AsTrained"
    lora: dict[str, Any] = field(default_factory=lambda: dict(ALL_LINEAR))

    def __str__(self) -> str:
        words = [self.family, "tied" if self.tied else "untied", self.stored, self.held, self.base]
        words += ["older"] if self.older else []
        return "-".join([*words, f"{self.shards}"])


CASES = [
    Case("llama"),
    Case("llama", tied=True, shards=4, stored="float32", lora={**ALL_LINEAR, "use_rslora": True}),
    Case("mistral", method=Method.LORA, stored="float16", held="float16", adapter="float16"),
    Case("mistral", tied=True, base="Original", lora={"target_modules": ["q_proj", "down_proj"]}),
    Case("qwen2", shards=4, held="float32", stored="float32"),
    Case(
        "qwen2",
        tied=True,
        adapter="bfloat16",
        lora={**ALL_LINEAR, "rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 32}},
    ),
    Case(
        "qwen3", base="Original", lora={**ALL_LINEAR, "alpha_pattern": {"v_proj": 5, ".*o_proj": 3}, "use_rslora": True}
    ),
    Case("qwen3", tied=True, shards=4),
    Case("gemma", tied=True, held="float16"),
    Case("gemma", shards=4, base="Original", held="float32"),
    Case("gemma2", tied=True),
    Case("gemma3_text", tied=True),
    Case("phi3", lora={"target_modules": ["qkv_proj", "gate_up_proj", "lm_head"]}),
    Case("phi3", tied=True, shards=4, adapter="bfloat16"),
    Case("qwen3", held="float32"),
    Case("llama", stored="float16", held="float32"),
    Case("smollm3", tied=True, method=Method.LORA, adapter="bfloat16"),
    Case("llama", older=True, held="float16", stored="float16"),
    Case("qwen2", tied=True, older=True, shards=4),
    pytest.param(Case(DEMO, tied=True), marks=pytest.mark.slow),
]


@dataclass(frozen=True)
class Prepared:
    """A case on disk, with the merged and edge models of the libraries."""

    case: Case
    base: Path
    adapter: Path
    merged: Path
    edge: Path


def make_base(folder: Path, case: Case) -> Path:
    if case.family != DEMO:
        return make_model(folder, case.family, tied=case.tied, dtype=case.stored, shards=case.shards)
    if not DEMO_BASE.is_dir():
        pytest.skip(f"the demo's model is missing: make {DEMO_BASE.relative_to(Path(__file__).parents[2])}")
    return DEMO_BASE


@pytest.fixture(scope="module", params=CASES, ids=str)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Inputs, and the libraries' merged and edge models."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    case: Case = request.param
    folder = tmp_path_factory.mktemp("case")
    base = make_base(folder / "base", case)
    if case.older:
        add_unused_tensors(base)
    adapter = make_adapter(
        folder / "adapter", base, method=case.method, base_dtype=case.held, dtype=case.adapter, **case.lora
    )
    parameters = tiny_parameters(merge={"base": case.base})
    prompt_format = PromptFormat.of(parameters.dataset)
    merged = merge_adapter(base, adapter, parameters.merge.base, torch.device("cpu"))
    save_model(merged, folder / "merged", base, prompt_format)
    quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    edge = AutoModelForCausalLM.from_pretrained(
        folder / "merged", quantization_config=quantization, dtype="auto", device_map={"": "cpu"}
    )
    save_model(edge, folder / "edge", base, prompt_format)
    write_chat_template(folder / "edge", prompt_format, loading.load_tokenizer(base))
    return Prepared(case, base, adapter, folder / "merged", folder / "edge")


def run_merge(prepared: Prepared, folder: Path) -> tuple[Path, StageOutput]:
    parameters = tiny_parameters(merge={"base": prepared.case.base})
    inputs = {"base": prepared.base, "adapter": prepared.adapter}
    context = stage_context(Stage.MERGE, parameters, folder, inputs)
    output = merge.run(context)
    return context.output / "merged", output


def run_quantize(prepared: Prepared, folder: Path, *, fused: bool) -> tuple[Path, StageOutput]:
    parameters = tiny_parameters(merge={"base": prepared.case.base, "keep": not fused})
    inputs = {"base": prepared.base, "adapter": prepared.adapter} if fused else {"merged": prepared.merged}
    context = stage_context(Stage.QUANTIZE, parameters, folder, inputs)
    output = quantize.run(context)
    return context.output / "edge-bnb-int8", output


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_model(found: Path, expected: Path) -> None:
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    different = [
        name
        for name, tensor in theirs.items()
        if ours[name].dtype != tensor.dtype or not torch.equal(ours[name], tensor)
    ]
    assert different == []
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())
    for path in expected.iterdir():
        if path.suffix == ".json":
            assert json.loads((found / path.name).read_text()) == json.loads(path.read_text()), path.name
        elif path.suffix != ".safetensors":
            assert (found / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_merged_model_equals_that_of_peft_bit_for_bit(prepared: Prepared, tmp_path: Path) -> None:
    merged, output = run_merge(prepared, tmp_path)

    assert output.facts["path"] == "streaming"
    assert_same_model(merged, prepared.merged)
    assert output.metrics["mergedBytes"] == folder_bytes(merged)


@pytest.mark.parametrize("fused", [False, True], ids=["from merged", "fused"])
def test_the_edge_model_equals_that_of_bitsandbytes_bit_for_bit(
    prepared: Prepared, tmp_path: Path, fused: bool
) -> None:
    edge, output = run_quantize(prepared, tmp_path, fused=fused)

    assert output.facts["path"] == "streaming"
    assert_same_model(edge, prepared.edge)
    assert output.metrics["edgeBytes"] == folder_bytes(edge)


def test_the_edge_model_has_the_same_logits_as_that_of_the_library(prepared: Prepared, tmp_path: Path) -> None:
    edge, _ = run_quantize(prepared, tmp_path, fused=True)
    tokens = torch.arange(3, 40).unsqueeze(0)

    ours, theirs = (loading.load_stored(folder, torch.device("cpu")) for folder in (edge, prepared.edge))

    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_a_base_without_generation_settings_gets_them_from_its_special_tokens(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama", tied=True, dtype="bfloat16")
    (base / "generation_config.json").unlink()
    context = stage_context(Stage.QUANTIZE, tiny_parameters(), tmp_path / "quantize", {"merged": base})

    quantize.run(context)

    settings = loading.load_stored(context.output / "edge-bnb-int8", torch.device("cpu")).generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (0, 2, 3)


def test_a_configuration_of_an_older_version_is_read_with_its_defaults(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "gemma", tied=True, dtype="bfloat16")
    path = base / "config.json"
    config = json.loads(path.read_text())
    for name in ("tie_word_embeddings", "attention_bias", "dtype"):
        del config[name]
    path.write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    context = stage_context(Stage.QUANTIZE, tiny_parameters(), tmp_path / "quantize", {"merged": base})

    output = quantize.run(context)

    assert output.facts["path"] == "streaming"
    edge = loading.load_stored(context.output / "edge-bnb-int8", torch.device("cpu"))
    assert edge.dtype is torch.bfloat16
    assert edge.lm_head.weight is edge.model.embed_tokens.weight


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["norm"]},
        {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_adapter_that_only_peft_can_merge_is_merged_by_peft_with_a_warning(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    from peft import PeftModel

    special = next(iter(options))
    base = make_model(tmp_path / "base", "qwen2", tied=False, dtype="float32")
    adapter = make_adapter(
        tmp_path / "adapter",
        base,
        method=Method.LORA,
        base_dtype="float32",
        dtype="float32",
        **{**ALL_LINEAR, **options},
    )
    context = stage_context(Stage.MERGE, tiny_parameters(), tmp_path / "merge", {"base": base, "adapter": adapter})

    output = merge.run(context)

    assert (output.facts["path"], output.facts["dtype"]) == ("library", "float32")
    assert f"the adapter uses {special}" in output.warnings[0]
    expected = PeftModel.from_pretrained(
        loading.load_stored(base, torch.device("cpu")), str(adapter)
    ).merge_and_unload()
    found = tensors_of(context.output / "merged")
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.state_dict().items())


def test_a_tied_model_with_a_separate_output_head_is_quantized_by_the_library_which_keeps_the_head(
    tmp_path: Path,
) -> None:
    from safetensors.torch import save_file

    base = make_model(tmp_path / "merged", "llama", tied=True, dtype="bfloat16")
    head = {"lm_head.weight": tensors_of(base)["model.embed_tokens.weight"] * 2}
    save_file(tensors_of(base) | head, base / "model.safetensors", metadata={"format": "pt"})
    context = stage_context(Stage.QUANTIZE, tiny_parameters(), tmp_path, {"merged": base})

    output = quantize.run(context)

    assert output.facts["path"] == "library"
    assert output.warnings[0].endswith("its lm_head.weight differs from its embedding, although config.json ties them")
    assert torch.equal(tensors_of(context.output / "edge-bnb-int8")["lm_head.weight"], head["lm_head.weight"])


def test_a_model_of_an_unknown_family_is_quantized_by_the_library(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=512, **sizes)).save_pretrained(tmp_path / "merged")
    save_tokenizer(tmp_path / "merged")
    context = stage_context(Stage.QUANTIZE, tiny_parameters(), tmp_path, {"merged": tmp_path / "merged"})

    output = quantize.run(context)

    assert output.facts["path"] == "library"
    assert output.warnings[0].endswith("it cannot be streamed: the model type 'gpt_neox' is not supported")
    assert "int8" in str({tensor.dtype for tensor in tensors_of(context.output / "edge-bnb-int8").values()})


@pytest.mark.parametrize(
    ("stored", "held", "merged"),
    [
        ("bfloat16", "float32", "bfloat16"),
        ("bfloat16", "float16", "bfloat16"),
        ("float16", "float32", "float16"),
        ("float16", "float16", "float16"),
        ("float16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
        ("float32", "float32", "float32"),
    ],
)
def test_a_16_bit_base_becomes_a_16_bit_merged_model_for_any_training_precision(
    tmp_path: Path, stored: str, held: str, merged: str
) -> None:
    base = make_model(tmp_path / "base", "llama", tied=False, dtype=stored)
    options: dict[str, Any] = {"method": Method.QLORA, "base_dtype": held, "dtype": "float32", **ALL_LINEAR}
    adapter = make_adapter(tmp_path / "adapter", base, **options)
    context = stage_context(Stage.MERGE, tiny_parameters(), tmp_path / "merge", {"base": base, "adapter": adapter})

    output = merge.run(context)

    assert (output.facts["path"], output.facts["dtype"]) == ("streaming", merged)
    assert {tensor.dtype for tensor in tensors_of(context.output / "merged").values()} == {getattr(torch, merged)}
    assert json.loads((context.output / "merged" / "config.json").read_text())["dtype"] == merged


@pytest.mark.parametrize(("stored", "held"), [("bfloat16", "float32"), ("float16", "float32"), ("bfloat16", "float16")])
def test_merging_rounds_to_nf4_from_the_same_values_as_training(tmp_path: Path, stored: str, held: str) -> None:
    base = make_model(tmp_path / "base", "llama", tied=False, dtype=stored)
    ours, trained = (loading.load_base(base, getattr(torch, dtype), torch.device("cpu")) for dtype in (stored, held))

    for model in (ours, trained):
        loading.round_to_nf4(model)

    weights = trained.state_dict()
    layers = [name for name, _ in int8_linears(ours)]
    for name, weight in ((f"{layer}.weight", ours.get_submodule(layer).weight) for layer in layers):
        rounded = weights[name].to(weight.dtype)
        if held == "float32":
            assert torch.equal(weight, rounded), name
        else:  # rounded to float16 first: it may be an adjacent number
            torch.testing.assert_close(weight, rounded, rtol=2**-7, atol=0)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_of_a_family_equals_that_of_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / "model", family, tied=tied, dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(folder)

    stored = LocalModelFolder(folder, "spec.baseModel")
    layout = find_layout(stored, read_tensors(stored))

    linears = {f"{name}.weight" for name, _ in int8_linears(model)}
    assert layout.linears == linears
    assert layout.tensors.keys() == tensors_of(folder).keys()


@pytest.mark.parametrize(("hidden_size", "through_nf4"), [(64, True), (32, False)])
def test_prepare_knows_whether_a_model_will_be_streamed(tmp_path: Path, hidden_size: int, through_nf4: bool) -> None:
    folder = make_model(tmp_path / "base", "llama", tied=True, dtype="bfloat16", hidden_size=hidden_size)

    assert can_stream(LocalModelFolder(folder, "base"), through_nf4=through_nf4)


def test_rows_that_are_shorter_than_a_block_of_nf4_are_not_streamed(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base", "llama", tied=True, dtype="bfloat16", hidden_size=32)

    assert not can_stream(LocalModelFolder(folder, "base"), through_nf4=True)
