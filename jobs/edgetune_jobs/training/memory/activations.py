"""Measures the activations that autograd saves in a training, with the model's real shapes and without its memory.

The model with its adapter runs forward on fake tensors (torch._subclasses.fake_tensor), which have shapes and no
numbers, and hooks see each tensor that the backward pass would need. So dropout, targets, norms and widths of any
architecture count as they are. Only the first blocks run, until each kind of block has run twice, so that the time is
that of a few blocks. Formulas that count an architecture's operations (34 bytes for each layer, token and hidden unit
in 16 bits, Korthikanti et al. 2022, Reducing Activation Recomputation, section 4.1) leave out the adapter, and are too
low by a factor of 1.1 to 2.7.

With Varlen, attention counts as a fused kernel saves it. Otherwise the model's own attention runs, with a mask, on rows
of two lengths: what grows with the square of a row, such as the mask, or the scores of a model that caps them (Gemma
2), counts for each pair of its tokens.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.spec import LoraSpec
from edgetune_contract.training import Attention, Layout
from edgetune_jobs.models.libraries import load_config, prepare_libraries
from edgetune_jobs.models.skeleton import build_skeleton
from edgetune_jobs.models.trial.process import TrialFailed, TrialProcess
from edgetune_jobs.training.recipe import find_targets, lora_config
from edgetune_jobs.wording import first_line

if TYPE_CHECKING:
    import torch

# Bytes of a model whose operations depend on numbers, which fake tensors do not have: the most that was measured for a
# layer, token and hidden unit in 16 bits, with adapters on all linear layers and dropout (DeepSeek-V3: 388).
_MOST_BYTES_IN_16_BITS = 400
# So many that what does not depend on them, such as copies of the adapter in 16 bits, is less than 1 %.
_PROBE_TOKENS = 4096
# A model that computes token by token (RecurrentGemma) saves tensors for each, and would take minutes.
_MOST_TENSORS = 5_000
_ATTENTION = "edgetune_fused"
_LONGEST_PROBLEM = 120


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass keeps for the backward pass."""

    layers: tuple[float, ...]
    """Of each block, for each token."""

    layer_input: float
    """Of the input of a block, for each token: what is kept of a block that is recomputed."""

    outside: float
    """Before and after the blocks, for each token; without the output head, which trl computes in tiles."""

    pairs: tuple[float, ...] = ()
    """Of each block, for each pair of tokens of one row, on top of `layers`; empty for none."""

    is_joined: bool = True
    """Whether the examples of a forward pass are one row; otherwise each is padded to the longest."""

    problem: str = ""
    """Why these are an upper bound and not measured, such as operations that depend on numbers; empty if measured."""

    @property
    def is_measured(self) -> bool:
        """Whether these are the bytes of this model, and not an upper bound."""
        return not self.problem

    @property
    def described(self) -> str:
        """Where these come from, for the facts of a stage."""
        return f"an upper bound, because they could not be measured: {self.problem}" if self.problem else "measured"

    def bytes_for(self, tokens: int, recompute: int, longest: int) -> int:
        """Bytes at the peak: all activations that are kept, and those of the largest block that is recomputed.

        Args:
            tokens: of one forward pass.
            recompute: every how many blocks one is recomputed (gradient checkpointing); 0 for none.
            longest: tokens of the longest example.
        """
        row = tokens if self.is_joined else min(longest, tokens)
        pairs = self.pairs or (0.0,) * len(self.layers)
        layers = [layer + row * pair for layer, pair in zip(self.layers, pairs, strict=True)]
        recomputed = layers[::recompute] if recompute else ()
        kept = sum(layers) - sum(recomputed) + len(recomputed) * self.layer_input + max(recomputed, default=0)
        return round(tokens * (kept + self.outside))


def measure_activations(
    folder: Path,
    lora: LoraSpec,
    number_bytes: int,
    layout: Layout = Layout.PADDING_FREE,
    attention: Attention = Attention.AUTO,
) -> Activations:
    """Measure the activations of a training.

    In this process, for a base that prepare has tried: its forward pass takes longer than this one.

    Args:
        folder: the base model's folder; only its configuration is read.
        lora: spec.lora; its targets are layers of the model.
        number_bytes: 2 for autocast to 16 bits, 4 for float32.
        layout: of the spec, or the one that is used instead.
        attention: of the spec, or the one that is used instead.
    """
    prepare_libraries()
    try:
        return _measure(folder, lora, number_bytes, layout, attention)
    except Exception as error:  # noqa: BLE001 - fake tensors fail in many ways where real ones do not
        return _bound(folder, number_bytes, first_line(error)[:_LONGEST_PROBLEM])


