"""Tiny random models of the families that can be streamed, with a tokenizer, and adapters for them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.spec import BaseModelSpec, Method
from edgetune_contract.training import Precision
from edgetune_jobs.models.adapters.adapter_files import TrainingRecord
from edgetune_jobs.models.libraries import prepare_libraries
from support.tiny_tokenizer import make_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"mlp_bias": True, "attention_bias": True},
    "mistral": {"head_dim": 64},
    "qwen2": {},
    "qwen3": {"head_dim": 64},
    "gemma": {"head_dim": 64},
    "gemma2": {"head_dim": 64},
    "gemma3_text": {"head_dim": 64},
    "phi3": {},
    "smollm3": {},
}
"""Fields of the configuration in addition to the sizes, by model_type."""


def make_model(folder: Path, family: str, *, tied: bool, dtype: str, shards: int = 1, **sizes: int) -> Path:
    """Write a random model and its tokenizer, in about `shards` shards; `sizes` replace those of config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields = {**_SIZES, "vocab_size": len(tokenizer) + 9, **ids, **FAMILIES[family], **sizes}
    config = AutoConfig.for_model(family, **fields, tie_word_embeddings=tied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        _spread(model)
    model.to(getattr(torch, dtype))
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // shards + 1)
    tokenizer.save_pretrained(folder)
    return folder


def add_unused_tensors(folder: Path) -> None:
    """Add tensors that older checkpoints also store: RoPE frequencies, and the output head of a tied model."""
    import torch
    from safetensors.torch import load_file, save_file

    path = next(path for path in folder.glob("*.safetensors") if "model.embed_tokens.weight" in load_file(path))
    tensors = load_file(path)
    added = {f"model.layers.{number}.self_attn.rotary_emb.inv_freq": torch.arange(16.0) for number in range(2)}
    if json.loads((folder / "config.json").read_text())["tie_word_embeddings"]:
        added["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | added, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] |= dict.fromkeys(added, path.name)
        index.write_text(json.dumps(content))


def make_adapter(folder: Path, base: Path, *, method: Method, base_dtype: str, dtype: str, **options: Any) -> Path:
    """Write an adapter with random matrices and a training record, as if it had been trained on `base`.

    Args:
        folder: the folder to write.
        base: the base model.
        method: method in the training record.
        base_dtype: dtype of the base model in the training record.
        dtype: dtype of the adapter's tensors.
        options: of peft's LoraConfig.
    """
    import torch

    prepare_libraries()
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        tuned = get_peft_model(model, LoraConfig(**{"r": 8, "lora_alpha": 24, **options}))
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    weights = folder / "adapter_model.safetensors"
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    config = folder / "adapter_config.json"
    described = json.loads(config.read_text())
    config.write_text(json.dumps(described | {"target_modules": sorted(described["target_modules"])}))
    write_record(folder, method, base_dtype)
    return folder


def write_record(folder: Path, method: Method, base_dtype: str) -> None:
    """The train stage's record in an adapter's folder."""
    record = TrainingRecord(
        method=method,
        precision=Precision.BF16,
        base_dtype=base_dtype,
        base=BaseModelSpec(uri="s3://models/base"),
        steps=1,
        epochs=1,
        loss=1,
        trainable_parameters=1,
        total_parameters=2,
        seed=0,
    )
    (folder / "training.json").write_text(record.model_dump_json())


def _spread(model: "PreTrainedModel") -> None:
    """Add random values to all tensors, including norms and biases, so that a wrong tensor is noticed."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
