"""Fused LoRA layers have the outputs and gradients of peft's, and keep less for the backward pass."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model

from edgetune_jobs.training.kernels.low_rank import add_low_rank, fuse
from edgetune_jobs.training.memory.activations import SavedBytes
from edgetune_jobs.training.recipe import cast_adapter_to_float32

ROWS, INPUTS, OUTPUTS, RANK = (2, 9), 64, 96, 4


class Layers(torch.nn.Module):  # type: ignore[misc, unused-ignore]  # untyped
    """Two layers of one input and one after them, as in a gated block."""

    def __init__(self, kind: type[torch.nn.Module]) -> None:
        super().__init__()
        self.gate, self.up = kind(INPUTS, OUTPUTS, bias=True), kind(INPUTS, OUTPUTS, bias=False)
        self.down = kind(OUTPUTS, INPUTS, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.gate(x) * self.up(x))


def adapted(kind: type[torch.nn.Module] = torch.nn.Linear, **options: Any) -> PeftModel:
    torch.manual_seed(1)
    layers: Any = Layers(kind).to("cpu")  # quantizes a Linear4bit
    layers.is_loaded_in_4bit = kind is Linear4bit
    config = LoraConfig(r=RANK, lora_alpha=8, target_modules=["gate", "up", "down"], **options)
    model = get_peft_model(layers, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def computed(
    model: PeftModel, dtype: torch.dtype, of_inputs: torch.dtype | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Output and gradients, of the input first."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(*ROWS, INPUTS, generator=generator).to(of_inputs or dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype) if dtype != torch.float32 else nullcontext():
        output = model(x)
    output.float().square().mean().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return output.detach(), [tensor.grad for tensor in (x, *trained) if tensor.grad is not None]


@pytest.mark.parametrize(
    ("dtype", "of_inputs"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        # Under autocast, a LayerNorm on a GPU gives float32.
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
@pytest.mark.parametrize("kind", [torch.nn.Linear, Linear4bit])
def test_outputs_and_gradients_are_those_of_peft(
    kind: type[torch.nn.Module], dtype: torch.dtype, of_inputs: torch.dtype
) -> None:
    theirs, their_gradients = computed(adapted(kind), dtype, of_inputs)
    model = adapted(kind)
    fuse(model)

    ours, gradients = computed(model, dtype, of_inputs)

    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=tolerance * theirs.abs().max().item())
    assert len(gradients) == 1 + 6 == len(their_gradients)
    for mine, other in zip(gradients, their_gradients, strict=True):
        assert mine.abs().max() > 0
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * other.abs().max().item())


def test_dropout_sets_the_same_inputs_to_zero_forward_and_backward() -> None:
    torch.manual_seed(3)
    x, result = torch.randn(5, INPUTS, requires_grad=True), torch.randn(5, OUTPUTS, requires_grad=True)
    reduce, expand = torch.randn(RANK, INPUTS, requires_grad=True), torch.randn(OUTPUTS, RANK, requires_grad=True)
    given = (result, x, reduce, expand)
    torch.manual_seed(4)
    output = add_low_rank(result.clone(), x, reduce, expand, 2.0, 0.25)
    gradients = torch.autograd.grad(output.square().sum(), given)

    torch.manual_seed(4)
    mask = torch.native_dropout(torch.ones_like(x), 0.25, True)[1]
    assert 0 < int(mask.sum()) < mask.numel()
    expected = result + 2 * (x * mask / 0.75) @ reduce.T @ expand.T

    torch.testing.assert_close(output, expected)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.square().sum(), given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.nn.Linear, Linear4bit])
def test_inference_computes_as_peft_does(kind: type[torch.nn.Module], dtype: torch.dtype) -> None:
    model = adapted(kind, lora_dropout=0.5).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(dtype)
    cast_adapter_to_float32(model)
    x = torch.randn(*ROWS, INPUTS, dtype=dtype, requires_grad=True)  # otherwise a Linear4bit packs its weights
    theirs = model(x)
    fuse(model)

    assert torch.equal(model(x), theirs)


def test_layers_of_other_kinds_are_left_to_peft() -> None:
    model = adapted(use_dora=True)
    before = {name: dict(module.lora_variant) for name, module in layers_of(model)}
    fuse(model)

    assert {name: dict(module.lora_variant) for name, module in layers_of(model)} == before


def layers_of(model: PeftModel) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_variant")]


def test_less_is_kept_for_the_backward_pass() -> None:
    kept = {}
    for is_fused in (False, True):
        model = adapted(lora_dropout=0.1)
        if is_fused:
            fuse(model)
        x = torch.randn(1, 512, INPUTS, requires_grad=True)
        saved = SavedBytes([])
        with saved.counting([], [*model.parameters(), x]):
            model(x)
        kept[is_fused] = saved.total

    # peft: inputs after dropout, and their masks as float32; fused: inputs of gate and up once (here the given ones),
    # of down, and masks of one byte.
    of_masks_and_inputs = 512 * (2 * INPUTS + OUTPUTS)
    assert kept[False] - kept[True] >= of_masks_and_inputs * 4
