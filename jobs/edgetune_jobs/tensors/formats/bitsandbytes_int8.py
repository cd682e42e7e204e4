"""INT8 of bitsandbytes (LLM.int8) for from_pretrained: weight int8, SCB float32, weight_format uint8."""

from typing import Any

from edgetune_jobs.models.weights import StoredTensor
from edgetune_jobs.tensors.formats.int8_arithmetic import quantize_llm_int8
from edgetune_jobs.tensors.formats.int8_encoder import Int8Scheme
from edgetune_jobs.tensors.safetensors_plan import PlannedTensor

ADDED = (".SCB", ".weight_format")
"""Ends of the names of the tensors that the format adds."""

# weight_format 0: row-major, not reordered for a GPU.
_ROW_MAJOR = b"\0"


def quantization_config(outlier_threshold: float) -> dict[str, Any]:
    """quantization_config in config.json, as from BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=…)."""
    return {
        "_load_in_4bit": False,
        "_load_in_8bit": True,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": outlier_threshold,
        "load_in_4bit": False,
        "load_in_8bit": True,
        "quant_method": "bitsandbytes",
    }


def _plan_tail(weight: StoredTensor, _dtype: str) -> tuple[PlannedTensor, ...]:
    layer = weight.name.removesuffix("weight")
    return PlannedTensor(f"{layer}SCB", "F32", weight.shape[:1]), PlannedTensor(f"{layer}weight_format", "U8", ())


SCHEME = Int8Scheme(quantize_llm_int8, _plan_tail, (_ROW_MAJOR,))
