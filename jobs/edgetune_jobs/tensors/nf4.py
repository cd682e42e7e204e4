"""Quantizes to NF4 and dequantizes, bitwise as bitsandbytes on a CPU but many times faster.

The formulas are those of QLoRA (arXiv:2305.14314) as implemented by bitsandbytes. A block is 64 consecutive values.
Each value is divided by the largest magnitude of its block (absmax) and rounded to the nearest of 16 codes. Double
quantization subtracts the mean of all absmax, and rounds the differences to 8 bits with one scale per 256 of them.
bitsandbytes searches the code of each value. This module looks up the upper 16 bits of a value, which determine the
code except for about one value in a hundred, and searches only those. It does not import bitsandbytes.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from edgetune_jobs.tensors.scratch_memory import scratch

if TYPE_CHECKING:
    import torch

BLOCK = 64
_SCALE_BLOCK = 256
_SMALLEST_SCALE = 1e-38
_LOOKUP_STEPS = 65535
_CODES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def block_scales(weight: "torch.Tensor") -> "torch.Tensor":
    """Largest magnitude of each block: float32 [blocks].

    Args:
        weight: flat tensor of whole blocks; fastest if its values as float32 fit into the CPU cache.
    """
    import torch

    magnitudes = scratch("magnitudes", tuple(weight.shape), torch.float32).copy_(weight).abs_()
    return magnitudes.view(-1, BLOCK).amax(1)


def round_scales(scales: "torch.Tensor", threads: int) -> "torch.Tensor":
    """Quantize block scales to 8 bits and dequantize them (double quantization): float32 [blocks].

    Args:
        scales: of all blocks of a weight, float32 [blocks].
        threads: number of torch threads for the mean, whose rounding depends on it; as bitsandbytes would have.
    """
    import torch

    used = torch.get_num_threads()
    torch.set_num_threads(threads)
    offset = scales.mean()
    torch.set_num_threads(used)
    centred = scales - offset
    count = centred.numel()
    padded = torch.nn.functional.pad(centred, (0, -count % _SCALE_BLOCK)).view(-1, _SCALE_BLOCK)
    largest = padded.abs().amax(1, keepdim=True)
    # bitsandbytes finds codes with a lookup table over 65,536 steps from -1 to 1.
    position = (
        (padded * (1.0 / largest) + 1).mul_(0.5 * _LOOKUP_STEPS).add_(0.5).floor_().nan_to_num_(0).to(torch.int32)
    )
    rounded = _scale_lookup().index_select(0, position.view(-1)).view_as(padded) * largest
    return rounded.view(-1)[:count] + offset


def round_blocks(weight: "torch.Tensor", scales: "torch.Tensor", rounded: "torch.Tensor", out: "torch.Tensor") -> None:
    """Quantize whole blocks to NF4 and dequantize them.

    Args:
        weight: flat tensor of whole blocks; fastest if its values as float32 fit into the CPU cache.
        scales: of its blocks, from `block_scales`.
        rounded: the same scales after `round_scales`.
        out: receives the result, with the shape and dtype of `weight`.
    """
    import torch

    inverse = 1.0 / scales.clamp(min=_SMALLEST_SCALE)
    blocks = weight.view(-1, BLOCK)
    scaled = torch.mul(blocks, inverse.unsqueeze(1), out=scratch("scaled", tuple(blocks.shape), torch.float32))
    values = _nearest(scaled.view(-1)).view_as(scaled)
    out.view(-1, BLOCK).copy_(values.mul_(rounded.unsqueeze(1)))


def _nearest(scaled: "torch.Tensor") -> "torch.Tensor":
    """The code nearest to each value: float32 [n]."""
    import numpy as np
    import torch

    codes, bounds, by_upper_half = _codes()
    shape = tuple(scaled.shape)
    numbers = scaled.numpy()
    upper = scratch("upper halves", shape, torch.int32)
    np.right_shift(numbers.view(np.uint32), 16, out=upper.numpy().view(np.uint32))
    values = torch.index_select(by_upper_half, 0, upper, out=scratch("values", shape, torch.float32))
    found = values.numpy()
    undecided = np.flatnonzero(np.isnan(found, out=scratch("undecided", shape, torch.bool).numpy()))
    found[undecided] = codes[np.searchsorted(bounds, numbers[undecided])]
    return values


@cache
def _codes() -> tuple[Any, Any, "torch.Tensor"]:
    """The 16 codes, the 15 bounds between them, and the code for each upper 16 bits of a float32.

    Codes and bounds are numpy float32. The last is float32 [65536]; it is NaN where the values with these upper bits
    have different codes.
    """
    import numpy as np
    import torch

    codes = np.array(_CODES, dtype=np.float32)
    bounds = (codes[1:] + codes[:-1]) / 2
    upper = np.arange(2**16, dtype=np.uint32) << 16
    first, last = (codes[np.searchsorted(bounds, ends.view(np.float32))] for ends in (upper, upper | 0xFFFF))
    return codes, bounds, torch.from_numpy(np.where(first == last, first, np.float32("nan")))


@cache
def _scale_lookup() -> "torch.Tensor":
    """The lookup table of bitsandbytes: for each step, the nearest of its 256 dynamic 8-bit codes, float32 [65536]."""
    import torch

    codes = _dynamic_codes()
    grid = torch.arange(_LOOKUP_STEPS + 1, dtype=torch.float32) / _LOOKUP_STEPS * 2 - 1
    return codes[torch.bucketize(grid, (codes[1:] + codes[:-1]) / 2)]


def _dynamic_codes() -> "torch.Tensor":
    """The signed dynamic 8-bit codes of bitsandbytes, sorted: float32 [256]."""
    import torch

    values = [0.0, 1.0]
    for exponent in range(7):
        bounds = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = ((bounds[:-1] + bounds[1:]) / 2.0) * 10 ** (exponent - 6)
        values += means.tolist()
        values += (-means).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)
