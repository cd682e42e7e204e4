"""Fits a training step into memory: how many examples a forward pass takes, and which layers are recomputed.

Both change the time and the memory of a step, not its losses (except for the auxiliary loss of mixtures of experts,
which is that of each forward pass). Among the choices that fit, the fastest is

    time of a token = (1 + 600 / tokens of a forward pass) · (1 + 0.4 · share of recomputed layers)

where the first factor is the work of each forward pass whatever its size, above all dequantizing NF4, and 8,192 tokens
are enough. For the shape of Llama 3.1 8B on an H200, docs/benchmarks.md has 340 with LoRA and 850 with QLoRA, and 0.40
for recomputing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from edgetune_contract.spec import Parameters
from edgetune_contract.training import AUTO, GradientCheckpointing, Layout, TrainingSpec
from edgetune_jobs.models import loading
from edgetune_jobs.models.quantization.coverage import Coverage
from edgetune_jobs.stage import Ranks, StepSize
from edgetune_jobs.training.memory import estimate
from edgetune_jobs.training.memory.activations import Activations
from edgetune_jobs.training.recipe import Targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TARGET_TOKENS = 8192
_TOKENS_OF_OVERHEAD = 600
_COST_OF_RECOMPUTING = 0.4
# Every n-th layer is recomputed; 0 for none.
_RECOMPUTE = {
    GradientCheckpointing.AUTO: (0, 4, 2, 1),
    GradientCheckpointing.ALWAYS: (1,),
    GradientCheckpointing.NEVER: (0,),
}
# The rest is for fragmentation, libraries, and what the estimate does not know.
_USABLE_SHARE = 0.85
_AFTER_SHRINKING = "chosen after the GPU ran out of memory"
_FILE = "step_fit.json"

MemoryOfStep = Callable[[int, int], int]
"""(tokens of a forward pass, every how many layers one is recomputed) -> bytes besides the model."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of the training examples in tokens, after truncation."""

    longest: int
    mean: float
    deviation: float | None = None
    """Standard deviation; None if it is not known."""

    examples: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Lengths":
        """Lengths of these examples, at least one."""
        return cls(max(lengths), fmean(lengths), pstdev(lengths), len(lengths))

    def tokens(self, size: int, *, joined: bool) -> int:
        """The most tokens of a forward pass, with joined random examples those that one pass of thousands exceeds.

        That is the longest example beside others, drawn without replacement, whose sum is four standard deviations
        above its mean. If the deviation is not known, all are the longest.

        Args:
            size: examples of the pass.
            joined: whether they are joined, or each padded to the longest.
        """
        if not joined or self.deviation is None:
            return size * self.longest
        size = min(size, self.examples)
        spread = self.deviation * sqrt((size - 1) * (1 - size / self.examples))
        likely = self.longest + (size - 1) * self.mean + 4 * spread
        return ceil(min(likely, size * self.longest, self.examples * self.mean))


@dataclass(frozen=True)
class Choice:
    """One way to compute a step."""

    micro_batch_size: int
    recompute: int
    """Every how many layers one is recomputed in the backward pass; 0 for none."""

    bytes: int
    """Estimated memory of a step besides the model."""

    cost: float
    """Time relative to the fastest possible one."""

    @property
    def size(self) -> StepSize:
        """The choice without its estimates."""
        return StepSize(micro_batch_size=self.micro_batch_size, recompute=self.recompute)

    @property
    def recomputed(self) -> str:
        """Which layers are recomputed, in words."""
        if self.recompute in (0, 1):
            return f"{'all layers are' if self.recompute else 'no layer is'} recomputed"
        return f"1 of {self.recompute} layers is recomputed"


