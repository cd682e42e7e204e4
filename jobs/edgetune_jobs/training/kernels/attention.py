"""Attention of training over joined examples, and the check that a model does not mix them.

Joined examples are one row of tokens. With Sdpa, transformers builds a mask [tokens, tokens] from their positions: the
work is that of one long example, and no GPU kernel without a mask fits. With Varlen there is no mask: each example
attends to itself only, on a GPU in one kernel (torch.nn.attention.varlen: FlashAttention-2), elsewhere in one call of
scaled_dot_product_attention for each example. Examples of equal length, such as the parts of long texts, are one batch
for scaled_dot_product_attention, whose kernels are faster on newer GPUs (docs/benchmarks.md).

This module imports torch at its top; import it only inside functions.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from edgetune_contract.training import Attention, Layout, TrainingSpec
from edgetune_jobs.errors import is_out_of_gpu_memory

VARLEN = "edgetune_varlen"
"""Name of varlen_attention in transformers."""

UNSUPPORTED = ("softcap", "s_aux")
"""Options of models that no kernel of Varlen computes: capped scores, and sinks."""

_KERNEL_DTYPES = (torch.bfloat16, torch.float16)
_KERNEL_CAPABILITY = (8, 0)
_LARGEST_KERNEL_HEAD = 256
# Lengths of the examples that check_isolation joins; the second would see all of the first.
_PROBE_LENGTHS = (16, 4)
# Machine epsilons by which logits may differ whose experts computed other tokens beside them.
_ROUNDING = 16


@dataclass(frozen=True)
class Arrangement:
    """How training arranges examples and computes attention."""

    layout: Layout
    attention: Attention
    """Not Auto."""

    in_inference: str
    """The model's own attention, by its name in transformers, for padded rows."""

    warning: str = ""
    """What the spec asks for and the model does not support."""

    def facts(self) -> dict[str, str]:
        """For the result; a model without Sdpa has the name of its own attention."""
        is_named = self.attention is Attention.VARLEN or self.in_inference == "sdpa"
        return {
            "layout": self.layout.value,
            "attention": self.attention.value if is_named else self.in_inference,
        }


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each of several joined examples, as a function of transformers' AttentionInterface.

    Args:
        module: the attention layer.
        query: [1, query heads, tokens, head size].
        key: [1, key heads, tokens, head size]; query heads are a multiple of key heads.
        value: as key.
        attention_mask: None.
        scaling: factor of the scores; 1 / sqrt(head size) by default.
        dropout: 0.
        cu_seq_lens_q: int32 [examples + 1]: the first token of each example, and the number of tokens.
        max_length_q: tokens of the longest example.
        sliding_window: number of last tokens that a token attends to, itself included; None for all.
        others: further arguments of models; softcap and s_aux must be None.

    Returns:
        [1, tokens, query heads, head size], and None.

    Raises:
        ValueError: the model asks for something else, which would be computed wrongly.
    """
    unsupported = [name for name in UNSUPPORTED if others.get(name) is not None]
    unsupported += ["dropout"] * bool(dropout) + ["a mask"] * (attention_mask is not None)
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        unsupported.append("attention to later tokens")
    if unsupported:
        raise ValueError(f"Varlen attention does not support {', '.join(unsupported)}")
    if cu_seq_lens_q is None:
        raise ValueError("Varlen attention requires joined examples")
    query, key, value = (tensor.to(computed_dtype(value)) for tensor in (query, key, value))
    examples, tokens = len(cu_seq_lens_q) - 1, query.shape[2]
    if examples * max_length_q == tokens and (sliding_window is None or sliding_window >= max_length_q):
        queries, keys, values = (_unjoined(tensor, examples) for tensor in (query, key, value))
        return _attend(queries, keys, values, scaling, None).transpose(1, 2).flatten(0, 1)[None], None
    if _has_kernel(query, value):
        rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        output = varlen_attn(
            *rows,
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scaling,
            window_size=window,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output[None], None
    parts = [
        _attend(query[:, :, begin:end], key[:, :, begin:end], value[:, :, begin:end], scaling, sliding_window)
        for begin, end in pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def arrange(training: TrainingSpec, model: PreTrainedModel) -> Arrangement:
    """Choose layout and attention by what the model supports, and set the model's attention.

    Args:
        training: spec.training.
        model: the base, without adapter, in eval mode.
    """
    own, name = model.config._attn_implementation, type(model).__name__
    if training.layout is Layout.PADDED:
        return Arrangement(Layout.PADDED, Attention.SDPA, own)
    if training.attention is not Attention.SDPA and _can_set(model):
        with _windows_seen() as windows:
            model.set_attn_implementation(VARLEN)
            problem = mixes_examples(model)
        if problem is None and (windows or not _limits_attention(model)):
            return Arrangement(training.layout, Attention.VARLEN, own)
        model.set_attn_implementation(own)
    problem = mixes_examples(model)
    if problem is None and training.attention is Attention.AUTO:
        # The mask of a row, and for some models its scores, grow with the square of all its tokens.
        problem = "does not support Varlen, without which joined examples cost more than padding"
    if problem is not None:
        warning = f"spec.training.layout: {name} {problem}, so that its examples were padded instead"
        return Arrangement(Layout.PADDED, Attention.SDPA, own, warning)
    warning = f"spec.training.attention: {name} does not support Varlen, and was trained with Sdpa"
    return Arrangement(training.layout, Attention.SDPA, own, warning if training.attention is Attention.VARLEN else "")


def mixes_examples(model: PreTrainedModel) -> str | None:
    """Why examples cannot be joined: their outputs depend on each other, or the model refuses them. None if they can.

    Two examples are joined, and the tokens of the first are changed: no bit of the second one's logits may change; with
    experts, which compute all their tokens at once, none may change by more than rounding.
    """
    vocabulary = model.config.get_text_config().vocab_size
    first, second = _PROBE_LENGTHS
    examples = [[1 + token for token in range(first)], [2 + token for token in range(second)]]
    outputs = []
    try:
        for shift in (0, first):
            inputs = joined([[(token + shift) % vocabulary for token in examples[0]], examples[1]], model.device)
            with torch.inference_mode():
                logits = model(**inputs, use_cache=False).logits
            outputs.append(logits[0, first:])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_gpu_memory(error):
            raise
        return f"does not train on joined examples ({' '.join(str(error).split())[:120]})"
    before, after = outputs
    if not bool((before.isfinite() & after.isfinite()).all()):
        return "has logits that are not finite, with which joined examples cannot be told apart"
    rounding = _ROUNDING * torch.finfo(before.dtype).eps * before.abs().max() if has_experts(model) else 0.0
    is_same = bool(((before - after).abs() <= rounding).all())
    return None if is_same else "mixes examples that are joined"


@contextmanager
def as_in_inference(model: PeftModel, attention: str) -> Iterator[None]:
    """Within the block, the model computes padded rows, without autocast, as outside of training."""
    base = model.get_base_model()
    in_training, casts = base.config._attn_implementation, _input_casts(model)
    base.set_attn_implementation(attention)
    set_input_casts(model, enabled=True)
    try:
        yield
    finally:
        base.set_attn_implementation(in_training)
        set_input_casts(model, enabled=casts)


def set_input_casts(model: PeftModel, *, enabled: bool) -> None:
    """Let peft convert the inputs of adapters to float32, or not.

    Under autocast, the adapter computes in 16 bits in any case: the conversion only takes 6 to 19 bytes for each layer,
    token and hidden unit.
    """
    for layer in _adapter_layers(model):
        layer.cast_input_dtype_enabled = enabled


def _input_casts(model: PeftModel) -> bool:
    return all(getattr(layer, "cast_input_dtype_enabled", True) for layer in _adapter_layers(model))


def _adapter_layers(model: PeftModel) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    head_size = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in _KERNEL_DTYPES
        and head_size == value.shape[-1]  # other sizes are those of latent attention
        and head_size <= _LARGEST_KERNEL_HEAD
        and head_size % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= _KERNEL_CAPABILITY
    )


def _unjoined(tensor: torch.Tensor, examples: int) -> torch.Tensor:
    """[1, heads, tokens, head size] of examples of equal length as [examples, heads, tokens of one, head size]."""
    return tensor[0].unflatten(1, (examples, -1)).transpose(0, 1)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    """Attention of examples [examples, heads, tokens, head size]."""
    tokens = query.shape[2]
    mask = None
    if window is not None and window < tokens:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _can_set(model: PreTrainedModel) -> bool:
    """Whether all attention layers of a model use the function that its configuration names, without dropout."""
    config = model.config.get_text_config()
    drops = getattr(config, "attention_dropout", 0) or getattr(config, "attn_pdrop", 0)
    can_set = model._can_set_attn_implementation() and getattr(model, "_supports_attention_backend", False)
    return bool(can_set and not drops)


@contextmanager
def _windows_seen() -> Iterator[set[int]]:
    """Register varlen_attention; the sliding windows that layers ask it for within the block."""
    windows: set[int] = set()

    def watched(*tensors: Any, **options: Any) -> tuple[torch.Tensor, None]:
        window = options.get("sliding_window")
        windows.update(() if window is None else (window,))
        return varlen_attention(*tensors, **options)

    AttentionInterface.register(VARLEN, watched)
    try:
        yield windows
    finally:
        AttentionInterface.register(VARLEN, varlen_attention)


def _limits_attention(model: PreTrainedModel) -> bool:
    """Whether tokens attend only to a window or chunk before them. Some models (PhiMoE, Llama 4) say so in their masks
    alone, which Varlen does not get."""
    config = model.config.get_text_config()
    if set(getattr(config, "layer_types", None) or ()) == {"full_attention"}:
        return False
    return any(getattr(config, field, None) is not None for field in ("sliding_window", "attention_chunk_size"))


def has_experts(model: PreTrainedModel) -> bool:
    """Whether blocks of a model choose experts for each token."""
    return any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules())


def joined(examples: list[list[int]], device: torch.device) -> Mapping[str, Any]:
    """The inputs of joined examples, as the trainer makes them."""
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    inputs = collator([{"input_ids": ids, "labels": ids} for ids in examples])
    moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
    return {name: value for name, value in moved.items() if name != "labels"}


def computed_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which matrices are multiplied: under autocast, norms and rotary positions can leave float32."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
