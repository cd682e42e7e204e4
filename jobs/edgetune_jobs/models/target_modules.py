"""Which layers spec.lora.targetModules means: names match as peft matches them, by whole parts from the end."""

from collections.abc import Collection

from edgetune_contract.spec import TARGET_MODULE_PRESETS, LoraSpec


def requested_modules(lora: LoraSpec, linears: Collection[str], modules: Collection[str]) -> tuple[str, ...]:
    """Target modules as peft takes them: those of a preset, of all linear layers, or the listed ones.

    Args:
        lora: the spec's section.
        linears: names of the base's linear layers besides the output head.
        modules: names of all its modules, linear layers among them.
    """
    if lora.target_modules == "AllLinear":
        return _names_of_all(linears, modules)
    if isinstance(lora.target_modules, str):
        return TARGET_MODULE_PRESETS[lora.target_modules]
    return lora.target_modules


def matching(target: str, names: Collection[str]) -> set[str]:
    """Names that a target module matches: the name itself, or what ends in a dot and the name."""
    return {name for name in names if name == target or name.endswith(f".{target}")}


def short_name(name: str) -> str:
    """Last part of a layer's name, such as q_proj."""
    return name.rpartition(".")[2]


def _names_of_all(linears: Collection[str], modules: Collection[str]) -> tuple[str, ...]:
    """Short names of all linear layers, or their whole names if a short one would match something else too."""
    short = tuple(sorted({short_name(name) for name in linears}))
    matched = set().union(*(matching(name, modules) for name in short))
    return short if matched == set(linears) else tuple(linears)
