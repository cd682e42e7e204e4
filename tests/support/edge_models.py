"""Tiny random models of each family with a tokenizer, and their edge formats."""

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgetune_contract.spec import EdgeFormat
from support.stage_context import RecordedProgress
from support.tiny_tokenizer import make_tokenizer

SIZES: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
"""Sizes of a tiny model of most types, by field of the configuration."""

_SIZES = {
    **SIZES,
    # Large values, so that attention and positions affect the logits of an untrained model.
    "initializer_range": 0.25,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 64,
}


def _longrope(pairs: int) -> Mapping[str, Any]:
    """Embeddings with long factors for texts of more than 256 tokens, the least context of llama.cpp."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0 + 0.1 * pair for pair in range(pairs)],
        "long_factor": [2.0 + 3.0 * pair for pair in range(pairs)],
        "original_max_position_embeddings": 256,
        "factor": 2.0,
    }


_GEMMA3: Mapping[str, Any] = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
    "num_hidden_layers": 7,
}
# Fields of the configuration in addition to the sizes; the first word of a name is the model type.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama biases": {"attention_bias": True, "mlp_bias": True},
    "llama llama3-rope": {"rope_parameters": _LLAMA3_ROPE},
    "llama linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    "llama wide-heads": {"head_dim": 32},
    "llama yarn": {"rope_parameters": _YARN_ROPE},
    "llama yarn-attention": {"rope_parameters": {**_YARN_ROPE, "attention_factor": 1.2}},
    "llama longrope": {"rope_parameters": _longrope(8)},
    "mistral": {"sliding_window": 128},
    "phi3": {"sliding_window": 128},
    # As Phi-4-mini: tied embeddings, and three quarters of each head are rotated.
    "phi3 longrope": {
        "tie_word_embeddings": True,
        "original_max_position_embeddings": 256,
        "rope_parameters": {**_longrope(6), "partial_rotary_factor": 0.75},
    },
    "qwen2": {"tie_word_embeddings": True},
    "qwen2 yarn": {"rope_parameters": _YARN_ROPE},
    "qwen3": {"head_dim": 32, "num_attention_heads": 2},
    # A window that is shorter than the prompts of tests, and caps that change the logits of random weights.
    "gemma2": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 5.0,
    },
    # With more layers, because the seventh is the first one after full attention; so many differ more.
    "gemma3_text": _GEMMA3,
    "gemma3_text linear-rope": {
        **_GEMMA3,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
        },
    },
}


def make_model(folder: Path, family: str, *, dtype: str = "float32", tokenizer: Any = None, **changes: Any) -> Path:
    """Write a model with random weights, biases and norms into `folder`, as safetensors in `dtype`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tokenizer or make_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # Like real embeddings, with more rows than tokens.
    options = {**_SIZES, "vocab_size": len(tokenizer) + 9, **ids, **FAMILIES[family], **changes}
    config = AutoConfig.for_model(family.split()[0], **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                # Gemma adds 1 to the weights of norms.
                torch.nn.init.normal_(parameter, mean=float("norm" in name and "gemma" not in family), std=0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_kind(folder: Path, model_type: str, **fields: Any) -> Path:
    """Write a model of any type of transformers with random weights and a tokenizer into `folder`, in bfloat16.

    Args:
        folder: the folder to write.
        model_type: of transformers.
        fields: of its configuration, in addition to small sizes.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(model_type, **{**_SIZES, "vocab_size": len(tokenizer) + 9, **ids, **fields})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class FolderFiles:
    """Output files in a local folder; the size of each is checked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def create(self, path: str, size: int) -> Iterator[Any]:
        """Open a file for writing."""
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            yield file
        assert target.stat().st_size == size, f"{path} has {target.stat().st_size} bytes, expected {size}"


def write_gguf(model: Path, output: Path, edge_format: EdgeFormat = EdgeFormat.GGUF_Q8_0, name: str = "model") -> Path:
    """Write the GGUF file of a model folder into `output`, with copies of its JSON files; not a K-quant."""
    from transformers import AutoConfig

    from edgetune_jobs.models import loading
    from edgetune_jobs.models.quantization.gguf_loading import file_name
    from edgetune_jobs.tensors.formats.gguf.encoder import GgufEncoder, make_header
    from edgetune_jobs.tensors.formats.gguf.layout import lay_out, matrices_of
    from edgetune_jobs.tensors.formats.gguf.vocabulary import describe_vocabulary

    weights = stored_weights(model)
    config = AutoConfig.from_pretrained(model)
    shapes = {tensor.name: tensor.shape for tensor in weights.tensors}
    layout = lay_out(config, shapes, *matrices_of(edge_format, weights.dtype))
    vocabulary = describe_vocabulary(loading.load_tokenizer(model), config.vocab_size, ())
    output.mkdir(parents=True, exist_ok=True)
    header = make_header(layout, vocabulary, name, output)
    with GgufEncoder(layout, header, FolderFiles(output), file_name(edge_format)) as encoder:
        stream_all(weights, encoder)
    for path in model.glob("*.json"):
        shutil.copy(path, output)
    return output / file_name(edge_format)


def stored_weights(model: Path) -> Any:
    """The weights of a model folder in the stored dtype."""
    from edgetune_jobs.models.folder import LocalModelFolder
    from edgetune_jobs.models.weights import TORCH_DTYPES, read_tensors
    from edgetune_jobs.tensors.merged_rows import ModelWeights

    folder = LocalModelFolder(model, "model")
    tensors = read_tensors(folder)
    return ModelWeights(folder, tensors, TORCH_DTYPES[tensors[0].dtype])


def stream_all(weights: Any, encoder: Any) -> None:
    """Encode and write all rows with one encoder, on two threads."""
    from edgetune_jobs.tensors.weight_stream import stream

    stream(weights, [encoder], workers=2, progress=RecordedProgress(), stop=threading.Event())


def write_w8a8(model: Path, output: Path, **plan_options: Any) -> Path:
    """Write the model folder of a model in W8A8."""
    from edgetune_jobs.tensors.families import find_layout
    from edgetune_jobs.tensors.formats.int8_encoder import Int8Encoder, plan_int8
    from edgetune_jobs.tensors.formats.w8a8 import SCHEME, quantization_config
    from edgetune_jobs.tensors.safetensors_plan import plan_files
    from edgetune_jobs.tensors.safetensors_writer import SafetensorsWriter

    weights = stored_weights(model)
    linears = find_layout(weights.folder, weights.tensors).linears
    groups = plan_int8(SCHEME, weights.tensors, linears, weights.dtype)
    with SafetensorsWriter(plan_files(groups, **plan_options), FolderFiles(output), ".") as writer:
        stream_all(weights, Int8Encoder(SCHEME, writer, groups))
        writer.finish()
    for path in model.glob("*.json"):
        shutil.copy(path, output)
    config = json.loads((model / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config | {"quantization_config": quantization_config()}))
    return output


def set_weight(folder: Path, name: str, value: float) -> None:
    """Fill a tensor of a model folder with a value."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[name].fill_(value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
