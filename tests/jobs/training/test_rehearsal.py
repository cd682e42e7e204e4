"""What the libraries refuse to train is known before training, in terms of the spec, and nothing else is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.inspection import BaseModel
from edgetune_jobs.tensors.families import KNOWN_TYPES
from edgetune_jobs.training import rehearsal
from edgetune_jobs.training.rehearsal import rehearse_training
from support.local_runs import parameters
from support.tiny_tokenizer import save_tokenizer

SIZES = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FALCON_H1 = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16}
DEEPSEEK = {"n_routed_experts": 4, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "num_key_value_heads": 4}
MIXTURES = {
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": {**DEEPSEEK, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {**DEEPSEEK, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    "glm4_moe": {**DEEPSEEK, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
}
"""Types with shared experts, whose layers have the names of experts of older versions of transformers."""

ACCEPTED = ("bloom", "falcon", "gpt_neox", "gptj", "lfm2", "mixtral", "nemotron", "olmo2", "opt", "recurrent_gemma")
"""Other types than those that can be streamed, some of whose layers have peculiar names or classes."""


def rehearse(folder: Path, model_type: str, sizes: Mapping[str, Any], **sections: Mapping[str, Any]) -> tuple[str, ...]:
    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.for_model(model_type, **sizes)
    config.save_pretrained(folder)
    base = BaseModel(folder, config.to_dict(), model_type, bytes=0, tensors={})
    spec = parameters(folder, **{"lora": {"targetModules": "AllLinear"}, **sections})
    return rehearse_training(base, tokenizer, spec, folder)


@pytest.mark.parametrize("model_type", sorted(KNOWN_TYPES))
def test_the_types_for_which_prepare_skips_the_rehearsal_pass_it(tmp_path: Path, model_type: str) -> None:
    assert rehearse(tmp_path, model_type, SIZES) == ()


@pytest.mark.parametrize("model_type", ACCEPTED)
def test_a_model_that_the_libraries_train_is_not_refused(tmp_path: Path, model_type: str) -> None:
    assert rehearse(tmp_path, model_type, SIZES) == ()


@pytest.mark.parametrize(
    ("model_type", "sizes", "others"),
    [
        ("falcon_h1", FALCON_H1, "[down_proj, gate_proj, in_proj, k_proj, o_proj, q_proj, up_proj, v_proj]"),
        ("mamba2", {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16}, "[in_proj]"),
        ("falcon_mamba", {"state_size": 16}, "[dt_proj, in_proj, x_proj]"),
    ],
)
def test_target_modules_that_peft_refuses_are_named_with_those_that_it_accepts(
    tmp_path: Path, model_type: str, sizes: dict[str, int], others: str
) -> None:
    with pytest.raises(InvalidInput, match=r"^spec\.lora\.targetModules: .*'out_proj'.*; list the others: ") as refused:
        rehearse(tmp_path, model_type, {**SIZES, **sizes})

    assert str(refused.value).endswith(others)
    assert rehearse(tmp_path, model_type, {**SIZES, **sizes}, lora={"targetModules": others[1:-1].split(", ")}) == ()


@pytest.mark.parametrize(("model_type", "sizes"), MIXTURES.items())
def test_layers_whose_names_peft_takes_for_experts_are_left_out_by_all_linear_and_refused_in_a_list(
    tmp_path: Path, model_type: str, sizes: dict[str, int]
) -> None:
    (said,) = rehearse(tmp_path, model_type, {**SIZES, **sizes})

    assert said.startswith(
        "spec.lora.targetModules: AllLinear leaves out the linear layers down_proj, gate_proj, up_proj, because peft "
    )
    full_name = "model.layers.1.mlp.shared_experts.down_proj"
    with pytest.raises(InvalidInput, match=rf"peft takes down_proj of a model of type '{model_type}' for .*some of: "):
        rehearse(tmp_path, model_type, {**SIZES, **sizes}, lora={"targetModules": [full_name]})
    with pytest.raises(InvalidInput) as refused:
        rehearse(tmp_path, model_type, {**SIZES, **sizes}, lora={"targetModules": ["o_proj", "gate_proj"]})
    others = str(refused.value).partition("some of: ")[2].split(", ")
    assert rehearse(tmp_path, model_type, {**SIZES, **sizes}, lora={"targetModules": others}) == ()


def test_a_router_that_is_a_linear_layer_and_returns_something_else_gets_no_adapter(tmp_path: Path) -> None:
    assert rehearse(tmp_path, "phimoe", {**SIZES, "num_local_experts": 4}) == ()
    with pytest.raises(InvalidInput, match=r"^spec\.lora\.targetModules: 'router' matches .*, which is not a linear"):
        rehearse(tmp_path, "phimoe", {**SIZES, "num_local_experts": 4}, lora={"targetModules": ["router"]})


def test_a_model_without_gradient_checkpointing_is_refused_by_its_field(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^spec\.training\.gradientCheckpointing: .*; set it to Never$"):
        rehearse(tmp_path, "gpt_neox_japanese", SIZES, training={"gradientCheckpointing": "Always"})

    assert rehearse(tmp_path, "gpt_neox_japanese", SIZES, training={"gradientCheckpointing": "Auto"}) == ()


def test_a_model_that_transformers_refuses_to_build_is_refused_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^spec\.baseModel: transformers cannot build a model .*divisible"):
        rehearse(tmp_path, "opt", {**SIZES, "num_attention_heads": 5})


def test_what_fails_for_another_reason_than_a_refusal_is_only_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor")

    monkeypatch.setattr(rehearsal, "_make_trainer", fail)

    assert rehearse(tmp_path, "olmo2", SIZES) == (
        "spec.baseModel: whether training accepts this model could not be checked before it starts: Cannot copy out of "
        "meta tensor",
    )
