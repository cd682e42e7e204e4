"""config.json against the tensors: contradictions are refused, and models of all kinds are not."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.folder import LocalModelFolder
from edgetune_jobs.models.libraries import prepare_libraries
from edgetune_jobs.models.safetensors_header import Tensor
from edgetune_jobs.models.trial.bounds import check_bounds
from edgetune_jobs.models.trial.shapes import compare_shapes
from edgetune_jobs.models.weights import read_tensors
from support.base_folder import CONFIG, llama_shapes, make_base

SIZES: Mapping[str, int] = {
    "vocab_size": 192,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TYPES = (
    "bloom",
    "cohere",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "jamba",
    "llama",
    "mamba",
    "mistral",
    "mixtral",
    "mpt",
    "olmo2",
    "olmoe",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
)


def check(folder: Path) -> tuple[str, ...]:
    """Warnings of both checks on a model folder."""
    stored = read_tensors(LocalModelFolder(folder, "the model"))
    tensors = {each.name: Tensor(each.dtype, each.shape, each.begin, each.end) for each in stored}
    check_bounds(json.loads((folder / "config.json").read_text()), len(tensors))
    return compare_shapes(folder, {name: tensor.shape for name, tensor in tensors.items()})


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidInput) as refused:
        check(folder)
    return str(refused.value)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_model_that_transformers_saved_is_accepted_without_a_warning(tmp_path: Path, model_type: str) -> None:
    prepare_libraries()
    from transformers import AutoConfig, AutoModelForCausalLM

    default = AutoConfig.for_model(model_type)
    settable = {name for name in vars(default) if not isinstance(getattr(type(default), name, None), property)}
    aliases = set(type(default).attribute_map)
    sizes = {name: value for name, value in SIZES.items() if name in settable | aliases}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
    model.save_pretrained(tmp_path)

    assert check(tmp_path) == ()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers in config.json is 1,000,000, but must be from 1 to 1,000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers in config.json is -1, but must be from 1 to 1,000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers in config.json is 0, but"),
        ({"num_hidden_layers": 3}, "config.json describes more blocks than the weights have: 8 tensors are missing "),
        ({"hidden_size": 0}, "hidden_size in config.json is 0, but must be from 1 to 2,147,483,647"),
        ({"hidden_size": 2**40}, "hidden_size in config.json is 1,099,511,627,776, but"),
        ({"num_attention_heads": 0}, "num_attention_heads in config.json is 0, but"),
        ({"text_config": {"vocab_size": -1}}, "text_config.vocab_size in config.json is -1, but"),
        (
            {"vocab_size": 2 * 10**9},
            "model.embed_tokens.weight has the shape [400, 8], but config.json says [2000000000",
        ),
        ({"vocab_size": 399}, "model.embed_tokens.weight has the shape [400, 8], but config.json says [399, 8]"),
        ({"hidden_size": 16}, "has the shape "),
        ({"intermediate_size": 2**40}, "has the shape [8, 16], but config.json says [8, 1099511627776]"),
        ({"head_dim": 10**9}, "has the shape "),
        ({"quantization_config": {}}, "config.json has a quantization_config, so the model is already quantized"),
        ({"text_config": {"quantization_config": {"a": 1}}}, "has a text_config.quantization_config, so the model is"),
        ({"num_key_value_heads": 3}, "has the shape [4, 8], but config.json says [12, 8]"),
        ({"pad_token_id": 400}, "transformers cannot build a model from its config.json: "),
        ({"rope_parameters": {"rope_type": "none"}}, "transformers cannot build a model from its config.json: "),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_configuration_that_does_not_describe_the_tensors_is_refused(
    tmp_path: Path, edit: dict[str, Any], message: str
) -> None:
    found = refusal(make_base(tmp_path / "base", config=edit))

    assert found.startswith("spec.baseModel: ")
    assert message in found


def test_blocks_that_the_configuration_does_not_describe_are_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", shapes=llama_shapes(layers=4))

    assert check(base) == (
        "16 tensors of the base model (first: model.layers.2.input_layernorm.weight) are in blocks that its "
        "config.json does not describe, and are not used",
    )


def rename(edit: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({edit(name): tensor for name, tensor in load_file(path).items()}, path)

    return apply


def add(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({**load_file(path), name: tensor}, path)

    return apply


@pytest.mark.parametrize(
    "edit",
    [
        rename(lambda name: name.removeprefix("model.")),
        add("model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(2)),
        add("lm_head.weight", torch.zeros(400, 8)),
    ],
    ids=["a bare model", "frequencies of an old release", "a tied head that is stored too"],
)
def test_what_from_pretrained_also_accepts_is_accepted(tmp_path: Path, edit: Callable[[Path], None]) -> None:
    base = make_base(tmp_path / "base")
    edit(base)

    assert check(base) == ()


def test_the_test_model_is_described_by_its_configuration(tmp_path: Path) -> None:
    assert check(make_base(tmp_path / "base", config={"num_hidden_layers": CONFIG["num_hidden_layers"]})) == ()
