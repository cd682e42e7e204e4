"""Activations measured on fake tensors, compared with what autograd saves in a real forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
)

from edgetune_contract.spec import LoraSpec
from edgetune_jobs.models import loading
from edgetune_jobs.training import attention
from edgetune_jobs.training.memory.activations import Activations, SavedBytes, blocks_of, measure_activations
from edgetune_jobs.training.recipe import cast_adapter_to_float32, find_targets, lora_config

LENGTHS = (300, 200, 100)
TOKENS = sum(LENGTHS)
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
MODELS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, moe_intermediate_size=128, num_experts=4, num_experts_per_tok=2),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of random models."""
    folders = {}
    for name, config in MODELS.items():
        folders[name] = tmp_path_factory.mktemp("bases") / name
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folders[name])
    return folders


def saved(base: Path, lora: LoraSpec, method: str, layout: str, *, checkpointing: bool) -> SavedBytes:
    """What a real forward pass saves in bfloat16, as training computes it."""
    load = loading.load_quantized_base if method == "QLoRA" else loading.load_base
    model = load(base, torch.bfloat16, torch.device("cpu"))
    joined = layout == "PaddingFree"
    if joined:
        AttentionInterface.register(attention.VARLEN, attention.varlen_attention)
        model.set_attn_implementation(attention.VARLEN)
    tuned = get_peft_model(model, lora_config(lora, find_targets(model, lora)))
    cast_adapter_to_float32(tuned)
    attention.set_input_casts(tuned, enabled=False)
    tuned.train()
    if checkpointing:
        tuned.activation_checkpointing_enable({"use_reentrant": False})
    inputs: dict[str, Any] = {"input_ids": torch.zeros((1, TOKENS), dtype=torch.long)}
    if joined:
        bounds = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
        inputs["position_ids"] = torch.cat([torch.arange(length) for length in LENGTHS])[None]
        inputs |= {"cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32), "max_length_q": max(LENGTHS)}
    layers = blocks_of(model)
    counted = SavedBytes([0] * len(layers))
    present = [*tuned.parameters(), *tuned.buffers(), *(each for each in inputs.values() if torch.is_tensor(each))]
    with counted.counting(layers, present), torch.autocast("cpu", torch.bfloat16):
        model.base_model(**inputs, use_cache=False)
    return counted


@pytest.mark.parametrize(
    ("targets", "dropout"), [("AllLinear", 0.0), ("AllLinear", 0.05), (["q_proj", "k_proj", "v_proj", "o_proj"], 0.05)]
)
@pytest.mark.parametrize(
    ("model", "method", "layout"),
    [
        ("llama", "QLoRA", "PaddingFree"),
        ("llama", "LoRA", "Padded"),
        ("qwen2", "QLoRA", "PaddingFree"),
        # With QLoRA, autograd saves the dequantized experts too, which the estimate counts with the base.
        ("qwen3_moe", "LoRA", "PaddingFree"),
    ],
)
def test_the_measured_bytes_are_those_that_autograd_saves(
    bases: dict[str, Path], model: str, targets: Any, dropout: float, method: str, layout: str
) -> None:
    lora = LoraSpec.model_validate({"rank": 2, "targetModules": targets, "dropout": dropout})

    estimated = measure_activations(bases[model], lora, 2)
    found = saved(bases[model], lora, method, layout, checkpointing=False)

    assert estimated.is_measured
    assert estimated.bytes_for(TOKENS, 0) == pytest.approx(found.total, rel=0.1)
    assert [TOKENS * layer for layer in estimated.layers] == pytest.approx(found.layers, rel=0.1)


def test_of_recomputed_layers_only_the_inputs_are_saved_and_one_layer_at_a_time_is_recomputed(
    bases: dict[str, Path],
) -> None:
    lora = LoraSpec.model_validate({"rank": 2, "targetModules": "AllLinear"})

    estimated = measure_activations(bases["llama"], lora, 2)
    found = saved(bases["llama"], lora, "LoRA", "PaddingFree", checkpointing=True)

    one_layer = TOKENS * max(estimated.layers)
    assert estimated.bytes_for(TOKENS, 1) - one_layer == pytest.approx(found.total, rel=0.1)


def test_every_nth_layer_is_recomputed() -> None:
    activations = Activations(layers=(340.0,) * 12, layer_input=20.0, outside=5.0)

    assert [activations.bytes_for(100, recompute) for recompute in (0, 4, 2, 1)] == [
        100 * (12 * 340 + 5),
        100 * (9 * 340 + 3 * 20 + 340 + 5),
        100 * (6 * 340 + 6 * 20 + 340 + 5),
        100 * (12 * 20 + 340 + 5),
    ]


def test_the_time_does_not_grow_with_the_number_of_blocks(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeDecoderLayer

    forward, calls = Qwen3MoeDecoderLayer.forward, 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(*args, **options)

    monkeypatch.setattr(Qwen3MoeDecoderLayer, "forward", counted)
    config = Qwen3MoeConfig.from_pretrained(bases["qwen3_moe"])
    config.num_hidden_layers, config.mlp_only_layers = 60, [1, 5]
    config.save_pretrained(tmp_path)
    lora = LoraSpec.model_validate({"rank": 2, "targetModules": "AllLinear"})

    found = measure_activations(tmp_path, lora, 2)

    assert calls == 6, "two blocks of each of two kinds, in their order"
    assert found.is_measured
    mixture, dense = found.layers[2], found.layers[1]
    assert mixture != dense
    assert list(found.layers[2:]) == [dense if index == 5 else mixture for index in range(2, 60)]


def test_a_model_that_saves_tensors_token_by_token_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune_jobs.training.memory.activations._MOST_TENSORS", 200)  # the real bound takes a minute
    config = RecurrentGemmaConfig(**SIZES | {"num_hidden_layers": 3}, lru_width=128, attention_window_size=64)
    config.save_pretrained(tmp_path)

    found = measure_activations(tmp_path, LoraSpec.model_validate({"targetModules": "AllLinear"}), 2)

    assert not found.is_measured
    assert len(found.layers) == 3


def test_a_model_that_cannot_be_measured_gets_an_upper_bound(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraSpec.model_validate({"rank": 2, "targetModules": "AllLinear", "dropout": 0.05})
    measured = measure_activations(bases["llama"], lora, 2)

    def fail(*_: object) -> None:
        raise RuntimeError("the output shape depends on data")

    monkeypatch.setattr("edgetune_jobs.training.memory.activations._fused_attention", fail)
    bound = measure_activations(bases["llama"], lora, 2)

    assert not bound.is_measured
    assert len(bound.layers) == len(measured.layers)
    assert bound.bytes_for(TOKENS, 0) > measured.bytes_for(TOKENS, 0)
