"""The model types that the sweep tries, and the fields that make each of them small."""

from collections.abc import Mapping
from typing import Any

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,  # latent attention has one key for each query head
}
_HEAD = {"head_dim": 16}
_MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
_MAMBA2 = {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 16}

TYPES: Mapping[str, Mapping[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "attn_layer_indices": [1],
    },
    "biogpt": {},
    "bitnet": {},
    "bloom": {"n_head": 4},
    "codegen": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16, "n_positions": 512},
    "cohere": {},
    "cohere2": {},
    "cwm": _HEAD,
    "deepseek_v2": {**_ROUTED_EXPERTS, **_LATENT, "first_k_dense_replace": 1},
    "deepseek_v3": {**_ROUTED_EXPERTS, **_LATENT, "first_k_dense_replace": 1},
    "diffllama": {},
    "dots1": {**_ROUTED_EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1, **_HEAD},
    "ernie4_5": _HEAD,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64},
    "exaone4": _HEAD,
    "falcon": {},
    "falcon_mamba": {"state_size": 16, "time_step_rank": 4},
    "gemma": _HEAD,
    "gemma2": {**_HEAD, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_HEAD, "query_pre_attn_scalar": 16},
    "glm": _HEAD,
    "glm4": _HEAD,
    "glm4_moe": {**_ROUTED_EXPERTS, "first_k_dense_replace": 1, **_HEAD},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_bigcode": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_oss": {**_LOCAL_EXPERTS, **_HEAD},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16, "n_positions": 512},
    "granite": {},
    "granitemoe": _LOCAL_EXPERTS,
    "helium": _HEAD,
    "hunyuan_v1_dense": _HEAD,
    "jetmoe": {**_LOCAL_EXPERTS, "kv_channels": 16},
    "lfm2": {"full_attn_idxs": [1], "block_ff_dim": 128},
    "llama": {},
    "mamba": {"state_size": 16, "time_step_rank": 4},
    "mamba2": _MAMBA2,
    "minimax": {**_LOCAL_EXPERTS, **_HEAD},
    "ministral": _HEAD,
    "mistral": {},
    "mixtral": _LOCAL_EXPERTS,
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": _LOCAL_EXPERTS,
    "qwen2": {},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3": _HEAD,
    "qwen3_moe": {**_EXPERTS, **_HEAD},
    "seed_oss": _HEAD,
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": _HEAD,
    "xglm": {"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4},
}
"""Fields in addition to the sizes, by model_type. Types that differ only in size or name are left out."""
