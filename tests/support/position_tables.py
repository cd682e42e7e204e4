"""Tiny random models whose positions are learned or stored, which have a last position."""

from typing import Any

POSITIONS = 24
WITH_POSITION_TABLES: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 32},
    "gpt_neo": {"num_heads": 2, "attention_types": [[["global"], 1]]},
    "gpt_bigcode": {},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8, "num_attention_heads": 4},
    "biogpt": {"intermediate_size": 32},
}
"""Model types with the sizes that each needs besides those of all."""

_SIZES = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 400}


def model_of_type(model_type: str, **sizes: Any) -> Any:
    """A random model of one layer, with POSITIONS positions."""
    from transformers import AutoConfig, AutoModelForCausalLM

    own = {**_SIZES, "max_position_embeddings": POSITIONS, **WITH_POSITION_TABLES.get(model_type, {}), **sizes}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **own)).eval()