def try_activations(
    trial: TrialProcess, folder: Path, lora: LoraSpec, number_bytes: int, layout: Layout, attention: Attention
) -> Activations:
    """Measure the activations of a training as `measure_activations`, within the limits of a child process.

    Args:
        trial: the child process.
        folder: of a base model that `try_model` has accepted.
        lora: spec.lora; its targets are layers of the model.
        number_bytes: 2 for autocast to 16 bits, 4 for float32.
        layout: spec.training.layout.
        attention: spec.training.attention.
    """
    try:
        return trial.call(measure_activations, folder, lora, number_bytes, layout, attention)
    except TrialFailed as error:
        return _bound(folder, number_bytes, f"this {error.reason}")


def _bound(folder: Path, number_bytes: int, problem: str) -> Activations:
    hidden, layers = _sizes(folder)
    one_layer = hidden * _MOST_BYTES_IN_16_BITS * number_bytes / 2
    return Activations((one_layer,) * layers, hidden * number_bytes, one_layer, problem=problem)


def _sizes(folder: Path) -> tuple[int, int]:
    """Width and number of the blocks."""
    text = load_config(folder).get_text_config()
    return getattr(text, "hidden_size", 0), getattr(text, "num_hidden_layers", 0)


class UnsupportedByVarlen(Exception):
    """Varlen does not compute a model's attention."""


class TooManyTensors(Exception):
    """A forward pass saves more tensors than are measured."""


@dataclass
class SavedBytes:
    """Bytes of the storages that autograd has saved: each counts once, where it was saved first."""

    layers: list[int]
    outside: int = 0
    _layer: int | None = None
    _seen: dict[int, "torch.UntypedStorage"] = field(default_factory=dict, repr=False)
    """By address; holding them keeps an address from being used again."""

    @property
    def total(self) -> int:
        """Bytes inside and outside of the layers."""
        return sum(self.layers) + self.outside

    @contextmanager
    def counting(self, layers: Sequence["torch.nn.Module"], present: Sequence["torch.Tensor"]) -> Iterator[None]:
        """Count what a forward pass inside the context saves.

        Args:
            layers: the model's blocks.
            present: tensors that exist anyway, such as parameters and inputs.
        """
        from torch.autograd.graph import saved_tensors_hooks

        def pack(tensor: "torch.Tensor") -> "torch.Tensor":
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                if len(self._seen) - len(present) > _MOST_TENSORS:
                    raise TooManyTensors(f"a forward pass saves more than {_MOST_TENSORS:,} tensors")
                self._seen[storage._cdata] = storage
                if self._layer is None:
                    self.outside += storage.nbytes()
                else:
                    self.layers[self._layer] += storage.nbytes()
            return tensor

        for tensor in present:
            storage = tensor.untyped_storage()
            self._seen[storage._cdata] = storage
        handles = [layer.register_forward_pre_hook(self._entering(index)) for index, layer in enumerate(layers)]
        handles += [layer.register_forward_hook(self._leaving) for layer in layers]
        try:
            with saved_tensors_hooks(pack, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, index: int) -> Any:
        def hook(*_: Any) -> None:
            self._layer = index

        return hook

    def _leaving(self, *_: Any) -> None:
        self._layer = None


def _measure(folder: Path, lora: LoraSpec, number_bytes: int, layout: Layout, attention: Attention) -> Activations:
    hidden, _ = _sizes(folder)
    joined = layout is not Layout.PADDED
    if joined and attention is not Attention.SDPA:
        try:
            (saved,) = _saved(folder, lora, number_bytes, fused=True)
        except UnsupportedByVarlen:
            joined = attention is Attention.VARLEN  # Auto pads instead
        else:
            per_layer = tuple(layer / _PROBE_TOKENS for layer in saved.layers)
            return Activations(per_layer, hidden * number_bytes, saved.outside / _PROBE_TOKENS)
    try:
        long, short = _saved(folder, lora, number_bytes, fused=False)
    except TooManyTensors:
        raise
    except Exception:  # noqa: BLE001 - such as Bloom, which makes its own mask from one of two dimensions
        long, short = _saved(folder, lora, number_bytes, fused=False, masked=False)
    fits = [_by_token_and_pair(*each) for each in zip(long.layers, short.layers, strict=True)]
    outside = long.outside / _PROBE_TOKENS
    tokens, pairs = zip(*fits, strict=True)
    return Activations(tokens, hidden * number_bytes, outside, pairs, is_joined=joined)


def _by_token_and_pair(long: int, short: int) -> tuple[float, float]:
    """Bytes for each token and for each pair, from those of a row of _PROBE_TOKENS and of one half as long."""
    pair = max(0.0, 2 * (long - 2 * short) / _PROBE_TOKENS**2)
    return long / _PROBE_TOKENS - pair * _PROBE_TOKENS, pair


