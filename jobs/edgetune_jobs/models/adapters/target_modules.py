"""Resolves spec.lora.targetModules: a target matches the last parts of a layer's name, as in peft."""

from collections.abc import Collection

from edgetune_contract.spec import TARGET_MODULE_PRESETS, LoraSpec


def requested_modules(lora: LoraSpec, linears: Collection[str], modules: Collection[str]) -> tuple[str, ...]:
    """Target modules for peft: those of a preset, all linear layers, or the listed ones.

    Args:
        lora: spec.lora.
        linears: names of the base model's linear layers without the output head.
        modules: names of all modules of the base model, including the linear layers.
    """
    if lora.target_modules == "AllLinear":
        return _names_of_all(linears, modules)
    if isinstance(lora.target_modules, str):
        return TARGET_MODULE_PRESETS[lora.target_modules]
    return lora.target_modules


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
