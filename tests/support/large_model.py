"""A synthetic Llama of one to two gigabytes with a tokenizer and an adapter, written shard by shard."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_contract.spec import Method
from support.families import write_record
from support.tiny_tokenizer import save_tokenizer

if TYPE_CHECKING:
    import torch

_RANK = 16
_VOCABULARY = 32_000
_HIDDEN = 2048
_INNER = 5632
_KEYS = 256
_LINEARS = {
    "self_attn.q_proj": (_HIDDEN, _HIDDEN),
    "self_attn.k_proj": (_KEYS, _HIDDEN),
    "self_attn.v_proj": (_KEYS, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _HIDDEN),
    "mlp.gate_proj": (_INNER, _HIDDEN),
    "mlp.up_proj": (_INNER, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _INNER),
}
_NORMS = ("input_layernorm", "post_attention_layernorm")


def make_large_model(folder: Path, layers: int) -> Path:
    """Write a random model in bfloat16: 88 MB per layer, 262 MB for embedding and head, one shard per six layers."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_HIDDEN,
        intermediate_size=_INNER,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    save_tokenizer(folder)
    ends = {"model.embed_tokens.weight": (_VOCABULARY, _HIDDEN), "model.norm.weight": (_HIDDEN,)}
    shards = [{**ends, "lm_head.weight": (_VOCABULARY, _HIDDEN)}]
    for first in range(0, layers, 6):
        shards.append({})
        for layer in range(first, min(first + 6, layers)):
            prefix = f"model.layers.{layer}."
            shards[-1] |= {f"{prefix}{name}.weight": shape for name, shape in _LINEARS.items()}
            shards[-1] |= {
                f"{prefix}{name}.weight": (_HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")
            }
    _write_shards(folder, shards)
    return folder


def make_large_adapter(folder: Path, layers: int, method: Method) -> Path:
    """Write an adapter of rank 16 for all linear layers."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir()
    names = [name.rpartition(".")[2] for name in _LINEARS]
    LoraConfig(r=_RANK, lora_alpha=32, target_modules=names, task_type="CAUSAL_LM").save_pretrained(folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": names}))
    weights = {}
    for layer in range(layers):
        for name, (outputs, inputs) in _LINEARS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(_RANK, inputs) * 0.02
            weights[f"{prefix}.lora_B.weight"] = torch.randn(outputs, _RANK) * 0.02
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_record(folder, method, "bfloat16")
    return folder


def _write_shards(folder: Path, shards: list[dict[str, tuple[int, ...]]]) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {tensor: _random(shape, generator) for tensor, shape in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _random(shape: tuple[int, ...], generator: "torch.Generator") -> "torch.Tensor":
    import torch

    return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
