"""A base model with its adapter, unmerged for inference or merged in memory, by peft."""

import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_contract.spec import MergeBase
from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.models import loading
from edgetune_jobs.models.adapters import adapter_files, adapter_layers
from edgetune_jobs.models.folder import LocalModelFolder
from edgetune_jobs.models.weights import TORCH_DTYPES, StoredTensor, read_tensors
from edgetune_jobs.wording import count

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_tuned(base: Path, adapter: Path, merge_base: MergeBase, device: "torch.device") -> "PeftModel":
    """The base model with its unmerged adapter for inference, in the base model's dtype of training.

    For AsTrained and a QLoRA adapter, the base weights have the values of training: quantized to NF4, dequantized to
    16 or 32 bits. The results are the same as those of 4-bit layers, which dequantize their weights in every pass. On a
    CPU, float16 finally becomes float32: see `loading.widen_float16`.

    Raises:
        InvalidInput: base model or adapter cannot be loaded, or do not match.
    """
    tuned = _load_tuned(base, adapter, merge_base, device, adapter_files.read_record(adapter).base_dtype)
    loading.widen_float16(tuned.get_base_model())
    return tuned


def merge_adapter(base: Path, adapter: Path, merge_base: MergeBase, device: "torch.device") -> "PreTrainedModel":
    """The base model with the adapter merged into its weights, in the dtype of `merged_dtype`.

    Raises:
        InvalidInput: base model or adapter cannot be loaded, do not match, or merged weights are not finite.
    """
    stored = read_tensors(LocalModelFolder(base, BASE_FIELD))
    dtype = merged_dtype(adapter_files.read_record(adapter).base_dtype, stored)
    tuned = _load_tuned(base, adapter, merge_base, device, dtype)
    layers = {name: module for name, module in tuned.get_base_model().named_modules() if hasattr(module, "base_layer")}
    before = {name: _checksum(module.base_layer.weight) for name, module in layers.items()}
    try:
        merged = tuned.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise InvalidInput(f"cannot merge the adapter: {error}") from error
    check_merged([name for name in layers if _checksum(merged.get_submodule(name).weight) == before[name]], len(layers))
    return merged


def check_merged(unchanged: Collection[str], layers: int) -> tuple[str, ...]:
    """Check that merging changed a model.

    Args:
        unchanged: layers with an adapter whose merged weights equal the base's.
        layers: number of layers with an adapter.

    Returns:
        A warning about unchanged layers.

    Raises:
        InvalidInput: all are unchanged.
    """
    if layers and len(unchanged) == layers:
        raise InvalidInput(
            f"nothing was merged: the merged weights of all {count(layers, 'layer')} with an adapter equal the base's, "
            "because the adapter adds less than their dtype represents; train longer or with a higher "
            "spec.training.learningRate or spec.lora.alpha"
        )
    if not unchanged:
        return ()
    return (f"merging changed nothing in {len(unchanged)} of the {layers} layers with an adapter: {min(unchanged)}",)


def merged_dtype(trained_in: str, tensors: Sequence[StoredTensor]) -> str:
    """torch's name of the dtype of a merged model.

    It is the base model's stored dtype if that has 16 bits and NF4 quantization then starts from the same values as in
    training: float32 represents both 16-bit dtypes exactly, and float16 represents bfloat16 weights except some below
    0.00001. bfloat16 does not represent float16 exactly, so a base that training rounded to bfloat16 keeps it.

    Args:
        trained_in: the base model's dtype in training, by torch's name.
        tensors: the base model's stored tensors.
    """
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.bytes
    stored = TORCH_DTYPES.get(max(sizes, key=sizes.__getitem__, default=""))
    is_kept = stored == "bfloat16" or (stored == "float16" and trained_in == "float32")
    return stored if stored and is_kept else trained_in


def _load_tuned(base: Path, adapter: Path, merge_base: MergeBase, device: "torch.device", dtype: str) -> "PeftModel":
    import torch

    record = adapter_files.read_record(adapter)
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


def _checksum(weight: "torch.Tensor") -> int:
    import torch

    return zlib.crc32(weight.detach().cpu().contiguous().view(torch.uint8).numpy())


def _load_adapter(model: "PreTrainedModel", adapter: Path) -> "PeftModel":
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # _check_all_used refuses missing keys; peft only warns.
            warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)
            return PeftModel.from_pretrained(model, str(adapter), is_trainable=False).eval()
    except KeyError as error:
        raise InvalidInput(f"the adapter does not match the base model: missing tensor {error.args[0]}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInput(f"cannot load the adapter onto the base model: {error}") from error


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
    """Refuse unexpected and missing tensors: peft only warns, and initializes missing ones randomly."""
    from peft import get_peft_model_state_dict

    stored = set(adapter_layers.read_adapter_weights(adapter))
    used = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
    adapter_layers.refuse_first(stored - used, "unexpected tensor")
    adapter_layers.refuse_first(used - stored, "missing tensor")
