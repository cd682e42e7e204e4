"""Activations measured on fake tensors, compared with what autograd saves in a real forward pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
)

from edgetune_contract.spec import LoraSpec
from edgetune_contract.training import Attention, Layout
from edgetune_jobs.models import loading
from edgetune_jobs.models.trial.process import Limits, shared_trial
from edgetune_jobs.training.kernels import attention
from edgetune_jobs.training.kernels.low_rank import fuse
from edgetune_jobs.training.memory.activations import (
    Activations,
    SavedBytes,
    blocks_of,
    measure_activations,
    try_activations,
)
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
    "gemma2": Gemma2Config(**SIZES, query_pre_attn_scalar=32),
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
    fuse(tuned)
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


def saved_with_own_attention(base: Path, lora: LoraSpec, *, joined: bool) -> SavedBytes:
    """What a real forward pass of two examples saves in bfloat16 with the attention that the model has by default."""
    model = loading.load_base(base, torch.bfloat16, torch.device("cpu"))
    tuned = get_peft_model(model, lora_config(lora, find_targets(model, lora)))
    cast_adapter_to_float32(tuned)
    attention.set_input_casts(tuned, enabled=False)
    fuse(tuned)
    tuned.train()
    length = TOKENS // 2
    if joined:
        ids = torch.zeros((1, TOKENS), dtype=torch.long)
        others = {"position_ids": torch.arange(length).repeat(2)[None]}
    else:
        ids = torch.zeros((2, length), dtype=torch.long)
        others = {"attention_mask": torch.arange(length).repeat(2, 1) < torch.tensor([[length], [length - 100]])}
    layers = blocks_of(model)
    counted = SavedBytes([0] * len(layers))
    present = [*tuned.parameters(), *tuned.buffers(), ids, *others.values()]
    with counted.counting(layers, present), torch.autocast("cpu", torch.bfloat16):
        model.base_model(input_ids=ids, **others, use_cache=False)
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
    assert estimated.bytes_for(TOKENS, 0, max(LENGTHS)) == pytest.approx(found.total, rel=0.1)
    assert [TOKENS * layer for layer in estimated.layers] == pytest.approx(found.layers, rel=0.1)


def test_of_recomputed_layers_only_the_inputs_are_saved_and_one_layer_at_a_time_is_recomputed(
    bases: dict[str, Path],
) -> None:
    lora = LoraSpec.model_validate({"rank": 2, "targetModules": "AllLinear"})

    estimated = measure_activations(bases["llama"], lora, 2)
    found = saved(bases["llama"], lora, "LoRA", "PaddingFree", checkpointing=True)

    one_layer = TOKENS * max(estimated.layers)
    assert estimated.bytes_for(TOKENS, 1, max(LENGTHS)) - one_layer == pytest.approx(found.total, rel=0.1)


@pytest.mark.parametrize(
    ("model", "layout", "attention"),
    [
        ("llama", "Padded", "Auto"),
        ("llama", "PaddingFree", "Sdpa"),
        ("gemma2", "PaddingFree", "Auto"),  # which pads it
        ("gemma2", "PaddingFree", "Sdpa"),
    ],
)
def test_without_varlen_masks_and_scores_count_for_each_pair_of_tokens(
    bases: dict[str, Path], model: str, layout: str, attention: str
) -> None:
    """Gemma 2 caps its scores, which no kernel of scaled_dot_product_attention computes: all are saved, in each of its
    layers."""
    lora = LoraSpec.model_validate({"rank": 2, "targetModules": "AllLinear"})
    joined = attention == "Sdpa"

    estimated = measure_activations(bases[model], lora, 2, Layout(layout), Attention(attention))
    found = saved_with_own_attention(bases[model], lora, joined=joined)

    assert estimated.is_measured
    assert estimated.is_joined is joined
    assert estimated.bytes_for(TOKENS, 0, TOKENS // 2) == pytest.approx(found.total, rel=0.05)
    linear = replace(estimated, pairs=())
    assert linear.bytes_for(TOKENS, 0, TOKENS // 2) < 0.95 * found.total, "the pairs are a part that is seen"


def test_a_model_with_a_mask_of_its_own_is_measured(tmp_path: Path) -> None:
    """Bloom adds its positions to the scores, and makes a mask of two dimensions for them."""
    BloomConfig(vocab_size=512, hidden_size=128, n_layer=3, n_head=4).save_pretrained(tmp_path)

    found = measure_activations(tmp_path, LoraSpec.model_validate({"targetModules": ["query_key_value"]}), 2)

    assert found.is_measured
    assert not found.is_joined
    assert min(found.pairs) >= 4 * 2, "the scores of four heads in 16 bits"


def test_every_nth_layer_is_recomputed() -> None:
    activations = Activations(layers=(340.0,) * 12, layer_input=20.0, outside=5.0)

    assert [activations.bytes_for(100, recompute, 100) for recompute in (0, 4, 2, 1)] == [
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

    assert found.problem == "a forward pass saves more than 200 tensors"
    assert len(found.layers) == 3


def test_a_model_that_takes_too_long_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of blocks are built without weights, each as a module."""
    LlamaConfig(**SIZES | {"num_hidden_layers": 20_000}).save_pretrained(tmp_path)
    lora = LoraSpec.model_validate({"targetModules": "AllLinear"})
    monkeypatch.setattr(shared_trial(), "limits", Limits(cpu_seconds=2))

    found = try_activations(shared_trial(), tmp_path, lora, 2, Layout.PADDING_FREE, Attention.AUTO)

    assert found.described == (
        "an upper bound, because they could not be measured: this takes more than 2 s of CPU time"
    )
    assert len(found.layers) == 20_000


def test_a_model_is_measured_alike_in_the_child_process(bases: dict[str, Path]) -> None:
    lora = LoraSpec.model_validate({"targetModules": "AllLinear"})

    found = try_activations(shared_trial(), bases["llama"], lora, 2, Layout.PADDING_FREE, Attention.AUTO)

    assert found == measure_activations(bases["llama"], lora, 2)
    assert found.described == "measured"


def test_a_model_that_cannot_be_measured_gets_an_upper_bound(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraSpec.model_validate({"rank": 2, "targetModules": "AllLinear", "dropout": 0.05})
    measured = measure_activations(bases["llama"], lora, 2)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the output shape depends on data")

    monkeypatch.setattr("edgetune_jobs.training.memory.activations._fused_attention", fail)
    bound = measure_activations(bases["llama"], lora, 2)

    assert bound.problem == "the output shape depends on data"
    assert len(bound.layers) == len(measured.layers)
    assert bound.bytes_for(TOKENS, 0, TOKENS) > measured.bytes_for(TOKENS, 0, TOKENS)
