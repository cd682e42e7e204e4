"""Resolves spec.lora.targetModules: a target matches the last parts of a layer's name, as in peft."""

from collections.abc import Collection
from types import SimpleNamespace

from edgetune_contract.spec import TARGET_MODULE_PRESETS, LoraSpec
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.wording import some

_MOST_NAMES = 24


def requested_modules(
    lora: LoraSpec, linears: Collection[str], modules: Collection[str], mixture: str | None
) -> tuple[str, ...]:
    """Target modules for peft: those of a preset, all linear layers that peft can find by name, or the listed ones.

    Args:
        lora: spec.lora.
        linears: names of the base model's linear layers without the output head.
        modules: names of all modules of the base model, including the linear layers.
        mixture: the model_type of a base model with experts; None for others.

    Raises:
        InvalidInput: peft reads a name as something else than the layers with this name.
    """
    taken = read_as_experts(linears, mixture)
    if lora.target_modules == "AllLinear":
        return _names_of_all([name for name in linears if short_name(name) not in taken], modules)
    presets = TARGET_MODULE_PRESETS
    requested = presets[lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    refused = sorted(taken & {short_name(each) for each in requested})
    if refused:
        others = sorted({short_name(name) for name in linears} - taken)
        raise InvalidInput(
            f"spec.lora.targetModules: peft takes {', '.join(refused)} of a model of type {mixture!r} for parts of its "
            "experts, which Edgetune does not train; use AllLinear, which leaves them out, or some of: "
            f"{some(others, _MOST_NAMES)}"
        )
    return requested


def read_as_experts(linears: Collection[str], mixture: str | None) -> frozenset[str]:
    """Short names of linear layers that peft takes for experts, in mixtures such as deepseek_v3.

    peft still reads adapters that were trained when transformers held each expert as linear layers: it converts their
    target modules to today's fused experts. Shared experts and dense layers have the same short names, and are linear
    layers today, but peft no longer finds them, not even by their full names.

    Args:
        linears: names of linear layers.
        mixture: the model_type of a base model with experts; None for others.
    """
    if mixture is None:
        return frozenset()
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    model = SimpleNamespace(config=SimpleNamespace(model_type=mixture))
    taken = set()
    for name in {short_name(each) for each in linears}:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # one of several projections that are fused today
            taken.add(name)
        if config.target_modules != {name}:
            taken.add(name)
    return frozenset(taken)


def matching(target: str, names: Collection[str]) -> set[str]:
    """Names that a target module matches: they are equal to it, or end in a dot and the target."""
    return {name for name in names if name == target or name.endswith(f".{target}")}


def short_name(name: str) -> str:
    """The last part of a layer's name, such as q_proj."""
    return name.rpartition(".")[2]


def _names_of_all(linears: Collection[str], modules: Collection[str]) -> tuple[str, ...]:
    """Short names of all linear layers, or their full names if a short name would also match another module."""
    short = tuple(sorted({short_name(name) for name in linears}))
    matched = set().union(*(matching(name, modules) for name in short))
    return short if matched == set(linears) else tuple(linears)
