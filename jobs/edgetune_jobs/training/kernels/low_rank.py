"""LoRA layers that pass through memory less often.

peft computes result + B(A(dropout(x))) · scaling in five operations, three of which read and write tensors as wide as
the result, and keeps the inputs of each layer after dropout for the backward pass. Here the product with B adds to the
result in place, and the inputs before dropout are kept, which all layers of an input share (those of queries, keys and
values; gate and up), beside one byte of the mask. After a norm in float32, each layer keeps its own copy in 16 bits.
The numbers differ by rounding: the sum is rounded once, not thrice.

This module imports torch at its top; import it only inside functions.
"""

from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners import lora
from peft.tuners.lora.layer import LoraVariant
from torch.autograd.function import once_differentiable

from edgetune_jobs.training.kernels.attention import computed_dtype

# Adapter layers by the kind of their base layer, whose result can be changed in place: nothing else needs that of a
# Linear, and peft copies that of a Linear4bit.
_ADAPTER_LAYERS: dict[type, type] = {torch.nn.Linear: lora.Linear, Linear4bit: lora.Linear4bit}


def fuse(model: PeftModel) -> None:
    """Let the LoRA layers of a model compute as described above while they train.

    Layers with DoRA, and of other kinds than linear ones, compute as before.
    """
    for layer in _linear_layers(model):
        for name in layer.lora_A:
            if name not in layer.lora_variant:
                layer.lora_variant[name] = _Fused()


def _linear_layers(model: PeftModel) -> Iterator[Any]:
    layers = (module for module in model.modules() if isinstance(module, lora.LoraLayer))
    return (layer for layer in layers if type(layer) is _ADAPTER_LAYERS.get(type(layer.get_base_layer())))


class _Fused(LoraVariant):  # type: ignore[misc, unused-ignore]  # untyped
    """What peft calls instead of its own computation."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any) -> torch.Tensor:
        reduce, expand = module.lora_A[active_adapter], module.lora_B[active_adapter]
        scaling, dropout = module.scaling[active_adapter], module.lora_dropout[active_adapter]
        if not (module.training and torch.is_grad_enabled()):
            output = expand(reduce(dropout(x))) * scaling
            # As peft does: validations in training have the loss of a model that is not fused.
            return result + (output.to(result.dtype) if isinstance(module, lora.Linear4bit) else output)
        # After a norm in float32, a Linear4bit returns float32 that it computed in 16 bits.
        dtype = computed_dtype(result)
        inputs, down, up = (tensor.to(dtype) for tensor in (x, reduce.weight, expand.weight))
        return add_low_rank(result.to(dtype), inputs, down, up, scaling, getattr(dropout, "p", 0.0))


def add_low_rank(
    result: torch.Tensor,
    x: torch.Tensor,
    reduce: torch.Tensor,
    expand: torch.Tensor,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """result + scaling · expand · reduce · dropout(x), in place (Hu et al. 2021, LoRA, section 4.1).

    Args:
        result: [..., outputs] of the base layer, contiguous; it is changed.
        x: [..., inputs] of the layer.
        reduce: A [rank, inputs].
        expand: B [outputs, rank].
        scaling: alpha / rank.
        dropout: the share of inputs that are 0; the others are divided by 1 - dropout.

    Returns:
        result.

    All tensors have one dtype.
    """
    output: torch.Tensor = _AddLowRank.apply(result, x, reduce, expand, scaling, dropout)
    return output


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        result: torch.Tensor,
        x: torch.Tensor,
        reduce: torch.Tensor,
        expand: torch.Tensor,
        scaling: float,
        dropout: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        kept, mask = torch.native_dropout(rows, dropout, True) if dropout else (rows, None)
        hidden = kept @ reduce.T
        result.view(-1, result.shape[-1]).addmm_(hidden, expand.T, alpha=scaling)
        ctx.mark_dirty(result)
        ctx.save_for_backward(x, mask, hidden, reduce, expand)
        ctx.scaling, ctx.kept_share = scaling, 1 - dropout
        return result

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, mask, hidden, reduce, expand = ctx.saved_tensors
        rows, of_result = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        of_hidden = (of_result @ expand).mul_(ctx.scaling)
        of_expand = (of_result.T @ hidden).mul_(ctx.scaling)
        kept = rows if mask is None else _masked(rows, mask, ctx.kept_share)
        of_reduce = of_hidden.T @ kept
        of_x = None
        if ctx.needs_input_grad[1]:
            of_rows = of_hidden @ reduce
            of_x = (of_rows if mask is None else _masked(of_rows, mask, ctx.kept_share)).view_as(x)
        return gradient, of_x, of_reduce, of_expand, None, None


def _masked(rows: torch.Tensor, mask: torch.Tensor, kept_share: float) -> torch.Tensor:
    """Rows where the mask is set, divided by the share that is kept: one pass through memory."""
    masked: torch.Tensor = torch.ops.aten.native_dropout_backward(rows, mask, 1 / kept_share)
    return masked
