"""The evaluation sections of the spec: scoring, edge budget and gates; and the evaluation during training."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from edgetune_contract.schema import Model, Rule, listed_once
from edgetune_contract.values.quantities import ByteQuantity, CpuQuantity


class Match(StrEnum):
    """How an answer contains an expected keyword."""

    WORD = "Word"
    """As a whole word or number: "no" is not in "normal", "12" is not in "120"."""

    SUBSTRING = "Substring"
    """Anywhere, also inside a longer word."""


class ScoredModel(StrEnum):
    """A model that evaluate can score."""

    BASE = "Base"
    TUNED = "Tuned"
    MERGED = "Merged"
    EDGE = "Edge"


def _needs(model: ScoredModel, gate: str) -> Rule:
    """A rule: a gate that compares a model's score needs this score."""
    attribute = "".join(f"_{each.lower()}" if each.isupper() else each for each in gate)
    return Rule(
        cel=f"!has(self.gates) || !has(self.gates.{gate}) || !has(self.models) || '{model}' in self.models",
        holds=lambda self: getattr(self.gates, attribute) is None or model in self.models,
        message=f"gates.{gate} compares the {model.lower()} model: add {model} to models",
    )


class EdgeBudget(Model):
    """CPU and memory that an edge device has for the model. If set, even to {}, evaluate runs base and edge models on
    the CPU, each in its own process, and status.edge shows their speed and memory. The figures are those of the machine
    that evaluates, not of the device. Supports BitsAndBytesInt8 (with transformers) and GGUF (with llama.cpp)."""

    cpu: CpuQuantity | None = None
    """CPU cores for each model, as a quantity such as 2 or 500m, rounded up to whole cores: the number of threads, and
    of cores to which the process is bound. If the stage has fewer, it uses those and warns. Default: all cores of the
    stage."""

    memory: ByteQuantity | None = None
    """Memory limit of the edge model's process, as a quantity of bytes such as 2Gi. The whole resident set counts,
    including libraries and pages of mapped files. A process that exceeds the limit is stopped, and the model is not
    published."""

    min_tokens_per_second: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Gate: minimum generation speed of the edge model, in tokens per second, without the prompt."""

    max_peak_memory: ByteQuantity | None = None
    """Gate: maximum peak memory of the edge model's process, as a quantity of bytes such as 2Gi, counted as in
    memory."""


class Gates(Model):
    """Conditions for publishing a model; each is optional. Gates on the edge model apply to every format."""

    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    """Minimum score of the edge model, 0 to 1. The score is the keyword recall if evaluation rows have expected
    keywords: the share of all their keywords that the answers contain (see match). Otherwise it is the exact match: the
    share of answers that equal the reference, apart from white space at the ends and composition of accents. Models
    have no score with the format Text, where this gate always refuses."""

    min_improvement: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Minimum of the tuned model's score minus the base's, -1 to 1; 0.1 is ten percentage points."""

    max_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """Maximum of the tuned model's score minus the edge model's, 0 to 1: what merging and quantization may cost."""

    max_edge_bytes: ByteQuantity | None = None
    """Maximum size of the edge model, as a quantity of bytes such as 8Gi."""

    @property
    def has_one_on_the_score(self) -> bool:
        """Whether a model that learned nothing can be refused."""
        return any(gate is not None for gate in (self.min_score, self.min_improvement, self.max_drop))


class EvaluationSpec(Model):
    """Scoring of the base, tuned, merged and edge model on the same rows."""

    max_examples: Annotated[int, Field(ge=1, le=100_000)] = 500
    """Maximum number of evaluation rows to score; the first held-out rows are taken."""

    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 256
    """Maximum length of an answer, in tokens. Decoding is greedy."""

    match: Match = Match.WORD
    """How an answer contains an expected keyword. Word: as a whole word or number, so that "no" is not in "normal", and
    12 neither in 120 nor in 12.5; a unit may follow a number at once (12bar). Scripts without spaces between words have
    no word boundaries. Substring: also inside a longer word. Both ignore case, differences of white space, and whether
    accents are composed (Unicode NFC or NFD)."""

    models: Annotated[
        tuple[ScoredModel, ...],
        Field(min_length=1, max_length=len(ScoredModel), json_schema_extra={"x-kubernetes-list-type": "set"}),
        listed_once("model"),
    ] = tuple(ScoredModel)
    """Models to score, of Base, Tuned, Merged and Edge; Edge, in all formats, is always among them because it is
    published. Each model that is left out saves time. Merged is Tuned within rounding: leave it out to score the two as
    one."""

    gates: Gates = Gates()
    """Conditions for publishing a model."""

    rules = (
        Rule(
            cel="!has(self.models) || 'Edge' in self.models",
            holds=lambda self: ScoredModel.EDGE in self.models,
            message="models must contain Edge: this model is published",
        ),
        _needs(ScoredModel.BASE, "minImprovement"),
        _needs(ScoredModel.TUNED, "minImprovement"),
        _needs(ScoredModel.TUNED, "maxDrop"),
    )

    edge: EdgeBudget | None = None
    """Measure base and edge models within the edge device's budget; {} measures without limits. If absent, nothing is
    measured."""

    @property
    def limits_the_device(self) -> bool:
        """Whether there is a limit on bytes, memory or speed: on what a format takes, not only on what it scores."""
        budget = self.edge or EdgeBudget()
        limits = (budget.memory, budget.max_peak_memory, budget.min_tokens_per_second, self.gates.max_edge_bytes)
        return any(limit is not None for limit in limits)
