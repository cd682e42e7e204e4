"""The part of the spec that says how models are scored and measured, and what must hold before one is published."""

from typing import Annotated

from pydantic import Field

from edgetune_contract.model import Model
from edgetune_contract.quantities import ByteQuantity, CpuQuantity


class EdgeBudget(Model):
    """What an edge device has for the model. With it, even an empty one, evaluate runs base and edge models on the CPU,
    each in a process of its own, and status.edge shows their speed and memory: those of the machine that evaluates, not
    of the device. For BitsAndBytesInt8 (with transformers) and GGUF-Q8_0 (with llama.cpp, if the image has it)."""

    cpu: CpuQuantity | None = None
    """Cores that a model has, as a quantity such as 2 or 500m, rounded up to whole ones: its number of threads, and the
    cores that it is bound to. No more than the stage has: then a warning says so. Without it, all that the stage
    has."""

    memory: ByteQuantity | None = None
    """Memory that the edge model's whole process may take, as a quantity of bytes such as 2Gi: its resident set, with
    libraries and pages of mapped files. Beyond it the process is stopped, and the model is not published."""

    min_tokens_per_second: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Gate: fewest tokens that the edge model generates a second, without the prompt."""

    max_peak_memory: ByteQuantity | None = None
    """Gate: most memory that the edge model's whole process has at its peak, counted as for memory."""


class Gates(Model):
    """Limits that must hold before a model is published; each is optional. Those on the edge model hold for it in every
    format."""

    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    """Lowest score of the edge model, 0 to 1: its keyword recall where evaluation rows have expected keywords, else its
    exact match. With the format Text no model has a score, and the gate does not hold."""

    min_improvement: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Lowest difference of the tuned model's score and the base's, -1 to 1: 0.1 is ten percentage points."""

    max_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """Highest difference of the tuned model's score and the edge model's, 0 to 1: what merging and INT8 may cost."""

    max_edge_bytes: ByteQuantity | None = None
    """Largest edge model, as a quantity of bytes such as 8Gi."""


class EvaluationSpec(Model):
    """Scoring of base, tuned, merged and edge model on the same rows."""

    max_examples: Annotated[int, Field(ge=1, le=100_000)] = 500
    """Most evaluation rows that are scored; the first of the held-out rows."""

    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 256
    """Longest answer in tokens; answers are greedy."""

    gates: Gates = Gates()
    """Limits that must hold before a model is published."""

    edge: EdgeBudget | None = None
    """Budget of the edge device, in which base and edge models are measured; {} measures without limits. Without it,
    nothing is measured."""
