"""What the steps share: the device, a random base of the shape of Llama 3.1 8B, its rows, and the figures so far."""

import json
import random
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.spec import Method, Parameters

if TYPE_CHECKING:
    import torch

STEPS = 4
"""Optimizer steps of a training; the first one compiles kernels and is not timed."""

_SEED = 7
_WEIGHT_SPREAD = 0.02
_MEMORY_FOLDER = Path("/dev/shm")
# Tokens of Alpaca's rows: a median of 90, and a few rows above 300, which a padded batch makes all others as long as.
_MEDIAN_LENGTH, _SPREAD, _LONGEST = 90, 0.6, 1024
# In a rehearsal, short rows are divided by it, so that they still differ.
_SHORTEST_SCALE = 4
_LARGEST_TOKENIZER = 2048


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Shapes [outputs, inputs] of the linear layers of a block, by name."""
        queries, keys = self.heads * self.head, self.key_heads * self.head
        return {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }


def shape_of_8b(scale: int) -> Shape:
    """The shape of Llama 3.1 8B, with each size divided by `scale` as far as the libraries allow."""
    head = 128 if scale == 1 else 64
    heads = max(2, 32 // scale)
    return Shape(
        hidden=heads * head,
        inner=max(128, 14_336 // scale // 64 * 64),
        layers=max(2, 32 // scale),
        heads=heads,
        key_heads=max(1, 8 // scale),
        head=head,
        vocabulary=max(_LARGEST_TOKENIZER, 128_256 // scale),
    )


@dataclass
class Inputs:
    """Inputs of all steps."""

    device: "torch.device"
    scale: int
    """Sizes are divided by it: 1 for what is measured, more for a rehearsal."""

    folder: Path
    figures: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the steps that have ended, by their name."""

    @property
    def on_gpu(self) -> bool:
        return str(self.device.type) == "cuda"

    @cached_property
    def shape(self) -> Shape:
        return shape_of_8b(self.scale)

    @property
    def length(self) -> int:
        """Tokens of a long row."""
        return max(64, 4096 // self.scale)

    @cached_property
    def base(self) -> Path:
        """A random model in bfloat16, with a tokenizer; in memory where there is room."""
        folder = self._roomy_folder() / "base"
        _write_base(folder, self.shape, self.device)
        return folder

    @cached_property
    def long_rows(self) -> Path:
        """Prepared data: four rows of equal length."""
        return write_rows(self.folder / "long", [self.length] * 4, self.shape.vocabulary)

    @cached_property
    def short_rows(self) -> Path:
        """Prepared data: 64 rows as long as Alpaca's."""
        lengths = [max(8, each // min(self.scale, _SHORTEST_SCALE)) for each in short_lengths(64)]
        return write_rows(self.folder / "short", lengths, self.shape.vocabulary)

    def parameters(self, method: Method, training: Mapping[str, Any], **sections: Any) -> Parameters:
        """Parameters of a training with adapters on all linear layers; the rest is the spec's default."""
        steps = {"maxSteps": STEPS, "batchSize": 4, "maxLength": self.length, "warmupRatio": 0}
        spec = {
            "baseModel": {"uri": "s3://models/8b"},
            "dataset": {"train": {"uri": "s3://datasets/rows.jsonl"}},
            "method": method,
            "lora": {"targetModules": "AllLinear"},
            "training": {**steps, **training},
            **sections,
        }
        return Parameters.model_validate(spec)

    def figure(self, step: str, name: str) -> float:
        """A figure of an earlier step.

        Raises:
            LookupError: there is none.
        """
        try:
            return float(self.figures[step][name])
        except KeyError:
            raise LookupError(f"needs {name} of the step {step!r}") from None

    def new_folder(self, kind: str) -> Path:
        """A new folder for one training."""
        return Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.folder))

    def begin(self) -> None:
        """Forget the peak memory of earlier steps."""
        import torch

        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def synchronize(self) -> None:
        """Wait until the GPU is done."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()

    def close(self) -> None:
        """Remove what was written outside of `folder`."""
        shutil.rmtree(self._roomy_folder(), ignore_errors=True)

    def _roomy_folder(self) -> Path:
        needed = 1.5 * 2 * 8e9 / self.scale
        has_room = _MEMORY_FOLDER.is_dir() and shutil.disk_usage(_MEMORY_FOLDER).free > needed
        return _MEMORY_FOLDER / self.folder.name if has_room else self.folder / "models"


def _write_base(folder: Path, shape: Shape, device: "torch.device") -> None:
    """One shard for each block; the weights are drawn on the device."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from support.tiny_model import make_tiny_base

    make_tiny_base(folder, pretrain_steps=0)  # for its tokenizer
    (folder / "model.safetensors").unlink()
    LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head,
        max_position_embeddings=8192,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(folder)
    table, norm = (shape.vocabulary, shape.hidden), (shape.hidden,)
    shards: list[dict[str, tuple[int, ...]]] = [
        {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": norm}
    ]
    for layer in range(shape.layers):
        names: dict[str, tuple[int, ...]] = {f"{name}.weight": size for name, size in shape.linears.items()}
        names |= {"input_layernorm.weight": norm, "post_attention_layernorm.weight": norm}
        shards.append({f"model.layers.{layer}.{name}": size for name, size in names.items()})
    generator = torch.Generator(device).manual_seed(_SEED)
    weight_map: dict[str, str] = {}
    for number, sizes in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0, _WEIGHT_SPREAD, generator=generator)
            if len(size) == 2
            else torch.ones(size, dtype=torch.bfloat16)
            for name, size in sizes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def short_lengths(rows: int) -> list[int]:
    """Tokens of random rows that are as long as Alpaca's."""
    generator = random.Random(_SEED)
    return [min(_LONGEST, round(_MEDIAN_LENGTH * generator.lognormvariate(0, _SPREAD))) for _ in range(rows)]


def write_rows(folder: Path, lengths: list[int], vocabulary: int) -> Path:
    """Rows of random tokens of which all but the first are learned, as the stage prepare writes them."""
    import pyarrow
    import pyarrow.parquet

    generator = random.Random(_SEED)
    rows = [[generator.randrange(3, vocabulary) for _ in range(length)] for length in lengths]
    columns = {
        "input_ids": pyarrow.array(rows, pyarrow.list_(pyarrow.int32())),
        "completion_mask": pyarrow.array([[0, *[1] * (len(row) - 1)] for row in rows], pyarrow.list_(pyarrow.int8())),
    }
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "train.parquet")
    return folder
