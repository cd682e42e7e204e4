"""Folders of base models with handwritten weights: valid safetensors headers, and zeros as values."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.tiny_tokenizer import save_tokenizer

Shapes = Mapping[str, tuple[int, ...]]

HIDDEN = 8
VOCABULARY = 400
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def llama_shapes(layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a Llama with 8 query features, 4 key and value features, and 16 in the feed-forward."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes |= {
            f"{block}.input_layernorm.weight": (HIDDEN,),
            f"{block}.self_attn.q_proj.weight": (8, HIDDEN),
            f"{block}.self_attn.k_proj.weight": (4, HIDDEN),
            f"{block}.self_attn.v_proj.weight": (4, HIDDEN),
            f"{block}.self_attn.o_proj.weight": (HIDDEN, 8),
            f"{block}.mlp.gate_proj.weight": (16, HIDDEN),
            f"{block}.mlp.up_proj.weight": (16, HIDDEN),
            f"{block}.mlp.down_proj.weight": (HIDDEN, 16),
        }
    return shapes


def header_of(shapes: Shapes, dtype: str = "BF16", item_bytes: int = 2) -> dict[str, Any]:
    """The JSON of a safetensors header for consecutive tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + math.prod(shape) * item_bytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    return header


def safetensors_bytes(header: object, data_bytes: int) -> bytes:
    """A safetensors file: a header, given as a JSON value, and `data_bytes` zeros."""
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(data_bytes)


def write_safetensors(path: Path, shapes: Shapes, dtype: str = "BF16", item_bytes: int = 2) -> None:
    """Write a safetensors file of zeros."""
    data_bytes = sum(math.prod(shape) * item_bytes for shape in shapes.values())
    path.write_bytes(safetensors_bytes(header_of(shapes, dtype, item_bytes), data_bytes))


def make_base(
    folder: Path, *, shapes: Shapes | None = None, config: Mapping[str, Any] | None = None, **tokenizer: Any
) -> Path:
    """Write a complete base model; entries of `config` replace those of CONFIG, and None removes one."""
    folder.mkdir(parents=True)
    merged = {name: value for name, value in {**CONFIG, **(config or {})}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(merged))
    write_safetensors(folder / "model.safetensors", shapes or llama_shapes())
    save_tokenizer(folder, **tokenizer)
    return folder
