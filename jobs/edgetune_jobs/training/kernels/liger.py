"""Liger's Triton kernels for norms, rotary positions and gated units (Hsu et al. 2024, Liger Kernel).

They compute the same in fewer passes through memory and keep less for the backward pass. Liger replaces the methods of
a model's modules and functions of the module in transformers that defines it; whether the model still computes the same
is checked, and otherwise all is put back.

This module imports torch at its top; import it only inside functions.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from transformers import PreTrainedModel

from edgetune_contract.training import Kernels
from edgetune_jobs.errors import is_out_of_gpu_memory
from edgetune_jobs.training.kernels.attention import VARLEN, has_experts, joined

# In 16 bits, logits change by about 1 % when sums are rounded otherwise, those of a wrong norm by half. Gradients have
# gone through twice as many layers.
_TOLERANCES = {"logits": 0.05, "gradients": 0.2}
_PROBE_TOKENS = 64


def use_liger(asked: Kernels, model: PreTrainedModel) -> tuple[Kernels, str]:
    """Let a model train with Liger's kernels, if spec.training.kernels asks for them and the model allows it.

    Args:
        asked: spec.training.kernels.
        model: the base, without adapter, in eval mode. With Liger, models that are built later have its kernels too.

    Returns:
        What the model uses, and a warning if the spec asks for another.
    """
    problem = _problem(model) if asked is Kernels.LIGER else None
    if problem is None:
        return asked, ""
    return Kernels.TORCH, f"spec.training.kernels: {problem}, and the model was trained with Torch"


def _problem(model: PreTrainedModel) -> str | None:
    """Why a model cannot use Liger's kernels; None if it does from now on."""
    if model.device.type != "cuda":
        return "Liger requires a GPU"
    try:
        from liger_kernel.transformers.monkey_patch import (
            MODEL_TYPE_TO_APPLY_LIGER_FN as SUPPORTED,
        )
        from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance as apply
    except ImportError as error:
        return f"Liger cannot be imported ({error})"
    name, kind = type(model).__name__, model.config.model_type
    if kind not in SUPPORTED:
        return f"Liger has no kernels for {name}"
    if has_experts(model):
        return f"Liger's kernels for the experts of {name} are not used"
    return try_kernels(model, lambda: apply(model, cross_entropy=False, fused_linear_cross_entropy=False))


def try_kernels(model: PreTrainedModel, apply: Callable[[], None]) -> str | None:
    """Replace the kernels of a model, and put all back unless its logits and gradients stay the same within rounding.

    Args:
        model: in eval mode.
        apply: replaces methods of the model's modules, or names in the modules of Python that define them.

    Returns:
        Why the kernels were put back; None if they stay.
    """
    name, before = type(model).__name__, _probe(model)
    for kind, values in before.items():
        if not values.isfinite().all():
            return f"{name} has {kind} that are not finite, with which Liger's kernels cannot be checked"
    with _restored(model) as keep:
        try:
            apply()
            after = _probe(model)
        except Exception as error:
            if is_out_of_gpu_memory(error):
                raise
            return f"Liger's kernels fail for {name} ({' '.join(str(error).split())[:200]})"
        for kind, tolerance in _TOLERANCES.items():
            difference = float((after[kind] - before[kind]).norm() / before[kind].norm())
            if not difference <= tolerance:  # also for NaN
                by = f"by {difference:.0%}" if isfinite(difference) else "to numbers that are not finite"
                return f"Liger's kernels change the {kind} of {name} {by}"
        keep()
    return None


def _probe(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Logits of a row, float32, and the gradients of a sum of them with respect to the row's embeddings, float32."""
    vocabulary = model.config.get_text_config().vocab_size
    row = [token * 7919 % vocabulary for token in range(_PROBE_TOKENS)]
    is_varlen = model.config._attn_implementation == VARLEN
    ids = torch.tensor([row], device=model.device)
    inputs = dict(joined([row], model.device)) if is_varlen else {}
    inputs.pop("input_ids", None)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids)
    embeddings.requires_grad_()
    with torch.enable_grad():
        logits: torch.Tensor = model(**inputs, inputs_embeds=embeddings, use_cache=False).logits
        weighted = logits.float() * torch.linspace(-1, 1, logits.shape[-1], device=logits.device)
        (gradients,) = torch.autograd.grad(weighted.sum(), embeddings)
    return {"logits": logits.detach().float(), "gradients": gradients.float()}


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[Callable[[], None]]:
    """After the block, the model's modules and what defines them are as before, unless the block calls what it gets."""
    kept = False

    def keep() -> None:
        nonlocal kept
        kept = True

    modules = {id(each): each for each in model.modules()}
    names = {type(each).__module__ for each in modules.values()}
    owners: list[Any] = [*modules.values(), *(sys.modules[name] for name in names)]
    before = [dict(vars(owner)) for owner in owners]
    try:
        yield keep
    finally:
        if not kept:
            for owner, fields in zip(owners, before, strict=True):
                for name in set(vars(owner)) - set(fields):
                    del vars(owner)[name]
                vars(owner).update(fields)
