"""How models run on a CPU, as evaluate measures it with spec.evaluation.edge."""

from edgetune_contract.model import Model
from edgetune_contract.pipeline import BASE, EDGE


class ModelSpeed(Model):
    """How fast one model answers, and what memory that takes: one prompt at a time, in a process of its own."""

    runtime: str
    """What ran the model, with its version: transformers, or llama.cpp for GGUF."""

    prompt_tokens_per_second: float | None = None
    """Tokens of the prompt read a second: the median of up to three runs (no further one begins after 20 seconds).
    Absent if the model was stopped before."""

    generation_tokens_per_second: float | None = None
    """Tokens generated a second after the first one: the median of the same runs. Absent if the model was stopped
    before."""

    time_to_first_token_seconds: float | None = None
    """From the prompt to the first token of the answer, in seconds: the median of the same runs, after a warm-up.
    Absent if the model was stopped before."""

    peak_memory_bytes: int
    """Most memory that the whole process had in use: its largest resident set, in bytes. The libraries count, and so do
    pages of mapped files: the weights may be mapped, and are read for every token."""

    baseline_memory_bytes: int | None = None
    """Of that, what was in use before the model was loaded: the interpreter and the libraries. Absent if the process
    was stopped before."""

    over_memory: bool = False
    """Whether it took more than spec.evaluation.edge.memory, for which it is stopped."""


class EdgeMeasurement(ModelSpeed):
    """How the edge model in the first format runs on the machine that evaluated it, not on the edge device."""

    cpu: str
    """CPU model of that machine."""

    threads: int
    """Threads, and cores, that each model had."""

    prompt_tokens: int
    """Tokens of the prompt: the evaluation row of median length."""

    new_tokens: int
    """Tokens generated in each run, past any end token."""

    base: ModelSpeed | None = None
    """The base model on the same threads, without a limit on memory; absent if the machine had too little for it."""

    further: dict[str, ModelSpeed] = {}
    """Edge models in further formats by artifact; absent if this image or machine cannot run them."""

    @property
    def by_model(self) -> dict[str, ModelSpeed]:
        """All models that were measured, by the names that they have in scores."""
        base = {} if self.base is None else {BASE: self.base}
        return {**base, EDGE: self, **self.further}
