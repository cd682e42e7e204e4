"""W8A8 in the layout of compressed-tensors, which vLLM and transformers read: weight int8, weight_scale.

Each row of a linear layer's weight has one scale; activations get one for each token while the model runs.
"""

from typing import TYPE_CHECKING, Any

from edgetune_jobs.models.weights import OUTPUT_HEAD, StoredTensor
from edgetune_jobs.tensors.formats.int8_encoder import Int8Scheme
from edgetune_jobs.tensors.merged_rows import not_finite
from edgetune_jobs.tensors.safetensors_plan import PlannedTensor

if TYPE_CHECKING:
    import torch

_LEVELS = 127
# The release of compressed-tensors whose layout this is.
_LAYOUT_VERSION = "0.20.0"


def quantization_config() -> dict[str, Any]:
    """What compressed-tensors writes into config.json for int8 weights by row and int8 activations by token."""
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
    """Each row in steps of its largest magnitude / 127, rounded to the dtype that the scale is kept in.

    Args:
        name: what messages call the weight.
        rows: [rows, inputs] in float32, float16 or bfloat16; they are left as they are.
        out: int8 [rows, inputs].

    Returns:
        The scales, [rows, 1] in the rows' dtype.

    Raises:
        InvalidInput: a weight is not finite.
    """
    values = rows.float()
    scales = (values.abs().amax(dim=1, keepdim=True) / _LEVELS).to(rows.dtype)
    if not scales.isfinite().all():
        raise not_finite(name)
    # Of zeros, or of numbers too small for a scale, nothing is left: any scale will do, but for zero.
    scales[scales == 0] = 1
    out.copy_((values / scales.float()).round_().clamp_(-_LEVELS, _LEVELS))
    return scales


def _plan_tail(weight: StoredTensor, dtype: str) -> tuple[PlannedTensor, ...]:
    return (PlannedTensor(f"{weight.name}_scale", dtype, (weight.rows, 1)),)


SCHEME = Int8Scheme(quantize_rows, _plan_tail)
