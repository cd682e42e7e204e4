"""The formats among which `formats: Auto` chooses: those that the base can be written in and this image can run."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgetune_contract.evaluation import Gates
from edgetune_contract.results.candidates import AUTO_FORMATS, PossibleFormat
from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_contract.values.quantities import parse_bytes
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.quantization.coverage import int8_coverage
from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.suitability import Suitability

_GGUF_BITS: Mapping[str, float] = {
    "GGUF-BF16": 16,
    "GGUF-Q8_0": 8.5,
    "GGUF-Q6_K": 6.5625,
    "GGUF-Q5_K_M": 5.5,
    "GGUF-Q4_K_M": 4.5,
}
"""Bits of a weight in a matrix, with its share of the block's scales, in the smallest type that a file has: files of
mixed types (the K_M formats) have more bits in some tensors, and where a row does not fit into blocks."""

FACT = "candidates"
"""Name of the fact that prepare reports of a spec with formats Auto."""

_F32_BYTES, _LEAST_BYTES_UNQUANTIZED, _INT8_BYTES = 4, 2, 1
_MATRIX = 2


@dataclass(frozen=True)
class Candidates:
    """The formats, and why others are none. Without formats Auto there are none."""

    possible: tuple[PossibleFormat, ...] = ()
    """Largest first."""

    left_out: Mapping[EdgeFormat, str] = field(default_factory=dict)
    """Why the other formats are no candidates."""

    @property
    def facts(self) -> Mapping[str, str]:
        """All of them, as a fact for the status."""
        if not self.possible:
            return {}
        sizes = ", ".join(f"{each.format} from {each.least_bytes:,} bytes" for each in self.possible)
        return {FACT: "; ".join((sizes, *(f"not {each}: {why}" for each, why in self.left_out.items())))}


def find_candidates(
    suitability: Suitability, parameters: Parameters, missing_runtime: Callable[[EdgeFormat], str | None]
) -> Candidates:
    """The candidates for a base model.

    Args:
        suitability: of the base model.
        parameters: of the run.
        missing_runtime: why the runtime of a format is not in this image; None if it is.

    Raises:
        InvalidInput: there is none, or the weights of each have more bytes than the limit: no training can change that.
    """
    if not parameters.quantization.is_auto:
        return Candidates()
    possible, left_out = [], {}
    for edge_format in AUTO_FORMATS:
        problem = missing_runtime(edge_format)
        try:
            suitability.check(edge_format)
        except Unsupported as reason:
            problem = str(reason)
        if problem is None:
            possible.append(PossibleFormat(format=edge_format, least_bytes=_least_bytes(edge_format, suitability)))
        else:
            left_out[edge_format] = problem
    if not possible:
        reasons = "; ".join(f"{each}: {why}" for each, why in left_out.items())
        raise InvalidInput(f"spec.quantization.formats: Auto has no candidate for this base model: {reasons}")
    candidates = Candidates(tuple(sorted(possible, key=lambda each: each.least_bytes, reverse=True)), left_out)
    _check_limit(candidates, parameters.evaluation.gates)
    return candidates


def _check_limit(candidates: Candidates, gates: Gates) -> None:
    if gates.max_edge_bytes is None:
        return
    limit = parse_bytes(gates.max_edge_bytes)
    if any(each.least_bytes <= limit for each in candidates.possible):
        return
    excess = ", ".join(
        f"{each.format} has at least {each.least_bytes:,} bytes, {each.least_bytes - limit:,} too many"
        for each in candidates.possible
    )
    raise InvalidInput(
        f"spec.evaluation.gates.maxEdgeBytes: no format of this base model has at most {gates.max_edge_bytes} "
        f"({limit:,} bytes): {excess}; raise the limit, or use a smaller base model"
    )


def _least_bytes(edge_format: EdgeFormat, suitability: Suitability) -> int:
    """Size of a model's weights in a format, in bytes, or less."""
    bits = _GGUF_BITS.get(edge_format.value)
    if bits is None:
        coverage = int8_coverage(suitability.skeleton)
        return _INT8_BYTES * coverage.quantized + _LEAST_BYTES_UNQUANTIZED * (coverage.total - coverage.quantized)
    shapes = suitability.shapes.values()
    matrices = sum(math.prod(shape) for shape in shapes if len(shape) >= _MATRIX)
    vectors = sum(math.prod(shape) for shape in shapes if len(shape) < _MATRIX)
    return math.floor(matrices * bits / 8) + _F32_BYTES * vectors
