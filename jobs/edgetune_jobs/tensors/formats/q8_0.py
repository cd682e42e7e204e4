"""Q8_0 of GGUF: blocks of 32 numbers as 8-bit integers with one float16 scale."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK = 32
BLOCK_BYTES = 34


def row_bytes(columns: int) -> int:
    """Bytes of a row of so many numbers, a multiple of 32."""
    return columns // BLOCK * BLOCK_BYTES


def quantize(rows: "torch.Tensor") -> "torch.Tensor | None":
    """Blocks of rows, bit for bit those of gguf.quants.quantize.

    Args:
        rows: [rows, columns], floating point; columns a multiple of 32.

    Returns:
        [rows, columns / 32 * 34], uint8; None if a number is not finite, or too large for a scale in float16.
    """
    import torch

    blocks = rows.float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True) / 127
    halves = scales.half()
    if not torch.isfinite(halves).all():
        return None
    scaled = blocks * torch.where(scales == 0, 0.0, 1 / scales)
    # Halves are rounded away from zero, unlike torch.round.
    magnitudes = scaled.abs()
    floors = magnitudes.floor()
    rounded = magnitudes.sub_(floors).mul_(2).floor_().add_(floors).copysign_(scaled)
    packed = torch.empty((len(blocks), BLOCK_BYTES), dtype=torch.uint8)
    packed[:, :2] = halves.view(torch.uint8)
    packed[:, 2:] = rounded.to(torch.int8).view(torch.uint8)
    return packed.reshape(len(rows), -1)
