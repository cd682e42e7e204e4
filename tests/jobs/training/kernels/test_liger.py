"""Kernels of Liger are used where they compute what the model computes, and are put back where they do not."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from edgetune_contract.training import Kernels, Layout, TrainingSpec
from edgetune_jobs.training.kernels.attention import arrange, joined
from edgetune_jobs.training.kernels.liger import try_kernels, use_liger
from support.edge_models import make_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama."""
    return make_model(tmp_path_factory.mktemp("bases") / "llama", "llama")


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(**joined([list(range(3, 40))], model.device), use_cache=False).logits
    return found


def fused(self: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


def with_offset(self: Any, x: torch.Tensor) -> torch.Tensor:
    """The norm of another family of models."""
    return torch.nn.functional.rms_norm(x, self.weight.shape, 1 + self.weight, self.variance_epsilon)


def overflowing(self: Any, x: torch.Tensor) -> torch.Tensor:
    return fused(self, x) * torch.inf


class _NormWithWrongGradients(torch.autograd.Function):  # type: ignore[misc] # torch does not type it
    """The norm, with a gradient of the wrong sign that takes the root mean square for a constant."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
        context.save_for_backward(weight, scale)
        return x * scale * weight

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        weight, scale = context.saved_tensors
        return -gradients[0] * weight * scale, None, None


def with_wrong_gradients(self: Any, x: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = _NormWithWrongGradients.apply(x, self.weight, self.variance_epsilon)
    return output


def failing(_self: Any, _x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no such kernel")


def replacing(model: PreTrainedModel, norm: Callable[..., torch.Tensor]) -> Callable[[], None]:
    """Replaces the norms of a model and a name in the module of transformers, as Liger does."""

    def replace() -> None:
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.__dict__["forward"] = MethodType(norm, module)
        vars(sys.modules[type(model).__module__])["LlamaRMSNorm"] = norm

    return replace


@pytest.mark.parametrize("layout", [Layout.PADDED, Layout.PADDING_FREE])
def test_kernels_that_compute_the_same_stay(base: Path, layout: Layout) -> None:
    model = load(base)
    assert arrange(TrainingSpec(layout=layout), model).layout is layout
    before, defined = logits(model), vars(sys.modules[type(model).__module__])
    original = defined["LlamaRMSNorm"]
    try:
        assert try_kernels(model, replacing(model, fused)) is None
        assert defined["LlamaRMSNorm"] is fused
    finally:
        defined["LlamaRMSNorm"] = original
    assert model.model.norm.forward.__func__ is fused
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("norm", "problem"),
    [
        (with_offset, r"change the logits of LlamaForCausalLM by \d+%"),
        (overflowing, r"change the logits of LlamaForCausalLM to numbers that are not finite"),
        (with_wrong_gradients, r"change the gradients of LlamaForCausalLM by \d+%"),
        (failing, r"fail for LlamaForCausalLM \(no such kernel\)"),
    ],
)
def test_kernels_that_compute_something_else_or_fail_are_put_back(
    base: Path, norm: Callable[..., torch.Tensor], problem: str
) -> None:
    model = load(base)
    before, original = logits(model), vars(sys.modules[type(model).__module__])["LlamaRMSNorm"]

    found = try_kernels(model, replacing(model, norm))

    assert re.search(problem, found or "")
    assert torch.equal(logits(model), before)
    assert vars(sys.modules[type(model).__module__])["LlamaRMSNorm"] is original


def test_kernels_of_a_model_whose_logits_are_not_finite_are_not_blamed(base: Path) -> None:
    model = load(base)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))

    found = try_kernels(model, replacing(model, fused))

    assert found == "LlamaForCausalLM has logits that are not finite, with which Liger's kernels cannot be checked"
    assert "forward" not in vars(model.model.norm)


def test_without_a_gpu_a_model_is_trained_with_torch_and_a_warning(base: Path) -> None:
    model = load(base)

    assert use_liger(Kernels.TORCH, model) == (Kernels.TORCH, "")
    used, warning = use_liger(Kernels.LIGER, model)

    assert used is Kernels.TORCH
    assert warning == "spec.training.kernels: Liger requires a GPU, and the model was trained with Torch"
