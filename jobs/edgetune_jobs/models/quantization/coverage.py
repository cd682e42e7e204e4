"""The weights of a model that NF4 and bitsandbytes INT8 quantize, and their share of all weights."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetune_contract.spec import Method
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.wording import some

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

# transformers holds the experts of one layer in tensors [experts, outputs, inputs] of a module with this in its name.
_EXPERTS = "Experts"
_EXPERT_DIMENSIONS = 3
_PROBE = (8, 4, 3)
# transformers calls this layer of latent attention (DeepSeek) with four dimensions; bitsandbytes' INT8 takes three.
_FOUR_DIMENSIONAL = "kv_b_proj"
_LARGE_SHARE = 0.05
_MOST_KINDS = 4


@dataclass(frozen=True)
class Weight:
    """A weight of a model that can be quantized."""

    module: "nn.Module"
    attribute: str
    """Name of the parameter in its module."""

    name: str
    """Full name of the parameter."""

    @property
    def tensor(self) -> "torch.Tensor":
        """The parameter: [outputs, inputs], or [experts, outputs, inputs]."""
        found: torch.Tensor = getattr(self.module, self.attribute)
        return found


@dataclass(frozen=True)
class Coverage:
    """The part of a model's weights that is quantized, counted in numbers."""

    quantized: int
    total: int
    largest: int = 0
    """Numbers of the largest quantized weight, which is dequantized as a whole."""

    experts: int = 0
    """Numbers of the quantized experts, which stay dequantized until the backward pass."""

    largest_experts: int = 0
    """Numbers of the quantized experts of one layer."""

    left: tuple[str, ...] = ()
    """Classes of the modules in the blocks whose weights are not quantized and are a large part of the model."""

    @property
    def share(self) -> float:
        """Share of the weights' bytes before quantization that is quantized, 0 to 1."""
        return self.quantized / self.total if self.total else 0.0


def nf4_coverage(model: "PreTrainedModel") -> Coverage:
    """What QLoRA quantizes in a model that is not quantized yet."""
    return _cover(model, list(nf4_weights(model)))


def int8_coverage(model: "PreTrainedModel") -> Coverage:
    """What bitsandbytes INT8 quantizes in a model that is not quantized yet."""
    return _cover(model, [Weight(module, "weight", f"{name}.weight") for name, module in int8_linears(model)])


def nf4_weights(model: "PreTrainedModel") -> Iterator[Weight]:
    """The weights that QLoRA holds in NF4: of linear layers, also of subclasses, and of experts.

    The output head and tied layers are left out, as by bitsandbytes.
    """
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = _skipped(model)
    for name, module in model.named_modules():
        if not should_convert_module(name, skipped):
            continue
        if is_linear(type(module)):
            yield Weight(module, "weight", f"{name}.weight")
        for attribute in expert_parameters(module):
            yield Weight(module, attribute, f"{name}.{attribute}")


def int8_linears(model: "PreTrainedModel") -> "Iterator[tuple[str, nn.Linear]]":
    """Names and modules of the linear layers that bitsandbytes INT8 quantizes: all except the output head and tied
    ones.

    Subclasses and experts are left out: from_pretrained does not read them in INT8. So are layers that bitsandbytes
    does not run in INT8.
    """
    from torch import nn
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = int8_skipped(model) or _skipped(model)
    for name, module in model.named_modules():
        if type(module) is nn.Linear and should_convert_module(name, skipped):
            yield name, module


def int8_skipped(model: "PreTrainedModel") -> list[str] | None:
    """llm_int8_skip_modules: patterns of all modules that are not converted; None for the library's default."""
    if not any(name.endswith(f".{_FOUR_DIMENSIONAL}") for name, _ in model.named_modules()):
        return None
    return sorted({*_skipped(model), _FOUR_DIMENSIONAL})


def expert_parameters(module: "nn.Module") -> tuple[str, ...]:
    """Names of a module's parameters that hold the weights of all experts of a layer."""
    if _EXPERTS not in type(module).__name__:
        return ()
    named = module.named_parameters(recurse=False)
    return tuple(name for name, parameter in named if parameter.dim() == _EXPERT_DIMENSIONS)


def is_linear_layer(module: "nn.Module") -> bool:
    """Whether a module computes as nn.Linear, with its weights quantized or not."""
    from bitsandbytes.nn import Linear4bit

    return isinstance(module, Linear4bit) or is_linear(type(module))


