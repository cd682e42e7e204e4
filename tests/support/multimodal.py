"""Tiny random multimodal models of many types."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.tiny_tokenizer import make_tokenizer

# Sizes by field: each part of a configuration gets those that it has.
_TEXT: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,  # attention and positions then affect the logits of an untrained model
    "pad_token_id": None,
}
_OTHER: Mapping[str, Any] = {
    "hidden_size": 32,
    "d_model": 32,
    "embed_dim": 32,
    "intermediate_size": 64,
    "encoder_ffn_dim": 64,
    "num_hidden_layers": 2,
    "depth": 2,
    "encoder_layers": 2,
    "num_attention_heads": 2,
    "num_heads": 2,
    "encoder_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "num_mel_bins": 16,
    "num_position_embeddings": 16,
    "out_hidden_size": 64,
    "projection_dim": 64,
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0],
}
_OF_EACH_LAYER = ("layer_types", "mlp_layer_types")
_ROPE_SECTIONS = [2, 3, 3]

ARCHITECTURES: Mapping[str, str] = {
    "cohere2_vision": "Cohere2VisionForConditionalGeneration",
    "fuyu": "FuyuForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "glm4v": "Glm4vForConditionalGeneration",
    "glmasr": "GlmAsrForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "lfm2_vl": "Lfm2VlForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "nemotron_h_omni": "NemotronH_Omni_Reasoning_V3",
    "paligemma": "PaliGemmaForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "voxtral": "VoxtralForConditionalGeneration",
}
"""Classes of models by model_type: with decoders of their own, of other types, and nested in another model."""


def make_multimodal(
    folder: Path, model_type: str, *, dtype: str = "float32", whole: Mapping[str, Any] | None = None
) -> Path:
    """Write a multimodal model with random weights, biases and norms, and a tokenizer, into `folder`.

    Args:
        folder: the folder to write.
        model_type: of ARCHITECTURES.
        dtype: of the weights.
        whole: fields of the configuration outside of its parts.
    """
    import torch
    import transformers

    tokenizer = make_tokenizer()
    config = _small_config(model_type, len(tokenizer) + 9, whole or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, ARCHITECTURES[model_type])(config)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _small_config(model_type: str, vocabulary: int, whole_fields: Mapping[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    whole = CONFIG_MAPPING[model_type]()
    text_config = whole.get_text_config(decoder=True)
    parts = {}
    for name in whole.sub_configs:
        part = getattr(whole, name, None)
        if part is None:
            continue
        fields = {field: value for field, value in part.to_dict().items() if field not in _OF_EACH_LAYER}
        is_text = part is text_config
        sizes = {**_TEXT, "vocab_size": vocabulary} if is_text else _OTHER
        fields |= {field: value for field, value in sizes.items() if field in fields}
        if is_text and "_vl" in model_type and "qwen" in model_type:
            fields["rope_parameters"] = {**fields["rope_parameters"], "mrope_section": _ROPE_SECTIONS}
        parts[name] = fields
    return CONFIG_MAPPING[model_type](**parts, **whole_fields)


def read_config(folder: Path) -> dict[str, Any]:
    """Content of config.json."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content