def _saved(folder: Path, lora: LoraSpec, number_bytes: int, *, fused: bool, masked: bool = True) -> list[SavedBytes]:
    """What a forward pass of one row saves: with Varlen; or with the model's own attention, which also gets a row half
    as long.

    Raises:
        UnsupportedByVarlen: the model does not use the attention that is set, or with an option that Varlen lacks.
    """
    import torch
    from peft import get_peft_model
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AttentionInterface

    from edgetune_jobs.training.kernels.attention import set_input_casts
    from edgetune_jobs.training.kernels.low_rank import fuse

    # It logs the traceback of an error that is reported by other means.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    dtype = torch.bfloat16 if number_bytes == 2 else torch.float32
    calls = 0

    def counted(*tensors: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return _fused_attention(*tensors, **options)

    AttentionInterface.register(_ATTENTION, counted)
    base = build_skeleton(folder, dtype)
    own = base.config._attn_implementation
    if fused:
        base.set_attn_implementation(_ATTENTION)
    model = get_peft_model(base, lora_config(lora, find_targets(base, lora)), low_cpu_mem_usage=True)
    set_input_casts(model, enabled=number_bytes != 2)
    fuse(model)
    layers = blocks_of(base)
    kinds = [_kind_of(layer) for layer in layers]
    del layers[_enough(kinds) :]
    autocast = torch.autocast("cpu", dtype=dtype) if number_bytes == 2 else nullcontext()
    with FakeTensorMode():
        _make_fake(model)
        model.train()
        probes = []
        for tokens in (_PROBE_TOKENS,) if fused else (_PROBE_TOKENS, _PROBE_TOKENS // 2):
            row, positions = torch.zeros((1, tokens), dtype=torch.long), torch.arange(tokens)[None]
            mask = None
            if masked and not fused:
                mask = torch.ones((1, 1, tokens, tokens), dtype=torch.bool if own == "sdpa" else dtype)
            saved = SavedBytes([0] * len(layers))
            present = [*model.parameters(), *model.buffers(), row, positions]
            with saved.counting(layers, present), autocast:
                base.base_model(input_ids=row, position_ids=positions, attention_mask=mask, use_cache=False)
            of_kind = dict(zip(kinds, saved.layers, strict=False))
            blocks = [*saved.layers, *(of_kind[kind] for kind in kinds[len(layers) :])]
            probes.append(SavedBytes(blocks, saved.outside))
    if fused and not calls:
        raise UnsupportedByVarlen
    return probes


def blocks_of(model: "torch.nn.Module") -> "torch.nn.ModuleList":
    """The model's blocks: its longest list of modules that is in no other one."""
    from torch import nn

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(each) for outer in lists for each in outer.modules() if each is not outer}
    return max((each for each in lists if id(each) not in inner), key=len)


def _kind_of(block: "torch.nn.Module") -> Hashable:
    """Equal for blocks that save equally much: their modules and the shapes of their parameters are equal."""
    return tuple(
        (name, type(module), tuple(parameter.shape for parameter in module.parameters(recurse=False)))
        for name, module in block.named_modules()
    )


def _enough(kinds: Sequence[Hashable]) -> int:
    """The number of first blocks that have each kind twice, or as often as there is one.

    The first block alone also counts what all blocks share, such as rotary positions.
    """
    seen: Counter[Hashable] = Counter()
    enough = 0
    for index, kind in enumerate(kinds):
        seen[kind] += 1
        if seen[kind] <= 2:
            enough = index + 1
    return enough


def _make_fake(model: "torch.nn.Module") -> None:
    """Replace the tensors of a model on the meta device by fake ones; trainable parameters are float32."""
    import torch

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                dtype = torch.float32 if parameter.requires_grad else parameter.dtype
                fake = torch.empty(parameter.shape, dtype=dtype)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _fused_attention(
    _module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    _mask: "torch.Tensor | None",
    dropout: float = 0.0,
    **options: Any,
) -> "tuple[torch.Tensor, None]":
    """Attention that saves what fused kernels save: queries, keys, values, outputs and a sum for each score row.

    Raises:
        UnsupportedByVarlen: no such kernel computes it.
    """
    from torch.nn.functional import scaled_dot_product_attention

    from edgetune_jobs.training.kernels.attention import UNSUPPORTED

    if dropout or any(options.get(name) is not None for name in UNSUPPORTED):
        raise UnsupportedByVarlen
    query, key = query.to(value.dtype), key.to(value.dtype)
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    return output.transpose(1, 2).contiguous(), None
