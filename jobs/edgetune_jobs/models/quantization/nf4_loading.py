"""Loads every weight that QLoRA can hold in NF4 as such: also subclasses of linear layers, and fused experts.

transformers converts only modules that are nn.Linear itself. Falcon has a subclass, and mixtures hold their experts,
most of their bytes, in three-dimensional parameters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgetune_jobs.models.quantization.coverage import expert_parameters, is_linear

_METHOD = "bitsandbytes_4bit"


@contextmanager
def quantizing_all() -> Iterator[None]:
    """from_pretrained with load_in_4bit converts subclasses and experts too. Its weights are converted one by one."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    before = AUTO_QUANTIZER_MAPPING[_METHOD]
    AUTO_QUANTIZER_MAPPING[_METHOD] = _quantizer()
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING[_METHOD] = before


def _quantizer() -> type:
    from bitsandbytes.nn.parametrize import replace_parameter_4bit_prequantized
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module

    class Quantizer(Bnb4BitHfQuantizer):  # type: ignore[misc, unused-ignore]  # untyped in some versions
        """The library's quantizer, for more modules."""

        def _process_model_before_weight_loading(self, model: Any, *args: Any, **kwargs: Any) -> None:
            _replace_subclasses(model)
            super()._process_model_before_weight_loading(model, *args, **kwargs)
            self.experts = {
                f"{name}.{attribute}": None
                for name, module in model.named_modules()
                if should_convert_module(name, self.modules_to_not_convert)
                for attribute in expert_parameters(module)
            }

        def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
            return param_name in self.experts or super().param_needs_quantization(model, param_name, **kwargs)

        def get_quantize_ops(self) -> Any:
            return _conversion(self, super().get_quantize_ops())

        def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
            for name, state in self.experts.items():
                if state is not None:  # missing weights are refused by the caller
                    module, attribute = get_module_from_name(model, name)
                    device = getattr(module, attribute).device
                    replace_parameter_4bit_prequantized(module, attribute, state.as_dict(packed=True), device)
            return super()._process_model_after_weight_loading(model, **kwargs)

    return Quantizer


def _conversion(quantizer: Any, linear: Any) -> Any:
    """The operation that packs one weight."""
    import torch
    from bitsandbytes.functional import quantize_4bit
    from transformers.core_model_loading import ConversionOps

    class Conversion(ConversionOps):  # type: ignore[misc, unused-ignore]  # untyped in some versions
        """Packs experts, and leaves linear layers to the library."""

        def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
            packed: dict[str, Any] = {}
            for name, value in input_dict.items():
                if name not in quantizer.experts:
                    packed |= linear.convert({name: value}, *args, **kwargs)
                    continue
                weight = value[0] if isinstance(value, list) else value
                data, quantizer.experts[name] = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
                packed[name] = torch.nn.Parameter(data, requires_grad=False)
            return packed

    return Conversion()


def _replace_subclasses(model: Any) -> None:
    """Replace modules that compute as nn.Linear by nn.Linear, still without weights."""
    import torch
    from torch import nn

    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear and is_linear(type(module)):
            with torch.device("meta"):
                plain = nn.Linear(module.in_features, module.out_features, module.bias is not None)
            plain.to(module.weight.dtype)
            model.set_submodule(name, plain)
