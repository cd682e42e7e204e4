"""INT8 of bitsandbytes (LLM.int8) for from_pretrained: weight int8, SCB float32, weight_format uint8."""

from typing import TYPE_CHECKING, Any

from edgetune_jobs.errors import HOW_TO_TRAIN_SMALLER_WEIGHTS, InvalidInput
from edgetune_jobs.models.weights import StoredTensor
from edgetune_jobs.tensors.formats.int8_encoder import Int8Scheme
from edgetune_jobs.tensors.safetensors_plan import PlannedTensor
from edgetune_jobs.tensors.scratch import cached_rows, scratch

if TYPE_CHECKING:
    import torch

FLOAT16_MAX = 65504.0
_LEVELS = 127.0
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


def quantize_rows(name: str, rows: "torch.Tensor", out: "torch.Tensor") -> "torch.Tensor":
    """Quantize each row: round(x · 127 / max|x|), with x in float16; bitwise as bitsandbytes' int8_vectorwise_quant.

    Args:
        name: the weight's name in messages.
        rows: [rows, inputs] in float32, float16 or bfloat16; not changed.
        out: receives the quantized rows, int8 [rows, inputs].

    Returns:
        max|x| of each row (SCB), float32 [rows].

    Raises:
        InvalidInput: a value is not finite or exceeds float16.
    """
    import torch

    scales = torch.empty(len(rows), dtype=torch.float32)
    for part in cached_rows(rows):
        shape = tuple(rows[part].shape)
        # Via float32: torch's conversion of bfloat16 to float16 is not vectorized.
        values = scratch("values", shape, torch.float32).copy_(rows[part])
        values.copy_(scratch("half", shape, torch.float16).copy_(values))
        magnitudes = torch.abs(values, out=scratch("magnitudes", shape, torch.float32))
        torch.amax(magnitudes, 1, out=scales[part])
        if not scales[part].max().item() <= FLOAT16_MAX:  # comparisons with NaN are false
            raise beyond_float16(name, rows[part].abs().max().item())
        out[part] = values.mul_((_LEVELS / scales[part]).unsqueeze(1)).round_()
    return scales


def beyond_float16(name: str, largest: float) -> InvalidInput:
    """The error about a weight that exceeds float16, which LLM.int8 quantizes from."""
    return InvalidInput(
        f"{name} has a value of magnitude {largest:g}, but LLM.int8 quantizes from float16, whose maximum is "
        f"{FLOAT16_MAX:g}; {HOW_TO_TRAIN_SMALLER_WEIGHTS}"
    )


def _plan_tail(weight: StoredTensor, _dtype: str) -> tuple[PlannedTensor, ...]:
    layer = weight.name.removesuffix("weight")
    return PlannedTensor(f"{layer}SCB", "F32", weight.shape[:1]), PlannedTensor(f"{layer}weight_format", "U8", ())


SCHEME = Int8Scheme(quantize_rows, _plan_tail, (_ROW_MAJOR,))
