"""Measures the activations that autograd saves in a training, with the model's real shapes and without its memory.

The model with its adapter runs forward on fake tensors (torch._subclasses.fake_tensor), which have shapes and no
numbers, and hooks see each tensor that the backward pass would need. So dropout, targets, norms and widths of any
architecture count as they are. Only the first blocks run, until each kind of block has run twice, so that the time is
that of a few blocks. Formulas that count an architecture's operations (34 bytes for each layer, token and hidden unit
in 16 bits, Korthikanti et al. 2022, Reducing Activation Recomputation, section 4.1) leave out the adapter, and are too
low by a factor of 1.1 to 2.7.

Attention counts as a fused kernel saves it. Scores that a model caps (Gemma 2) have no such kernel, and do not count.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.spec import LoraSpec
from edgetune_jobs.models.libraries import load_config, prepare_libraries
from edgetune_jobs.models.skeleton import build_skeleton
from edgetune_jobs.training.recipe import find_targets, lora_config

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


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass keeps for the backward pass."""

    layers: tuple[float, ...]
    """Of each block, for each token."""

    layer_input: float
    """Of the input of a block, for each token: what is kept of a block that is recomputed."""

    outside: float
    """Before and after the blocks, for each token; without the output head, which trl computes in tiles."""

    is_measured: bool = True
    """False: an upper bound, because the model's operations depend on numbers, or are too many."""

    def bytes_for(self, tokens: int, recompute: int) -> int:
        """Bytes at the peak: all activations that are kept, and those of the largest block that is recomputed.

        Args:
            tokens: of one forward pass.
            recompute: every how many blocks one is recomputed (gradient checkpointing); 0 for none.
        """
        recomputed = self.layers[::recompute] if recompute else ()
        kept = sum(self.layers) - sum(recomputed) + len(recomputed) * self.layer_input + max(recomputed, default=0)
        return round(tokens * (kept + self.outside))


def measure_activations(folder: Path, lora: LoraSpec, number_bytes: int) -> Activations:
    """Measure the activations of a training on joined examples.

    Args:
        folder: the base model's folder; only its configuration is read.
        lora: spec.lora; its targets are layers of the model.
        number_bytes: 2 for autocast to 16 bits, 4 for float32.
    """
    prepare_libraries()
    text = load_config(folder).get_text_config()
    hidden, layers = getattr(text, "hidden_size", 0), getattr(text, "num_hidden_layers", 0)
    try:
        saved = _saved(folder, lora, number_bytes)
    except Exception:  # noqa: BLE001 - fake tensors fail in many ways where real ones do not; the bound then holds
        one_layer = hidden * _MOST_BYTES_IN_16_BITS * number_bytes / 2
        return Activations((one_layer,) * layers, hidden * number_bytes, one_layer, is_measured=False)
    per_layer = tuple(layer / _PROBE_TOKENS for layer in saved.layers)
    return Activations(per_layer, hidden * number_bytes, saved.outside / _PROBE_TOKENS)


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
                    raise TooManyTensors
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


def _saved(folder: Path, lora: LoraSpec, number_bytes: int) -> SavedBytes:
    """What a forward pass of one row saves."""
    import torch
    from peft import get_peft_model
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AttentionInterface

    from edgetune_jobs.training.attention import set_input_casts

    dtype = torch.bfloat16 if number_bytes == 2 else torch.float32
    AttentionInterface.register(_ATTENTION, _fused_attention)
    base = build_skeleton(folder, dtype)
    base.set_attn_implementation(_ATTENTION)
    model = get_peft_model(base, lora_config(lora, find_targets(base, lora)), low_cpu_mem_usage=True)
    set_input_casts(model, enabled=number_bytes != 2)
    layers = blocks_of(base)
    kinds = [_kind_of(layer) for layer in layers]
    del layers[_enough(kinds) :]
    autocast = torch.autocast("cpu", dtype=dtype) if number_bytes == 2 else nullcontext()
    with FakeTensorMode():
        _make_fake(model)
        model.train()
        row = torch.zeros((1, _PROBE_TOKENS), dtype=torch.long)
        positions = torch.arange(_PROBE_TOKENS)[None]
        saved = SavedBytes([0] * len(layers))
        present = [*model.parameters(), *model.buffers(), row, positions]
        with saved.counting(layers, present), autocast:
            base.base_model(input_ids=row, position_ids=positions, use_cache=False)
    of_kind = dict(zip(kinds, saved.layers, strict=False))
    return SavedBytes([*saved.layers, *(of_kind[kind] for kind in kinds[len(layers) :])], saved.outside)


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
    **_: Any,
) -> "tuple[torch.Tensor, None]":
    """Attention that saves what fused kernels save: queries, keys, values, outputs and a sum for each score row."""
    from torch.nn.functional import scaled_dot_product_attention

    query, key = query.to(value.dtype), key.to(value.dtype)
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    return output.transpose(1, 2).contiguous(), None
