"""W8A8 of compressed-tensors for vLLM and transformers: weight int8, weight_scale in the model's dtype.

Each row of a linear layer's weight has one scale. Activations are quantized at inference, with one scale per token.
"""

from typing import Any

from edgetune_jobs.models.weights import OUTPUT_HEAD, StoredTensor
from edgetune_jobs.tensors.formats.int8_arithmetic import quantize_w8a8
from edgetune_jobs.tensors.formats.int8_encoder import Int8Scheme
from edgetune_jobs.tensors.safetensors_plan import PlannedTensor

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


def _plan_tail(weight: StoredTensor, dtype: str) -> tuple[PlannedTensor, ...]:
    return (PlannedTensor(f"{weight.name}_scale", dtype, (weight.rows, 1)),)


SCHEME = Int8Scheme(quantize_w8a8, _plan_tail)
