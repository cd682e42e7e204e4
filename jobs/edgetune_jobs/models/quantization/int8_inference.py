"""The forward pass of LLM.int8 on a CPU: bitwise that of bitsandbytes, in two thirds of the time.

bitsandbytes goes over whole tensors step by step, which do not fit into the processor's cache.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# float32 numbers: half of a core's cache, which is usually 1 MiB.
_PART = 2**17
_LEVELS = 127.0
# 1 / 127², as bitsandbytes rounds it.
_SCALE = 6.200124e-05


def replace_forward(model: "PreTrainedModel") -> None:
    """Replace the forward pass of a model's linear layers in INT8, for inference on a CPU."""
    from bitsandbytes.nn import Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            module.forward = partial(_forward, module)


def _forward(layer: Any, inputs: "torch.Tensor") -> "torch.Tensor":
    if layer.weight.CB is not None:
        layer.init_8bit_state()
    state = layer.state
    outputs = multiply(inputs.flatten(0, -2), state.CB, state.SCB, layer.bias, state.threshold)
    return outputs.unflatten(0, inputs.shape[:-1])


def multiply(
    rows: "torch.Tensor", weight: "torch.Tensor", scales: "torch.Tensor", bias: "torch.Tensor | None", threshold: float
) -> "torch.Tensor":
    """rows · weightᵀ + bias: columns of `rows` with an outlier in the dtype of `rows`, the others in INT8.

    T. Dettmers, M. Lewis, Y. Belkada, L. Zettlemoyer: LLM.int8(), NeurIPS 2022, section 3.

    Args:
        rows: float16, bfloat16 or float32 [rows, inputs].
        weight: int8 [outputs, inputs].
        scales: largest magnitude of each row of the weight before it was quantized, float32 [outputs].
        bias: [outputs], or None.
        threshold: smallest magnitude of an outlier; 0 if there are none.
    """
    import torch

    outliers = torch.empty(0, dtype=torch.int64)
    if threshold > 0:
        outliers = (rows.abs().amax(dim=0).half() >= threshold).nonzero().view(-1)
    quantized = torch.empty(rows.shape, dtype=torch.int8)
    largest = torch.empty(len(rows), 1)
    for part in _parts(rows):
        values = rows[part].float().half().float()
        columns = values[:, outliers]
        values[:, outliers] = columns.masked_fill_(columns.abs() >= threshold, 0)
        torch.amax(values.abs(), dim=1, keepdim=True, out=largest[part])
        quantized[part] = values.mul_(_LEVELS / largest[part]).round_()
    if len(rows) > 1:  # of a single row, only outliers are in these columns
        quantized[:, outliers] = 0
    products = torch.ops.bitsandbytes.int8_linear_matmul(quantized, weight)
    output = torch.empty(products.shape, dtype=rows.dtype)
    for part in _parts(products):
        values = (largest[part] * scales).mul_(products[part]).mul_(_SCALE)
        output[part] = values if bias is None else values.add_(bias.to(rows.dtype))
    if not len(outliers):
        return output
    columns = torch.ops.bitsandbytes.int8_vectorwise_dequant(weight[:, outliers].contiguous(), scales)
    return output.addmm(rows[:, outliers], columns.to(rows.dtype).t())


def _parts(rows: "torch.Tensor") -> Iterator[slice]:
    count = max(1, _PART // rows.shape[1])
    return (slice(first, first + count) for first in range(0, len(rows), count))
