"""Steps below a training: NF4 on the GPU and on the CPU, attention of joined examples, and optimizers."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgetune_contract.training import Precision

if TYPE_CHECKING:
    import torch

    from bench.gpu_check.inputs import Inputs
    from bench.gpu_check.runner import Figures

GIB = 2**30
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "paged_adamw_8bit")
_RANK = 16
_TIMED = 10
# Shares of a micro-batch of 8,192 tokens: three quarters of it would be padding.
_EXAMPLES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32)


def write_weights(inputs: "Inputs") -> "Figures":
    """The random base, drawn on the device and written to a folder."""
    began = time.monotonic()
    size = sum(file.stat().st_size for file in inputs.base.iterdir())
    return {"gigabytes": round(size / 1e9, 3), "writeSeconds": round(time.monotonic() - began, 2)}


def nf4_loading(inputs: "Inputs") -> "Figures":
    """Time and peak memory of loading the base as QLoRA does."""
    from edgetune_jobs.models import loading

    dtype = loading.dtype_of(loading.resolve_precision(Precision.AUTO, inputs.device))
    began = time.monotonic()
    model = loading.load_quantized_base(inputs.base, dtype, inputs.device)
    inputs.synchronize()
    seconds = time.monotonic() - began
    return {
        "loadSeconds": round(seconds, 2),
        "loadedGiB": round(loading.used_memory_bytes(inputs.device) / GIB, 3),
        "peakGiB": round(loading.peak_memory_bytes(inputs.device) / GIB, 3),
        "parameters": sum(each.numel() for each in model.parameters()),
    }


def nf4_codes(inputs: "Inputs") -> "Figures":
    """How many codes and scales of the CPU's NF4 differ from the device's, for each shape of a block's layers.

    Training quantizes on the GPU, and merge on a CPU: merge.base: AsTrained is exact only if they agree.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    generator = torch.Generator().manual_seed(1)
    largest = 0.0
    compared: Figures = dict.fromkeys(("weights", "codes", "scales", "offsets", "values"), 0)
    for size in sorted(set(inputs.shape.linears.values())):
        weight = (torch.randn(size, generator=generator) * 0.02).to(torch.bfloat16)
        found = []
        for device in (torch.device("cpu"), inputs.device):
            data, state = quantize_4bit(weight.to(device), compress_statistics=True, quant_type="nf4")
            parts = (data, state.absmax, state.offset.reshape(1), dequantize_4bit(data, state))
            found.append([part.cpu() for part in parts])
        ours, theirs = (values.float() for _, _, _, values in found)
        largest = max(largest, float(((ours - theirs).abs() / theirs.abs().clamp_min(1e-9)).max()))
        differing = [int((ours != theirs).sum()) for ours, theirs in zip(*found, strict=True)]
        compared["weights"] += weight.numel()
        for name, count in zip(("codes", "scales", "offsets", "values"), differing, strict=True):
            compared[name] += count
    return {
        "weights": compared["weights"],
        **{f"differing{name.title()}": compared[name] for name in ("codes", "scales", "offsets", "values")},
        "largestRelativeDifference": largest,
        "isBitwiseEqual": not any(compared[name] for name in ("codes", "scales", "offsets", "values")),
    }


def varlen(inputs: "Inputs") -> "Figures":
    """Error of varlen_attention and SDPA against float64; its time, and that of padded rows in transformers, with their
    backward passes.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from edgetune_jobs.models import loading
    from edgetune_jobs.training.kernels.attention import varlen_attention

    shape, total = inputs.shape, max(128, 8192 // inputs.scale)
    lengths = [max(1, round(total * share)) for share in _EXAMPLES]
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=inputs.device)
    dtype = loading.dtype_of(loading.resolve_precision(Precision.AUTO, inputs.device))
    generator = torch.Generator(inputs.device).manual_seed(2)

    def draw(rows: int, heads: int, tokens: int) -> "torch.Tensor":
        size = (rows, heads, tokens, shape.head)
        values = torch.randn(size, generator=generator, device=inputs.device, dtype=torch.float32)
        return values.to(dtype).requires_grad_()

    heads = (shape.heads, shape.key_heads, shape.key_heads)
    query, key, value = (draw(1, count, sum(lengths)) for count in heads)
    padded_query, padded_key, padded_value = (draw(len(lengths), count, max(lengths)) for count in heads)
    keys = torch.arange(max(lengths), device=inputs.device)
    present = keys < torch.tensor(lengths, device=inputs.device)[:, None, None, None]
    mask = present & (keys[:, None] >= keys)

    def ours() -> "torch.Tensor":
        module, longest = torch.nn.Identity(), max(lengths)
        return varlen_attention(module, query, key, value, None, cu_seq_lens_q=bounds, max_length_q=longest)[0]

    layer = torch.nn.Identity()
    layer.num_key_value_groups = shape.heads // shape.key_heads

    def library() -> "torch.Tensor":
        return sdpa_attention_forward(layer, padded_query, padded_key, padded_value, mask)[0]

    given = [tensor.detach() for tensor in (query, key, value)]
    exact = _by_example(*(tensor.double() for tensor in given), bounds=bounds.tolist())
    own = _relative_error(ours().detach(), exact)
    sdpa = _relative_error(_by_example(*given, bounds=bounds.tolist()), exact)
    ours_seconds = _seconds(inputs, lambda: ours().float().sum().backward())
    library_seconds = _seconds(inputs, lambda: library().float().sum().backward())
    return {
        "varlenError": own,
        "sdpaError": sdpa,
        "errorRatio": round(own / sdpa, 3),
        "varlenMs": round(ours_seconds * 1000, 3),
        "paddedSdpaMs": round(library_seconds * 1000, 3),
    }


def optimizer_steps(inputs: "Inputs") -> "Figures":
    """Milliseconds of a step of each optimizer, for an adapter of rank 16 on all linear layers."""
    import torch
    from transformers import Trainer, TrainingArguments

    sizes = [
        size for outputs, features in inputs.shape.linears.values() for size in ((_RANK, features), (outputs, _RANK))
    ] * inputs.shape.layers
    figures: Figures = {"tensors": len(sizes)}
    for name in OPTIMIZERS:
        parameters = [torch.nn.Parameter(torch.zeros(size, device=inputs.device)) for size in sizes]
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        arguments = TrainingArguments(output_dir=str(inputs.folder / "optimizer"), optim=name, report_to="none")
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = kind(parameters, **options)
        figures[f"{name}Ms"] = round(_seconds(inputs, optimizer.step) * 1000, 3)
    return figures


def _by_example(
    query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", *, bounds: Sequence[int]
) -> "torch.Tensor":
    """SDPA of each example alone: [1, tokens, heads, head size], as varlen_attention returns it."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    parts = []
    for begin, end in pairwise(bounds):
        one = [tensor[:, :, begin:end] for tensor in (query, key, value)]
        parts.append(scaled_dot_product_attention(one[0], one[1], one[2], is_causal=True, enable_gqa=True))
    return torch.cat(parts, dim=2).transpose(1, 2)


def _relative_error(found: "torch.Tensor", exact: "torch.Tensor") -> float:
    """Root mean square of the difference, relative to that of the exact values."""
    return float((found.double() - exact).norm() / exact.norm())


def _seconds(inputs: "Inputs", work: Callable[[], Any]) -> float:
    """Mean time of a call, after two that are not timed."""
    for _ in range(2):
        work()
    inputs.synchronize()
    began = time.monotonic()
    for _ in range(_TIMED):
        work()
    inputs.synchronize()
    return (time.monotonic() - began) / _TIMED