def is_linear(kind: type) -> bool:
    """Whether a class is nn.Linear, or a subclass that computes the same, as a small one of it shows."""
    import torch
    from torch import nn

    if kind is nn.Linear:
        return True
    if not issubclass(kind, nn.Linear) or kind.__module__.startswith("bitsandbytes"):
        return False
    inputs, outputs, rows = _PROBE
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
            probe, values = kind(inputs, outputs).float(), torch.rand(rows, inputs, dtype=torch.float32)
            for parameter in probe.parameters():  # not initialized while from_pretrained builds a model
                parameter.uniform_()
            expected = nn.functional.linear(values, probe.weight, probe.bias)
            return bool(torch.allclose(probe(values), expected))
    except Exception:  # noqa: BLE001 - the class of a model may need any arguments, and is then not a plain layer
        return False


def held_in_nf4(model: "PreTrainedModel") -> Coverage:
    """What a loaded model really holds in NF4."""
    from bitsandbytes.nn import Linear4bit

    numbers = parameter_numbers(model)
    packed = set()
    for module in model.modules():
        if isinstance(module, Linear4bit) and module.weight.quant_state is not None:
            packed.add(module.weight)
        packed |= set(_packed_parameters(module))
    total = sum(numbers.values())
    return Coverage(sum(numbers[each] for each in packed), total, left=_left(model, packed, total))


def parameter_numbers(model: "nn.Module") -> "Mapping[nn.Parameter, int]":
    """Numbers of each parameter; those of 4-bit weights, which are packed, are counted unpacked. Tied ones are once."""
    packed = {each: numbers for module in model.modules() for each, numbers in _packed_parameters(module).items()}
    numbers = {}
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        known = packed.get(parameter, parameter.numel())
        numbers[parameter] = known if state is None else math.prod(state.shape)
    return numbers


def _packed_parameters(module: "nn.Module") -> "dict[nn.Parameter, int]":
    """A module's parameters that bitsandbytes holds packed outside of linear layers, and their unpacked numbers."""
    from bitsandbytes.nn.parametrize import Bnb4bitParametrization

    held = getattr(module, "parametrizations", {})
    return {
        each.original: math.prod(each[0].quant_state.shape)
        for each in held.values()
        if isinstance(each[0], Bnb4bitParametrization)
    }


def check_method(coverage: Coverage, method: Method, architecture: str) -> tuple[str, ...]:
    """Warnings about what QLoRA leaves in 16 bits.

    Raises:
        InvalidInput: QLoRA quantizes nothing.
    """
    if method is not Method.QLORA:
        return ()
    if not coverage.quantized:
        raise InvalidInput(
            f"spec.method: QLoRA quantizes no weight of {architecture}, because it has no linear layers except its "
            "output head that bitsandbytes converts; use method: LoRA, or another base model"
        )
    if not coverage.left:
        return ()
    return (
        f"QLoRA holds only {coverage.share:.0%} of the base's weights in NF4: {some(coverage.left, _MOST_KINDS)} "
        "stay in 16 or 32 bits",
    )


def _cover(model: "PreTrainedModel", weights: list[Weight]) -> Coverage:
    sizes = [weight.tensor.numel() for weight in weights]
    experts: dict[nn.Module, int] = {}
    for weight, size in zip(weights, sizes, strict=True):
        if weight.attribute != "weight" or weight.tensor.dim() == _EXPERT_DIMENSIONS:
            experts[weight.module] = experts.get(weight.module, 0) + size
    total = sum(parameter.numel() for parameter in model.parameters())
    return Coverage(
        quantized=sum(sizes),
        total=total,
        largest=max(sizes, default=0),
        experts=sum(experts.values()),
        largest_experts=max(experts.values(), default=0),
        left=_left(model, {weight.tensor for weight in weights}, total),
    )


def _left(model: "PreTrainedModel", quantized: "set[torch.Tensor]", total: int) -> tuple[str, ...]:
    """Classes of modules whose matrices are not quantized, other than embeddings and the output head, largest first."""
    from torch import nn

    shared = (model.get_input_embeddings(), model.get_output_embeddings())
    kinds: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, nn.Embedding) or module in shared:
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1 and parameter not in quantized:
                kind = type(module).__name__
                kinds[kind] = kinds.get(kind, 0) + parameter.numel()
    large = {kind: numbers for kind, numbers in kinds.items() if numbers > _LARGE_SHARE * total}
    return tuple(sorted(large, key=large.__getitem__, reverse=True))


def _skipped(model: "PreTrainedModel") -> list[str]:
    """Patterns of the modules that transformers does not convert: the output head and tied layers."""
    from transformers.quantizers.base import HfQuantizer

    skipped: list[str] = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return skipped
