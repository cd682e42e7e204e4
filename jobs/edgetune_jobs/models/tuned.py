"""A base with its adapter: beside it to be run, or merged into its weights, by the libraries in memory."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_contract.spec import MergeBase
from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.models import adapter_layers, adapters, loading
from edgetune_jobs.models.folder import LocalModelFolder
from edgetune_jobs.models.weights import TORCH_DTYPES, StoredTensor, read_tensors

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_tuned(base: Path, adapter: Path, merge_base: MergeBase, device: "torch.device") -> "PeftModel":
    """Base with its adapter beside it, not merged, to be run: in the dtype that training held the base in.

    With AsTrained and an adapter of QLoRA, the base has the values that training saw: NF4 and back, held in 16 or 32
    bits. That computes the same numbers as the 4-bit layers do, which unpack their weights in every pass. On a CPU,
    float16 becomes float32 in the end: see `loading.widen_float16`.

    Raises:
        InvalidInput: base or adapter do not load, or do not fit each other.
    """
    tuned = _load_tuned(base, adapter, merge_base, device, adapters.read_record(adapter).base_dtype)
    loading.widen_float16(tuned.get_base_model())
    return tuned


def merge_adapter(base: Path, adapter: Path, merge_base: MergeBase, device: "torch.device") -> "PreTrainedModel":
    """Base with its adapter added to its weights, in the dtype that `merged_dtype` tells.

    Raises:
        InvalidInput: base or adapter do not load, do not fit each other, or give weights that are not finite.
    """
    stored = read_tensors(LocalModelFolder(base, BASE_FIELD))
    dtype = merged_dtype(adapters.read_record(adapter).base_dtype, stored)
    tuned = _load_tuned(base, adapter, merge_base, device, dtype)
    try:
        return tuned.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise InvalidInput(f"the adapter cannot be merged: {error}") from error


def merged_dtype(held: str, tensors: Sequence[StoredTensor]) -> str:
    """torch's name of the dtype of a merged model: the base's own if that has 16 bits, whatever has trained it.

    Rounding to NF4 then starts from the numbers from which it started in training: float32 holds all of both 16-bit
    formats, and float16 those of bfloat16, but for some below 0.00001. bfloat16 does not hold those of float16: what
    training has rounded to it stays so.

    Args:
        held: dtype that training held the base in.
        tensors: of the base.
    """
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.bytes
    stored = TORCH_DTYPES.get(max(sizes, key=sizes.__getitem__, default=""))
    is_kept = stored == "bfloat16" or (stored == "float16" and held == "float32")
    return stored if stored and is_kept else held


def _load_tuned(base: Path, adapter: Path, merge_base: MergeBase, device: "torch.device", dtype: str) -> "PeftModel":
    import torch

    record = adapters.read_record(adapter)
    model = loading.load_base(base, getattr(torch, dtype), device)
    if record.through_nf4(merge_base):
        loading.round_to_nf4(model)
    config = adapter_layers.read_adapter_config(adapter)
    is_plain = not adapter_layers.special_options(config)
    if is_plain:
        _check_plain_adapter(adapter, model)
    tuned = _load_adapter(model, adapter)
    if not is_plain:
        _check_all_used(adapter, tuned)
    return tuned


def _load_adapter(model: "PreTrainedModel", adapter: Path) -> "PeftModel":
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # _check_all_used refuses what peft only warns of.
            warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)
            return PeftModel.from_pretrained(model, str(adapter), is_trainable=False).eval()
    except KeyError as error:
        raise InvalidInput(f"the adapter does not fit the base: it lacks a tensor: {error.args[0]}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInput(f"the adapter does not load onto the base: {error}") from error


def _check_plain_adapter(adapter: Path, model: "PreTrainedModel") -> None:
    from torch import nn

    modules = dict(model.named_modules())
    linears = {
        name: (module.in_features, module.out_features)
        for name, module in modules.items()
        if isinstance(module, nn.Linear)
    }
    config, weights = adapter_layers.read_adapter_config(adapter), adapter_layers.read_adapter_weights(adapter)
    adapter_layers.check_layers(config, weights, linears, modules)


def _check_all_used(adapter: Path, tuned: "PeftModel") -> None:
    """Refuse tensors that peft passed over, and such that it filled with random numbers; it only warns of them."""
    from peft import get_peft_model_state_dict

    stored = set(adapter_layers.read_adapter_weights(adapter))
    used = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
    adapter_layers.refuse_first(stored - used, "has a tensor that belongs to no layer of the base")
    adapter_layers.refuse_first(used - stored, "lacks a tensor")
