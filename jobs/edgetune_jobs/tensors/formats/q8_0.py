"""Q8_0 of GGUF: blocks of 32 int8 values with one float16 scale."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK = 32
BLOCK_BYTES = 34


def row_bytes(columns: int) -> int:
    """Size in bytes of a row with `columns` values, a multiple of 32."""
    return columns // BLOCK * BLOCK_BYTES


def quantize(rows: "torch.Tensor") -> "torch.Tensor | None":
    """Quantize rows: d = max|x| / 127 and q = round(x / d) per block; bitwise as gguf.quants.quantize.

    Args:
        rows: floating point [rows, columns]; columns is a multiple of 32.

    Returns:
        uint8 [rows, columns / 32 * 34], each block with d as float16, then q as int8; None if a value is not finite,
        or d is too large for float16.
    """
    import torch

    blocks = rows.float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True) / 127
    halves = scales.half()
    if not torch.isfinite(halves).all():
        return None
    scaled = blocks * torch.where(scales == 0, 0.0, 1 / scales)
    # Round half away from zero; torch.round rounds half to even.
    magnitudes = scaled.abs()
    floors = magnitudes.floor()
    rounded = magnitudes.sub_(floors).mul_(2).floor_().add_(floors).copysign_(scaled)
    packed = torch.empty((len(blocks), BLOCK_BYTES), dtype=torch.uint8)
    packed[:, :2] = halves.view(torch.uint8)
    packed[:, 2:] = rounded.to(torch.int8).view(torch.uint8)
    return packed.reshape(len(rows), -1)