class StepFit:
    """The choice in use. It shrinks when memory runs out, and a resumed training continues with its checkpoint's."""

    def __init__(
        self,
        training: TrainingSpec,
        layout: Layout,
        lengths: Lengths,
        layers: int,
        memory_of_step: MemoryOfStep,
        free_bytes: int,
        reduced: StepSize | None = None,
        can_recompute: bool = True,
        ranks: int = 1,
    ) -> None:
        """
        Args:
            training: spec.training.
            layout: the layout in use.
            lengths: of the training examples.
            layers: number of the model's blocks.
            memory_of_step: estimate of a step's memory.
            free_bytes: memory that is free, with the model loaded.
            reduced: the step size that an earlier attempt left when it ran out of memory; nothing larger is tried.
            can_recompute: whether the model supports gradient checkpointing.
            ranks: number of processes that share the examples of a step.
        """
        self._training = training
        self._examples = ceil(training.batch_size / ranks)
        self._layout = layout
        self._free = free_bytes
        if layout is Layout.PACKED:
            longest = max(training.max_length, lengths.longest)
            lengths = Lengths(longest, longest)
        joined = layout is Layout.PADDING_FREE
        choices = [
            Choice(
                size,
                recompute,
                memory_of_step(lengths.tokens(size, joined=joined), recompute),
                _cost(size * lengths.mean, recompute, layers),
            )
            for size in micro_batch_sizes(training, self._examples)
            for recompute in _RECOMPUTE[training.gradient_checkpointing]
            if can_recompute or not recompute or training.gradient_checkpointing is GradientCheckpointing.ALWAYS
        ]
        self._choices = choices if reduced is None else _no_larger(choices, reduced)
        largest = max(each.micro_batch_size for each in self._choices)
        self._allowed = [
            each for each in self._choices if training.micro_batch_size == AUTO or each.micro_batch_size == largest
        ]
        self.choice = self._fastest()
        self.has_shrunk = len(self._choices) < len(choices)

    def _fastest(self) -> Choice:
        """The fastest choice that fits, or if none does, the one that takes the least memory."""
        fitting = [each for each in self._allowed if self._fits(each)]
        if not fitting:
            return min(self._allowed, key=lambda each: each.bytes)
        return min(fitting, key=lambda each: (each.cost, each.micro_batch_size))

    @property
    def fits(self) -> bool:
        """Whether the choice fits into the free memory, with room for what the estimate does not know."""
        return self._fits(self.choice)

    @property
    def largest(self) -> int:
        """The largest micro-batch size that fits in the same way, however much is recomputed; 0 if none does."""
        return max((each.micro_batch_size for each in self._choices if self._fits(each)), default=0)

    def _fits(self, choice: Choice) -> bool:
        return choice.bytes <= self._free * _USABLE_SHARE

    @property
    def smaller(self) -> Choice | None:
        """The fastest choice that takes at most three quarters of this one's memory, otherwise the one that takes the
        least; None if this is the one.

        It has no more examples, and the next attempt gets no other figure, and recomputes layers if this one does.
        """
        size, recompute = self.choice.micro_batch_size, self.choice.recompute
        choices = [
            each for each in self._choices if each.micro_batch_size <= size and (each.recompute or not recompute)
        ]
        much_smaller = [each for each in choices if each.bytes <= 0.75 * self.choice.bytes]
        if much_smaller:
            return min(much_smaller, key=lambda each: (each.cost, each.micro_batch_size))
        least = min(choices, key=lambda each: each.bytes)
        return least if least.bytes < self.choice.bytes else None

    def shrink(self) -> bool:
        """Take the next smaller choice; whether there was one."""
        smaller = self.smaller
        if smaller is None:
            return False
        self.choice, self.has_shrunk = smaller, True
        return True

    def save_to(self, checkpoint: Path) -> None:
        """Write the choice into a checkpoint folder."""
        (checkpoint / _FILE).write_text(self.choice.size.model_dump_json() + "\n", encoding="utf-8")

    def restore_from(self, checkpoint: Path) -> None:
        """Continue with the choice of a checkpoint folder: another one would round otherwise."""
        if not (checkpoint / _FILE).is_file():
            return
        saved = StepSize.decode((checkpoint / _FILE).read_text(encoding="utf-8"))
        self.choice = next((each for each in self._allowed if each.size == saved), self.choice)

    def facts(self) -> dict[str, str]:
        """The choice and its reason, for the result."""
        size = self.choice.micro_batch_size
        if self._layout is Layout.PACKED:
            micro_batch = f"up to {size * self._training.max_length:,} tokens"
        else:
            micro_batch = f"{size} x {ceil(self._examples / size)} accumulated"
        asked, recomputed = self._training.micro_batch_size, self.choice.recomputed
        if asked == AUTO:
            free = f"{self._free / 2**30:.1f} GiB of free memory"
            micro_batch += f", {_AFTER_SHRINKING}" if self.has_shrunk else f", chosen for {free}"
        elif size < min(asked, self._examples):
            micro_batch += f", instead of {asked} because the GPU ran out of memory with more"
        if self.has_shrunk and self._training.gradient_checkpointing is GradientCheckpointing.AUTO:
            recomputed += f", {_AFTER_SHRINKING}"
        return {"microBatchSize": micro_batch, "gradientCheckpointing": recomputed}


