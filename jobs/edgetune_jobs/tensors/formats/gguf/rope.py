"""Rotary embeddings in GGUF: the scalings that llama.cpp computes as transformers does, in metadata and tensors.

    default, linear   metadata
    llama3            rope_freqs: divisors of the frequencies
    yarn              metadata; llama.cpp knows only the usual limits of the ramp
    longrope          rope_factors_long and rope_factors_short, and the factor of cos and sin as metadata

As llama.cpp's converter writes them (conversion/base.py, llama.py and phi.py of llama.cpp) and llama.cpp reads them
(src/llama-context.cpp).
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgetune_jobs.tensors.formats.errors import Unsupported

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layers in config.json."""

_BETA_FAST, _BETA_SLOW = 32, 1
_ORIGINAL = "original_max_position_embeddings"
_EQUAL = 1e-6


def parameters(config: "PreTrainedConfig", kind: str = FULL) -> Mapping[str, Any]:
    """The parameters of the embedding in a kind of layers, which most models have in common."""
    rope: Mapping[str, Any] = config.rope_parameters
    return rope.get(kind, rope)


def rotated(config: "PreTrainedConfig", head: int) -> int:
    """How many values of a head of size `head` are rotated."""
    return int(head * parameters(config).get("partial_rotary_factor", 1))


def check(config: "PreTrainedConfig", known: Sequence[str], head: int, *, can_be_partial: bool) -> None:
    """Check that llama.cpp computes the same.

    Args:
        config: of the model.
        known: types that llama.cpp reads in the model's architecture.
        head: size of a head.
        can_be_partial: whether the architecture can rotate a part of each head.

    Raises:
        Unsupported: it does not.
    """
    for kind in (FULL, SLIDING):
        rope = parameters(config, kind)
        if rope["rope_type"] not in known:
            raise Unsupported(f"the RoPE type {rope['rope_type']!r} is not one of {', '.join(known)}")
        if rope.get("partial_rotary_factor", 1) != 1 and not can_be_partial:
            raise Unsupported("it has a partial_rotary_factor, but llama.cpp applies RoPE to whole heads")
    rope = parameters(config)
    if rope["rope_type"] == "yarn":
        _check_yarn(rope)
    if rope["rope_type"] == "longrope":
        _check_longrope(rope, rotated(config, head) // 2)


def add_to(writer: "GGUFWriter", config: "PreTrainedConfig", head: int) -> None:
    """Write the metadata.

    Args:
        writer: of the file.
        config: of the model.
        head: size of a head.
    """
    from gguf import RopeScalingType

    rope = parameters(config)
    writer.add_rope_dimension_count(rotated(config, head))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        factor = _factor(config)
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(rope[_ORIGINAL])
        # llama.cpp multiplies cos and sin by the usual factor, and by this one.
        attention = _yarn_attention(rope, factor) / _magnitude(factor)
        if abs(attention - 1) > _EQUAL:
            writer.add_rope_scaling_attn_factors(attention)
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope[_ORIGINAL])
        writer.add_rope_scaling_attn_factors(_longrope_attention(config))


def factor_tensors(config: "PreTrainedConfig", head: int) -> Mapping[str, Sequence[float]]:
    """Divisors of the frequencies by the name of their tensor; empty for most models.

    Args:
        config: of the model.
        head: size of a head.
    """
    rope = parameters(config)
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, head)}
    if rope["rope_type"] == "longrope":
        return {"rope_factors_long.weight": rope["long_factor"], "rope_factors_short.weight": rope["short_factor"]}
    return {}


def differences(config: "PreTrainedConfig") -> tuple[str, ...]:
    """Warnings about texts for which llama.cpp computes otherwise than transformers."""
    rope = parameters(config)
    if rope["rope_type"] != "longrope":
        return ()
    original = rope[_ORIGINAL]
    return (
        f"llama.cpp rotates by the long factors if its context (-c) exceeds {original:,} tokens, transformers if the "
        f"text does: run it with -c {original} unless texts are longer",
    )


def _check_yarn(rope: Mapping[str, Any]) -> None:
    betas = (rope.get("beta_fast") or _BETA_FAST, rope.get("beta_slow") or _BETA_SLOW)
    if betas != (_BETA_FAST, _BETA_SLOW):
        raise Unsupported(
            f"its YaRN has beta_fast {betas[0]} and beta_slow {betas[1]}, but llama.cpp uses {_BETA_FAST} and "
            f"{_BETA_SLOW}"
        )
    if not rope.get("truncate", True):
        raise Unsupported("its YaRN has truncate false, but llama.cpp truncates")


def _check_longrope(rope: Mapping[str, Any], pairs: int) -> None:
    for name in ("long_factor", "short_factor"):
        if len(rope[name]) != pairs:
            raise Unsupported(f"its {name} has {len(rope[name])} values, but {pairs} pairs of a head are rotated")


def _factor(config: "PreTrainedConfig") -> float:
    """By how much the context is extended."""
    rope = parameters(config)
    extended: float = rope.get("factor") or config.max_position_embeddings / rope[_ORIGINAL]
    return extended


def _magnitude(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _yarn_attention(rope: Mapping[str, Any], factor: float) -> float:
    """The factor of cos and sin in YaRN."""
    given: float | None = rope.get("attention_factor")
    if given is not None:
        return given
    scale, of_all = rope.get("mscale"), rope.get("mscale_all_dim")
    return _magnitude(factor, scale) / _magnitude(factor, of_all) if scale and of_all else _magnitude(factor)


def _longrope_attention(config: "PreTrainedConfig") -> float:
    """The factor of cos and sin in LongRoPE."""
    rope, factor = parameters(config), _factor(config)
    given: float | None = rope.get("attention_factor")
    if given is not None:
        return given
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(rope[_ORIGINAL]))


def _llama3_factors(rope: Mapping[str, Any], head: int) -> Sequence[float]:
    """As in Llama 3.1: 1 for short wavelengths, `factor` for long ones, and 1 / ((1 - s) / factor + s) between them,
    with s = (original context / wavelength - low) / (high - low).
    """
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for position in range(0, head, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (position / head)
        share = (rope[_ORIGINAL] / wavelength - low) / (high - low)
        share = min(1.0, max(0.0, share))
        factors.append(1 / ((1 - share) / rope["factor"] + share))
    return factors
