"""W8A8 of compressed-tensors for vLLM and transformers: weight int8, weight_scale in the model's dtype.

Each row of a linear layer's weight has one scale. Activations are quantized at inference, with one scale per token.
"""

from typing import TYPE_CHECKING, Any

from edgetune_jobs.models.weights import OUTPUT_HEAD, StoredTensor
from edgetune_jobs.tensors.formats.int8_encoder import Int8Scheme
from edgetune_jobs.tensors.merged_rows import not_finite
from edgetune_jobs.tensors.safetensors_plan import PlannedTensor

if TYPE_CHECKING:
    import torch

_LEVELS = 127
# The release of compressed-tensors with this layout.
_LAYOUT_VERSION = "0.20.0"


def quantization_config() -> dict[str, Any]:
    """quantization_config in config.json, as from compressed-tensors: int8 weights per row, activations per token."""
    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None}
    group = {
        "targets": ["Linear"],
        "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
        "output_activations": None,
        "format": "int-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "version": _LAYOUT_VERSION,
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [OUTPUT_HEAD],
        "kv_cache_scheme": None,
    }


def quantize_rows(name: str, rows: "torch.Tensor", out: "torch.Tensor") -> "torch.Tensor":
    """Quantize each row: s = max|x| / 127 rounded to the dtype of the rows, q = clamp(round(x / s), -127, 127).

    Args:
        name: the weight's name in messages.
        rows: [rows, inputs] in float32, float16 or bfloat16; not changed.
        out: receives q, int8 [rows, inputs].

    Returns:
        s, [rows, 1] in the dtype of `rows`.

    Raises:
        InvalidInput: a value is not finite.
    """
    values = rows.float()
    scales = (values.abs().amax(dim=1, keepdim=True) / _LEVELS).to(rows.dtype)
    if not scales.isfinite().all():
        raise not_finite(name)
    # Rows of zeros, or of values too small for a scale, become zeros with any scale except zero.
    scales[scales == 0] = 1
    out.copy_((values / scales.float()).round_().clamp_(-_LEVELS, _LEVELS))
    return scales


def _plan_tail(weight: StoredTensor, dtype: str) -> tuple[PlannedTensor, ...]:
    return (PlannedTensor(f"{weight.name}_scale", dtype, (weight.rows, 1)),)


SCHEME = Int8Scheme(quantize_rows, _plan_tail)