def fit_step(
    parameters: Parameters,
    layout: Layout,
    model: "PreTrainedModel",
    held: Coverage | None,
    targets: Targets,
    lengths: Sequence[int],
    number_bytes: int,
    activations: Activations,
    reduced: StepSize | None,
    ranks: Ranks,
) -> StepFit:
    """Fit a step into the memory that is free now, on the rank that has the least.

    Args:
        parameters: of the run.
        layout: the layout in use.
        model: the base, loaded.
        held: what it holds in NF4; None for LoRA.
        targets: the layers that get an adapter.
        lengths: tokens of each training example.
        number_bytes: bytes of a number in the dtype of computation.
        activations: measured for it.
        reduced: the step size that an earlier attempt left when it ran out of memory.
        ranks: of the training: all make the same choice, and shrink it together.
    """
    training, config = parameters.training, model.config.get_text_config()
    adapter = estimate.adapter_bytes(parameters.lora.rank * targets.features, training.optimizer)

    def memory_of_step(tokens: int, recompute: int) -> int:
        dequantized = estimate.dequantized_bytes(held, number_bytes, recompute) if held else 0
        kept = activations.bytes_for(tokens, recompute, max(lengths))
        return adapter + kept + dequantized + estimate.logits_bytes(config.vocab_size, tokens)

    free = ranks.gather(loading.free_memory_bytes(model.device) // ranks.per_device)
    return StepFit(
        training,
        layout,
        Lengths.of(lengths),
        len(activations.layers),
        memory_of_step,
        int(min(each for (each,) in free)),
        reduced,
        can_recompute=model.supports_gradient_checkpointing,
        ranks=ranks.size,
    )


def micro_batch_sizes(training: TrainingSpec, examples: int) -> list[int]:
    """The micro-batch sizes that a training tries, largest first, if a process computes `examples` of a step."""
    size, sizes = examples if training.micro_batch_size == AUTO else min(training.micro_batch_size, examples), []
    while size:
        sizes.append(size)
        size //= 2
    return sizes


def _no_larger(choices: Sequence[Choice], size: StepSize) -> Sequence[Choice]:
    """The choices with no more examples and no more memory than one of this size."""
    most = max((each.bytes for each in choices if each.size == size), default=None)
    return [
        each
        for each in choices
        if each.micro_batch_size <= size.micro_batch_size and (most is None or each.bytes <= most)
    ]


def _cost(tokens: float, recompute: int, layers: int) -> float:
    share = ceil(layers / recompute) / layers if recompute and layers else float(bool(recompute))
    return (1 + _TOKENS_OF_OVERHEAD / min(tokens, TARGET_TOKENS)) * (1 + _COST_OF_RECOMPUTING * share)
