"""Base models are inspected by their files alone; unsuitable models are refused with advice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.spec import LoraSpec
from edgetune_jobs.data.row_checks import TokenLimits
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.inspection import BaseModel, inspect_base, targeted_layers, token_limits
from edgetune_jobs.models.skeleton import build_skeleton
from edgetune_jobs.store.sources.source import FolderSource, SourceKind
from edgetune_jobs.training.recipe import find_targets
from support.base_folder import CONFIG, header_of, llama_shapes, make_base, safetensors_bytes, write_safetensors
from support.edge_models import make_kind

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def inspect(folder: Path) -> BaseModel:
    return inspect_base(FolderSource(f"file://{folder}", "spec.baseModel", SourceKind.MODEL))


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        inspect(folder)
    return str(caught.value)


def write_sharded(folder: Path, weight_map: dict[str, object] | None = None) -> dict[str, object]:
    """Write the base's weights as two shards; returns the weight map of the index."""
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


def test_a_base_is_inspected_without_fetching_its_weights(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    (folder / "pytorch_model.bin").write_bytes(b"an unused pickle")
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


def test_a_tied_output_head_that_is_stored_twice_is_counted_once(tmp_path: Path) -> None:
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
            "lists 1 missing file (model-3.safetensors); copy all shards into the model's folder",
        ),
        ({Q_PROJ: "../../etc/passwd"}, "lists 1 missing file (../../etc/passwd)"),
        ({Q_PROJ: 5}, "lists 1 missing file (5)"),
        ({Q_PROJ: "config.json"}, "lists files that are not safetensors (config.json)"),
        (
            {"model.gone.weight": "model-1.safetensors"},
            "maps tensor 'model.gone.weight' to model-1.safetensors",
        ),
        ({Q_PROJ: "model-2.safetensors"}, f"maps tensor '{Q_PROJ}' to model-2.safetensors, which does not contain it"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, weight_map: dict[str, object], reason: str) -> None:
    folder = make_base(tmp_path / "base")
    write_sharded(folder, weight_map)
    assert reason in refusal(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    write_sharded(folder)
    write_safetensors(folder / "model-2.safetensors", llama_shapes())
    assert "is in both model-1.safetensors and model-2.safetensors" in refusal(folder)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map"', "\xff"])
def test_an_invalid_index_is_refused(tmp_path: Path, index: str) -> None:
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
        (_write("config.json", "{"), ["spec.baseModel.uri: ", ": config.json is invalid JSON", "(line 1, column 2)"]),
        (_write("config.json", "[]"), ["spec.baseModel.uri: ", ": config.json is not a JSON object"]),
        (
            _write("config.json", "[" * 99_999),
            [": config.json is invalid JSON: nested too deeply"],
        ),
        (
            _rename("model.safetensors", "pytorch_model.bin"),
            ["has only pickled weights (pytorch_model.bin), which Edgetune never loads", "save_pretrained(NEW)"],
        ),
        (
            _rename("model.safetensors", "model.gguf"),
            ["has neither model.safetensors nor model.safetensors.index.json"],
        ),
        (_rename("model.safetensors", "adapter_model.safetensors"), ["is a LoRA adapter, not a model"]),
        (
            _rename("tokenizer.json", "tokenizer.model"),
            ["has tokenizer.model but no tokenizer.json", "make it once and check its tokens (docs/base-models.md"],
        ),
        (_rename("tokenizer.json", "spiece.model"), ["has spiece.model but no tokenizer.json"]),
        (_remove("tokenizer.json"), ["has no tokenizer (none of tokenizer.json, tokenizer.model"]),
        (
            _write("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["tok.Tok", null]}}'),
            ["tokenizer_config.json has auto_map", "trust_remote_code is off"],
        ),
    ],
)
def test_a_folder_that_is_not_a_base_model_is_refused_with_advice(
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
            "config.json has auto_map, so the model needs its own Python code",
        ),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "the model is already quantized"),
        (
            {"architectures": ["T5ForConditionalGeneration"]},
            "config.json has the unsupported architecture 'T5ForConditionalGeneration'; use a causal language model",
        ),
        ({"architectures": None}, "config.json has no architectures"),
        ({"architectures": []}, "config.json has no architectures"),
        ({"architectures": [5]}, "config.json has no architectures"),
        ({"model_type": None}, "config.json has no model_type"),
        (
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
            "spec.baseModel: models of type 'gpt2' have Conv1D layers, which Edgetune cannot fine-tune; ",
        ),
    ],
)
def test_a_model_that_cannot_be_fine_tuned_is_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    assert reason in refusal(make_base(tmp_path / "base", config=config))


