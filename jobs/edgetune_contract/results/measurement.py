"""Speed and memory of models on a CPU, measured by evaluate if spec.evaluation.edge is set."""

from typing import Annotated

from pydantic import Field

from edgetune_contract.pipeline import BASE, EDGE
from edgetune_contract.schema import Count, Model, Name


class ModelSpeed(Model):
    """Speed and memory of one model that answers one prompt at a time in its own process."""

    runtime: Annotated[str, Field(max_length=1024)]
    """Runtime and its version: transformers, or llama.cpp for GGUF."""

    prompt_tokens_per_second: float | None = None
    """Prompt tokens processed per second: the median of up to three runs; no run starts after 20 seconds. Absent if
    the model was stopped earlier."""

    generation_tokens_per_second: float | None = None
    """Tokens generated per second, after the first one: the median of the same runs. Absent if the model was stopped
    earlier."""

    time_to_first_token_seconds: float | None = None
    """Time from the prompt to the first token of the answer, in seconds: the median of the same runs, after a warm-up.
    Absent if the model was stopped earlier."""

    peak_memory_bytes: Count
    """Peak resident set of the process, in bytes, including libraries and pages of mapped files: weights may be mapped,
    and every token reads them."""

    baseline_memory_bytes: Count | None = None
    """Resident set before the model was loaded, in bytes: the interpreter and the libraries. Absent if the process was
    stopped earlier."""

    over_memory: bool = False
    """Whether the process exceeded spec.evaluation.edge.memory and was stopped."""


class EdgeMeasurement(ModelSpeed):
    """Speed and memory of the edge model in the first format, on the machine that evaluated it, not the edge device."""

    cpu: Annotated[str, Field(max_length=1024)]
    """CPU model of the machine that evaluated."""

    threads: Count
    """Number of threads, and of cores, for each model."""

    prompt_tokens: Count
    """Length of the prompt in tokens; it is the evaluation prompt of median length."""

    new_tokens: Count
    """Number of tokens generated in each run; an end token does not stop it."""

    base: ModelSpeed | None = None
    """The base model on the same threads, without a memory limit; absent if the machine has too little memory."""

    further: dict[Name, ModelSpeed] = {}
    """Edge models in further formats, by artifact name; those that this image or machine cannot run are absent."""

    @property
    def by_model(self) -> dict[str, ModelSpeed]:
        """All measured models, by the names that they have in the scores."""
        base = {} if self.base is None else {BASE: self.base}
        return {**base, EDGE: self, **self.further}
