"""The INT8 arithmetic: how rows of a weight become int8 and scales, in LLM.int8, W8A8 and Q8_0.

LLM.int8    one scale per row, float32; from float16           bitsandbytes
W8A8        one scale per row, in the dtype of the rows        compressed-tensors
Q8_0        one scale per block of 32 values, float16          GGUF
"""

from typing import TYPE_CHECKING

from edgetune_jobs.errors import HOW_TO_TRAIN_SMALLER_WEIGHTS, InvalidInput
from edgetune_jobs.tensors.merged_rows import not_finite
from edgetune_jobs.tensors.scratch_memory import cached_rows, scratch

if TYPE_CHECKING:
    import torch

FLOAT16_MAX = 65504.0
Q8_0_BLOCK = 32
_Q8_0_BLOCK_BYTES = 34
_LEVELS = 127


def quantize_llm_int8(name: str, rows: "torch.Tensor", out: "torch.Tensor") -> "torch.Tensor":
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


def quantize_w8a8(name: str, rows: "torch.Tensor", out: "torch.Tensor") -> "torch.Tensor":
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


def q8_0_row_bytes(columns: int) -> int:
    """Size in bytes of a row with `columns` values, a multiple of 32."""
    return columns // Q8_0_BLOCK * _Q8_0_BLOCK_BYTES


def quantize_q8_0(rows: "torch.Tensor") -> "torch.Tensor | None":
    """Quantize rows: d = max|x| / 127 and q = round(x / d) per block; bitwise as gguf.quants.quantize.

    Args:
        rows: floating point [rows, columns]; columns is a multiple of 32.

    Returns:
        uint8 [rows, columns / 32 * 34], each block with d as float16, then q as int8; None if a value is not finite,
        or d is too large for float16.
    """
    import torch

    blocks = rows.float().reshape(-1, Q8_0_BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True) / _LEVELS
    halves = scales.half()
    if not torch.isfinite(halves).all():
        return None
    scaled = blocks * torch.where(scales == 0, 0.0, 1 / scales)
    # Round half away from zero; torch.round rounds half to even.
    magnitudes = scaled.abs()
    floors = magnitudes.floor()
    rounded = magnitudes.sub_(floors).mul_(2).floor_().add_(floors).copysign_(scaled)
    packed = torch.empty((len(blocks), _Q8_0_BLOCK_BYTES), dtype=torch.uint8)
    packed[:, :2] = halves.view(torch.uint8)
    packed[:, 2:] = rounded.to(torch.int8).view(torch.uint8)
    return packed.reshape(len(rows), -1)
