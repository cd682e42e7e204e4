"""Tiny random models of each family with a tokenizer, and their edge formats."""

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
# Fields of the configuration in addition to the sizes; the first word of a name is the model type.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama biases": {"attention_bias": True, "mlp_bias": True},
    "llama llama3-rope": {"rope_parameters": _LLAMA3_ROPE},
    "llama linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    "llama wide-heads": {"head_dim": 32},
    "mistral": {"sliding_window": 128},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32, "num_attention_heads": 2},
}


def make_model(folder: Path, family: str, *, dtype: str = "float32", tokenizer: Any = None, **changes: Any) -> Path:
    """Write a model with random weights, biases and norms into `folder`, as safetensors in `dtype`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tokenizer or make_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # Like real embeddings, with more rows than tokens.
    options = {**_SIZES, "vocab_size": len(tokenizer) + 9, **ids, **FAMILIES[family], **changes}
    config = AutoConfig.for_model(family.split()[0], **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
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


def write_gguf(model: Path, output: Path) -> Path:
    """Write the GGUF file of a model folder into `output`, with copies of its JSON files."""
    from transformers import AutoConfig

    from edgetune_jobs.models import loading
    from edgetune_jobs.tensors.formats.gguf_encoder import GgufEncoder, make_header
    from edgetune_jobs.tensors.formats.gguf_layout import lay_out
    from edgetune_jobs.tensors.formats.gguf_vocabulary import describe_vocabulary

    weights = stored_weights(model)
    config = AutoConfig.from_pretrained(model)
    layout = lay_out(config, {tensor.name: tensor.shape for tensor in weights.tensors})
    vocabulary = describe_vocabulary(loading.load_tokenizer(model), config.vocab_size, ())
    output.mkdir(parents=True, exist_ok=True)
    header = make_header(layout, vocabulary, "model", output)
    with GgufEncoder(layout, header, FolderFiles(output), "model-Q8_0.gguf") as encoder:
        stream_all(weights, encoder)
    for path in model.glob("*.json"):
        shutil.copy(path, output)
    return output / "model-Q8_0.gguf"


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
