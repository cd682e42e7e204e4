"""NF4 with double quantization and back, as bitsandbytes computes it on a CPU, bit for bit, and many times faster.

A block is 64 numbers in a row. Each is divided by its block's largest magnitude and rounded to one of 16 codes; the
magnitudes themselves are rounded to 8 bits, 256 of them sharing a scale, after their mean was taken off. bitsandbytes
searches the codes number by number. Here a number's upper 16 bits are looked up, which decide all but about one in a
hundred; only these are searched for. Nothing of bitsandbytes needs to be imported.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from edgetune_jobs.tensors.scratch import scratch

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
    """Largest magnitude of each block of a flat tensor of whole blocks: float32 [blocks].

    The tensor is best so small that its float32 fit the cache.
    """
    import torch

    magnitudes = scratch("magnitudes", tuple(weight.shape), torch.float32).copy_(weight).abs_()
    return magnitudes.view(-1, BLOCK).amax(1)


def round_scales(scales: "torch.Tensor", threads: int) -> "torch.Tensor":
    """The scales as double quantization leaves them: to 8 bits and back.

    Args:
        scales: of all blocks of a weight.
        threads: of torch when bitsandbytes is asked; the mean of many numbers depends on it.
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
    # bitsandbytes looks a number up on a grid of 65,536 steps from -1 to 1.
    position = (
        (padded * (1.0 / largest) + 1).mul_(0.5 * _LOOKUP_STEPS).add_(0.5).floor_().nan_to_num_(0).to(torch.int32)
    )
    rounded = _scale_lookup().index_select(0, position.view(-1)).view_as(padded) * largest
    return rounded.view(-1)[:count] + offset


def round_blocks(weight: "torch.Tensor", scales: "torch.Tensor", rounded: "torch.Tensor", out: "torch.Tensor") -> None:
    """Round whole blocks of a flat tensor to NF4 and back, into `out` of the same size and format.

    Args:
        weight: a multiple of 64 numbers; best so few that their float32 fit the cache.
        scales: of its blocks, as `block_scales` gives them.
        rounded: the same after `round_scales`.
        out: where to.
    """
    import torch

    inverse = 1.0 / scales.clamp(min=_SMALLEST_SCALE)
    blocks = weight.view(-1, BLOCK)
    scaled = torch.mul(blocks, inverse.unsqueeze(1), out=scratch("scaled", tuple(blocks.shape), torch.float32))
    values = _nearest(scaled.view(-1)).view_as(scaled)
    out.view(-1, BLOCK).copy_(values.mul_(rounded.unsqueeze(1)))


def _nearest(scaled: "torch.Tensor") -> "torch.Tensor":
    """The code next to each number: float32 of the same shape [n]."""
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
    """The 16 codes and the 15 bounds between them, as numpy float32; the code by the upper 16 bits of a float32.

    The last is float32 [65536]: NaN for the upper halves that numbers on both sides of a bound have.
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
    """Value of each step of bitsandbytes' grid: float32 [65536], nearest of its 256 dynamic 8-bit codes."""
    import torch

    codes = _dynamic_codes()
    grid = torch.arange(_LOOKUP_STEPS + 1, dtype=torch.float32) / _LOOKUP_STEPS * 2 - 1
    return codes[torch.bucketize(grid, (codes[1:] + codes[:-1]) / 2)]


def _dynamic_codes() -> "torch.Tensor":
    """bitsandbytes' signed dynamic 8-bit codes, sorted: float32 [256]."""
    import torch

    values = [0.0, 1.0]
    for exponent in range(7):
        bounds = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = ((bounds[:-1] + bounds[1:]) / 2.0) * 10 ** (exponent - 6)
        values += means.tolist()
        values += (-means).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)