def test_the_code_of_a_model_type_that_transformers_supports_is_not_needed(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", config={"auto_map": {"AutoModelForCausalLM": "modeling.Model"}})

    assert inspect(folder).architecture == "LlamaForCausalLM"


def test_quantized_weights_without_a_quantization_config_are_refused(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    write_safetensors(folder / "model.safetensors", llama_shapes(), "I8", 1)
    assert "14 weights have dtype I8 (first: model.layers.0.mlp.down_proj.weight), so the model is already" in refusal(
        folder
    )


def test_the_error_about_an_invalid_header_names_the_file(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    header = header_of(llama_shapes())
    header[Q_PROJ]["data_offsets"] = [0, 128]
    (folder / "model.safetensors").write_bytes(safetensors_bytes(header, 10_000))
    assert f"spec.baseModel.uri: file://{folder}: model.safetensors is not a valid safetensors file: " in refusal(
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
def test_a_target_matches_layers_whose_names_end_in_it(tmp_path: Path, targets: object, names: set[str]) -> None:
    base = inspect(make_base(tmp_path / "base"))
    layers = targeted_layers(base, LoraSpec.model_validate({"targetModules": targets}))
    assert {layer.short_name for layer in layers} == names
    assert len(layers) == 2 * len(names)


def test_a_full_name_matches_one_layer_and_its_features_are_inputs_plus_outputs(tmp_path: Path) -> None:
    base = inspect(make_base(tmp_path / "base"))
    lora = LoraSpec.model_validate({"targetModules": ["model.layers.1.mlp.up_proj"]})
    assert [(layer.name, layer.features) for layer in targeted_layers(base, lora)] == [
        ("model.layers.1.mlp.up_proj", 8 + 16)
    ]


@pytest.mark.parametrize(
    ("targets", "what"),
    [
        (
            ["q_proj", "query"],
            "has no linear layer 'query'; use AllLinear or some of its linear layers: down_proj, gate_proj, k_proj",
        ),
        (["lm_head"], "has no linear layer 'lm_head'"),
        (["embed_tokens"], "has no linear layer 'embed_tokens'"),
        (["norm"], "has no linear layer 'norm'"),
        (["proj"], "has no linear layer 'proj'"),
    ],
)
def test_the_error_about_an_unknown_target_lists_the_linear_layers(
    tmp_path: Path, targets: list[str], what: str
) -> None:
    base = inspect(make_base(tmp_path / "base"))
    with pytest.raises(InvalidInput) as caught:
        targeted_layers(base, LoraSpec.model_validate({"targetModules": targets}))
    assert str(caught.value).startswith("spec.lora.targetModules: the base model (LlamaForCausalLM) ")
    assert what in str(caught.value)


def test_a_preset_with_layers_that_the_base_does_not_have_is_refused(tmp_path: Path) -> None:
    shapes = {"h.0.attn.c_attn.weight": (8, 24), "h.0.attn.c_proj.weight": (8, 8), "wte.weight": (400, 8)}
    base = inspect(make_base(tmp_path / "base", shapes=shapes, config={"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(
        InvalidInput, match=r"no linear layer 'q_proj', 'v_proj' \(Minimal is q_proj, v_proj\); .*c_attn, c_proj"
    ):
        targeted_layers(base, LoraSpec.model_validate({"targetModules": "Minimal"}))


def test_the_linear_layers_found_are_those_that_peft_adapts(tmp_path: Path) -> None:
    """They are found by tensor names and shapes alone, and must be the linear layers of the real model."""
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


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}),
        ("glm4_moe", {"n_routed_experts": 4, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "head_dim": 16}),
    ],
)
def test_the_layers_of_a_mixture_that_get_an_adapter_are_known_from_its_files(
    tmp_path: Path, model_type: str, fields: dict[str, int]
) -> None:
    folder = make_kind(tmp_path / "base", model_type, **fields)
    lora = LoraSpec.model_validate({"targetModules": "AllLinear"})

    found = {layer.name for layer in targeted_layers(inspect(folder), lora)}

    assert found == set(find_targets(build_skeleton(folder), lora).layers)


def test_the_limits_of_a_multimodal_model_are_those_of_its_text_part() -> None:
    own = {"vocab_size": 400, "max_position_embeddings": 128}

    assert token_limits(own) == TokenLimits(vocabulary=400, max_positions=128)
    assert token_limits({"vocab_size": 9, "text_config": own}) == TokenLimits(vocabulary=400, max_positions=128)
    assert token_limits({"text_config": {}}) == TokenLimits(vocabulary=None, max_positions=None)
