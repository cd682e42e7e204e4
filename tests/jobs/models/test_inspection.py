"""Base models are judged by their files alone; what cannot be fine-tuned is refused with what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.spec import LoraSpec
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.inspection import BaseModel, inspect_base, targeted_layers
from edgetune_jobs.store.sources import FolderSource, SourceKind
from support.base_folder import CONFIG, header_of, llama_shapes, make_base, safetensors_bytes, write_safetensors

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def inspect(folder: Path) -> BaseModel:
    return inspect_base(FolderSource(f"file://{folder}", "spec.baseModel", SourceKind.MODEL))


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        inspect(folder)
    return str(caught.value)


def write_sharded(folder: Path, weight_map: dict[str, object] | None = None) -> dict[str, object]:
    """The base's weights as two shards; returns the index's weight map."""
    shapes = llama_shapes()
    (folder / "model.safetensors").unlink()
    names = list(shapes)
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for shard, held in shards.items():
        write_safetensors(folder / shard, {name: shapes[name] for name in held})
    true_map: dict[str, object] = {name: shard for shard, held in shards.items() for name in held}
    index = {"metadata": {}, "weight_map": true_map if weight_map is None else {**true_map, **weight_map}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return true_map


def test_a_base_is_counted_without_its_weights_being_fetched(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody reads")
    (folder / "README.md").write_text("x" * 1000)
    used = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    base = inspect(folder)
    assert base.architecture == "LlamaForCausalLM"
    assert base.bytes == sum((folder / name).stat().st_size for name in used)
    assert base.parameters == 400 * 8 + 8 + 2 * (8 + 64 + 32 + 32 + 64 + 3 * 128)
    assert [layer.name for layer in base.linear_layers][:3] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
    ]
    assert (base.hidden_size, base.layers, base.vocabulary, base.max_positions) == (8, 2, 400, 512)


def test_a_tied_output_head_that_is_stored_besides_counts_once(tmp_path: Path) -> None:
    shapes = {**llama_shapes(), "lm_head.weight": (400, 8)}
    tied = inspect(make_base(tmp_path / "tied", shapes=shapes))
    untied = inspect(make_base(tmp_path / "untied", shapes=shapes, config={"tie_word_embeddings": False}))
    assert untied.parameters - tied.parameters == 400 * 8
    assert "lm_head" not in [layer.name for layer in untied.linear_layers]


def test_shards_are_read_through_the_index(tmp_path: Path) -> None:
    whole = inspect(make_base(tmp_path / "whole"))
    folder = make_base(tmp_path / "sharded")
    write_sharded(folder)
    assert inspect(folder).tensors.keys() == whole.tensors.keys()
    assert inspect(folder).parameters == whole.parameters


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        (
            {Q_PROJ: "model-3.safetensors"},
            "names 1 files that are not there (model-3.safetensors): copy the missing shards",
        ),
        ({Q_PROJ: "../../etc/passwd"}, "names 1 files that are not there (../../etc/passwd)"),
        ({Q_PROJ: 5}, "names 1 files that are not there (5)"),
        ({Q_PROJ: "config.json"}, "names files that are no safetensors shards: config.json"),
        (
            {"model.gone.weight": "model-1.safetensors"},
            "says that tensor 'model.gone.weight' is in model-1.safetensors",
        ),
        ({Q_PROJ: "model-2.safetensors"}, f"says that tensor '{Q_PROJ}' is in model-2.safetensors, but it is not"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, weight_map: dict[str, object], reason: str) -> None:
    folder = make_base(tmp_path / "base")
    write_sharded(folder, weight_map)
    assert reason in refusal(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    write_sharded(folder)
    write_safetensors(folder / "model-2.safetensors", llama_shapes())
    assert "is in both model-1.safetensors and model-2.safetensors" in refusal(folder)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map"', "\xff"])
def test_a_broken_index_is_refused(tmp_path: Path, index: str) -> None:
    folder = make_base(tmp_path / "base")
    write_sharded(folder)
    (folder / "model.safetensors.index.json").write_bytes(index.encode("latin-1"))
    assert f"spec.baseModel.uri: file://{folder}: model.safetensors.index.json" in refusal(folder)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _rename(name: str, to: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / to)


def _write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (_remove("config.json"), ["spec.baseModel.uri: ", "has no config.json (found: model.safetensors, tokenizer"]),
        (_write("config.json", "{"), ["spec.baseModel.uri: ", ": config.json is broken JSON", "(line 1, column 2)"]),
        (_write("config.json", "[]"), ["spec.baseModel.uri: ", ": config.json is not a JSON object"]),
        (
            _write("config.json", "[" * 99_999),
            [": config.json is broken JSON: nested too deeply"],
        ),
        (
            _rename("model.safetensors", "pytorch_model.bin"),
            ["has its weights as pickles only (pytorch_model.bin), which are never loaded", "save_pretrained(NEW)"],
        ),
        (
            _rename("model.safetensors", "model.gguf"),
            ["has neither model.safetensors nor model.safetensors.index.json"],
        ),
        (_rename("model.safetensors", "adapter_model.safetensors"), ["is a LoRA adapter, not a model"]),
        (_remove("tokenizer.json"), ["has no tokenizer (none of tokenizer.json, tokenizer.model"]),
        (
            _write("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["tok.Tok", null]}}'),
            ["tokenizer_config.json has an auto_map", "trust_remote_code is never used"],
        ),
    ],
)
def test_a_folder_that_is_no_base_model_is_refused_with_what_to_do(
    tmp_path: Path, change: Callable[[Path], object], reasons: list[str]
) -> None:
    folder = make_base(tmp_path / "base")
    change(folder)
    message = refusal(folder)
    for reason in reasons:
        assert reason in message


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
            "config.json has an auto_map: the model wants to run",
        ),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "the base is quantized already"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "only causal language models"),
        ({"architectures": None}, "config.json names no architectures"),
        ({"architectures": []}, "config.json names no architectures"),
        ({"architectures": [5]}, "config.json names no architectures"),
        ({"model_type": None}, "config.json names no model_type"),
        (
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
            "spec.baseModel: the layers of the type gpt2 are Conv1D, not linear layers, and cannot be fine-tuned here",
        ),
    ],
)
def test_a_model_that_cannot_be_fine_tuned_is_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    assert reason in refusal(make_base(tmp_path / "base", config=config))


def test_code_beside_a_type_that_transformers_knows_is_not_needed(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", config={"auto_map": {"AutoModelForCausalLM": "modeling.Model"}})

    assert inspect(folder).architecture == "LlamaForCausalLM"


def test_weights_that_are_quantized_without_saying_so_are_refused(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    write_safetensors(folder / "model.safetensors", llama_shapes(), "I8", 1)
    assert "14 weights are I8 (first: model.layers.0.mlp.down_proj.weight), so the base is quantized" in refusal(folder)


def test_a_lying_header_is_refused_with_its_file(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    header = header_of(llama_shapes())
    header[Q_PROJ]["data_offsets"] = [0, 128]
    (folder / "model.safetensors").write_bytes(safetensors_bytes(header, 10_000))
    assert f"spec.baseModel.uri: file://{folder}: model.safetensors is not a sound safetensors file: " in refusal(
        folder
    )


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("Minimal", {"q_proj", "v_proj"}),
        ("Standard", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("Aggressive", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("AllLinear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (["self_attn.q_proj"], {"q_proj"}),
    ],
)
def test_targets_are_the_layers_whose_names_end_in_them(tmp_path: Path, targets: object, names: set[str]) -> None:
    base = inspect(make_base(tmp_path / "base"))
    layers = targeted_layers(base, LoraSpec.model_validate({"targetModules": targets}))
    assert {layer.short_name for layer in layers} == names
    assert len(layers) == 2 * len(names)


def test_a_full_name_is_one_layer_and_its_features_are_inputs_plus_outputs(tmp_path: Path) -> None:
    base = inspect(make_base(tmp_path / "base"))
    lora = LoraSpec.model_validate({"targetModules": ["model.layers.1.mlp.up_proj"]})
    assert [(layer.name, layer.features) for layer in targeted_layers(base, lora)] == [
        ("model.layers.1.mlp.up_proj", 8 + 16)
    ]


@pytest.mark.parametrize(
    ("targets", "what"),
    [
        (["q_proj", "query"], "has no linear layer query; its linear layers are: down_proj, gate_proj, k_proj, o_proj"),
        (["lm_head"], "has no linear layer lm_head"),
        (["embed_tokens"], "has no linear layer embed_tokens"),
        (["norm"], "has no linear layer norm"),
        (["proj"], "has no linear layer proj"),
    ],
)
def test_an_unknown_target_lists_the_layers_there_are(tmp_path: Path, targets: list[str], what: str) -> None:
    base = inspect(make_base(tmp_path / "base"))
    with pytest.raises(InvalidInput) as caught:
        targeted_layers(base, LoraSpec.model_validate({"targetModules": targets}))
    assert str(caught.value).startswith("spec.lora.targetModules: the base (LlamaForCausalLM) ")
    assert what in str(caught.value)


def test_a_preset_that_the_base_has_only_in_part_is_refused(tmp_path: Path) -> None:
    shapes = {"h.0.attn.c_attn.weight": (8, 24), "h.0.attn.c_proj.weight": (8, 8), "wte.weight": (400, 8)}
    base = inspect(make_base(tmp_path / "base", shapes=shapes, config={"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(
        InvalidInput, match=r"no linear layer q_proj, v_proj \(Minimal is q_proj, v_proj\); .*c_attn, c_proj"
    ):
        targeted_layers(base, LoraSpec.model_validate({"targetModules": "Minimal"}))


def test_the_layers_found_are_those_that_peft_adapts(tmp_path: Path) -> None:
    """Told by tensor names alone, they have to be the layers of the real model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in CONFIG.items() if key != "architectures"}))
    folder = make_base(tmp_path / "base")
    model.save_pretrained(folder)
    base = inspect(folder)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert {layer.name for layer in base.linear_layers} == set(linears)
    assert sum(layer.features for layer in base.linear_layers) == sum(
        module.in_features + module.out_features for module in linears.values()
    )
    assert base.parameters == sum(parameter.numel() for parameter in model.parameters())
