"""A Llama base model with 0.6 million parameters that the tests train in seconds and cache on disk."""

import hashlib
import inspect
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.folders import cache_folder, locked
from support import tiny_data

_MAX_VOCABULARY = 2048
_CONTEXT = 128
_BATCH = 16
_PEAK_LEARNING_RATE = 2e-3


def make_tiny_base(
    folder: Path,
    *,
    hidden: int = 128,
    layers: int = 2,
    pretrain_steps: int = 200,
    seed: int = 0,
    tied: bool = False,
    dtype: str = "float32",
    lines: Sequence[str] = (),
) -> Path:
    """Write a base model into `folder`: byte-level BPE tokenizer, Llama architecture, safetensors in `dtype`.

    It is pre-trained on log lines (about 11 s with the defaults), so that it can learn a task from a few hundred
    examples. With `pretrain_steps=0` it is random, for tests that do not need learning. Each set of options is made
    once and cached.

    `lines` are the texts of tokenizer and pre-training, in place of log lines.

    All sizes are multiples of 64, because 4-bit inference of bitsandbytes fails with others on some CPUs.
    """
    options: dict[str, Any] = {
        "hidden": hidden,
        "layers": layers,
        "pretrain_steps": pretrain_steps,
        "seed": seed,
        "tied": tied,
        "dtype": dtype,
        "lines": list(lines),
    }
    cached = _cache_folder(options)
    with locked(cached.parent, cached.name):
        if not cached.exists():
            draft = Path(tempfile.mkdtemp(dir=cached.parent))
            _make(draft, **options)
            draft.rename(cached)
    shutil.copytree(cached, folder, dirs_exist_ok=True)
    return folder


def _cache_folder(options: dict[str, Any]) -> Path:
    import torch
    import transformers

    source = inspect.getsource(inspect.getmodule(_make)) + inspect.getsource(tiny_data)  # type: ignore[arg-type]
    versions = [torch.__version__, transformers.__version__]
    name = hashlib.sha256(json.dumps([source, options, versions], sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "tiny-base" / name


def _make(
    folder: Path,
    *,
    hidden: int,
    layers: int,
    pretrain_steps: int,
    seed: int,
    tied: bool,
    dtype: str,
    lines: list[str],
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    lines = lines or tiny_data.corpus(20_000 if pretrain_steps else 2_000, seed + 1)
    tokenizer = _make_tokenizer(lines)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden,
                intermediate_size=hidden * 8 // 3 // 64 * 64 + 64,
                num_hidden_layers=layers,
                num_attention_heads=hidden // 64,
                num_key_value_heads=max(1, hidden // 128),
                max_position_embeddings=512,
                tie_word_embeddings=tied,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                initializer_range=0.05,
            )
        )
        if pretrain_steps:
            _pretrain(model, _token_stream(tokenizer, lines, seed), pretrain_steps)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _make_tokenizer(lines: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*lines, *["### Instruction:\n\n### Response:\n"] * 50], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )


def _token_stream(tokenizer: Any, lines: list[str], seed: int) -> Any:
    import torch

    generator = random.Random(seed)
    newline = tokenizer("\n")["input_ids"]
    stream: list[int] = []
    for ids in tokenizer(lines)["input_ids"]:
        stream += ids + newline
        if generator.random() < 0.04:
            stream.append(tokenizer.eos_token_id)
    return torch.tensor(stream)


def _pretrain(model: Any, stream: Any, steps: int) -> None:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_LEARNING_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        starts = torch.randint(0, len(stream) - _CONTEXT, (_BATCH,))
        batch = torch.stack([stream[start : start + _CONTEXT] for start in starts])
        # In float32: without instructions for it, a CPU takes three times as long in bfloat16.
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
