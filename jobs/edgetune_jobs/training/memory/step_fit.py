"""Fits a training step into memory: how many examples a forward pass takes, and which layers are recomputed.

Both change the time and the memory of a step, not its losses. Among the choices that fit, the fastest is

    time of a token = (1 + 430 / tokens of a forward pass) · (1 + 0.3 · share of recomputed layers)

where the first factor is the work of each forward pass whatever its size, above all dequantizing NF4: 5 % of a pass of
8,192 tokens, beyond which nothing is gained; and 0.3 is between the 20 % and 33 % that recomputing costs (torchtune's
and PyTorch's figures).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_contract.spec import Parameters
from edgetune_contract.training import AUTO, GradientCheckpointing, Layout, TrainingSpec
from edgetune_jobs.models import loading
from edgetune_jobs.models.quantization.coverage import Coverage
from edgetune_jobs.training.memory import estimate
from edgetune_jobs.training.memory.activations import Activations
from edgetune_jobs.training.recipe import Targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TARGET_TOKENS = 8192
_TOKENS_OF_OVERHEAD = 430
_COST_OF_RECOMPUTING = 0.3
# Every n-th layer is recomputed; 0 for none.
_RECOMPUTE = {
    GradientCheckpointing.AUTO: (0, 4, 2, 1),
    GradientCheckpointing.ALWAYS: (1,),
    GradientCheckpointing.NEVER: (0,),
}
# The rest is for fragmentation, libraries, and what the estimate does not know.
_USABLE_SHARE = 0.85
_FILE = "step_fit.json"

MemoryOfStep = Callable[[int, int], int]
"""(tokens of a forward pass, every how many layers one is recomputed) -> bytes besides the model."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of the training examples in tokens, after truncation."""

    longest: int
    mean: float

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Lengths":
        """Lengths of these examples, at least one."""
        return cls(max(lengths), sum(lengths) / len(lengths))


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
        reduced: int | None = None,
        can_recompute: bool = True,
    ) -> None:
        """
        Args:
            training: spec.training.
            layout: the layout in use.
            lengths: of the training examples.
            layers: number of the model's blocks.
            memory_of_step: estimate of a step's memory.
            free_bytes: memory that is free, with the model loaded.
            reduced: the micro-batch size that an earlier attempt left when it ran out of memory.
            can_recompute: whether the model supports gradient checkpointing.
        """
        self._training = training
        self._layout = layout
        self._free = free_bytes
        sizes = micro_batch_sizes(training, reduced)
        longest, mean = lengths.longest, lengths.mean
        if layout is Layout.PACKED:
            longest = mean = max(training.max_length, longest)
        self._choices = [
            Choice(size, recompute, memory_of_step(size * longest, recompute), _cost(size * mean, recompute, layers))
            for size in sizes
            for recompute in _RECOMPUTE[training.gradient_checkpointing]
            if can_recompute or not recompute or training.gradient_checkpointing is GradientCheckpointing.ALWAYS
        ]
        self._allowed = [
            each for each in self._choices if training.micro_batch_size == AUTO or each.micro_batch_size == sizes[0]
        ]
        self.choice = self._fastest()
        self.has_shrunk = sizes[0] < micro_batch_sizes(training)[0]

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
        choice = {"microBatchSize": self.choice.micro_batch_size, "recompute": self.choice.recompute}
        (checkpoint / _FILE).write_text(json.dumps(choice) + "\n", encoding="utf-8")

    def restore_from(self, checkpoint: Path) -> None:
        """Continue with the choice of a checkpoint folder: another one would round otherwise."""
        if not (checkpoint / _FILE).is_file():
            return
        saved = json.loads((checkpoint / _FILE).read_text(encoding="utf-8"))
        for each in self._allowed:
            if (each.micro_batch_size, each.recompute) == (saved["microBatchSize"], saved["recompute"]):
                self.choice = each

    def facts(self) -> dict[str, str]:
        """The choice and its reason, for the result."""
        batch, size = self._training.batch_size, self.choice.micro_batch_size
        if self._layout is Layout.PACKED:
            micro_batch = f"up to {size * self._training.max_length:,} tokens"
        else:
            micro_batch = f"{size} x {ceil(batch / size)} accumulated"
        asked = self._training.micro_batch_size
        if self.has_shrunk:
            instead = "" if asked == AUTO else f" instead of {asked}"
            micro_batch += f",{instead} because the GPU ran out of memory with more"
        elif asked == AUTO:
            micro_batch += f", chosen for {self._free / 2**30:.1f} GiB of free memory"
        return {"microBatchSize": micro_batch, "gradientCheckpointing": self.choice.recomputed}


def fit_step(
    parameters: Parameters,
    layout: Layout,
    model: "PreTrainedModel",
    held: Coverage | None,
    targets: Targets,
    lengths: Sequence[int],
    number_bytes: int,
    activations: Activations,
    reduced: int | None,
) -> StepFit:
    """Fit a step into the memory that is free now.

    Args:
        parameters: of the run.
        layout: the layout in use.
        model: the base, loaded.
        held: what it holds in NF4; None for LoRA.
        targets: the layers that get an adapter.
        lengths: tokens of each training example.
        number_bytes: bytes of a number in the dtype of computation.
        activations: measured for it.
        reduced: the micro-batch size that an earlier attempt left when it ran out of memory.
    """
    training, config = parameters.training, model.config.get_text_config()
    adapter = estimate.adapter_bytes(parameters.lora.rank * targets.features, training.optimizer)

    def memory_of_step(tokens: int, recompute: int) -> int:
        dequantized = estimate.dequantized_bytes(held, number_bytes, recompute) if held else 0
        kept = activations.bytes_for(tokens, recompute)
        return adapter + kept + dequantized + estimate.logits_bytes(config.vocab_size, tokens)

    return StepFit(
        training,
        layout,
        Lengths.of(lengths),
        len(activations.layers),
        memory_of_step,
        loading.free_memory_bytes(model.device),
        reduced,
        can_recompute=model.supports_gradient_checkpointing,
    )


def micro_batch_sizes(training: TrainingSpec, reduced: int | None = None) -> list[int]:
    """The micro-batch sizes that a training tries, largest first.

    Args:
        training: spec.training.
        reduced: the largest that is left after an earlier attempt ran out of memory.
    """
    largest = training.batch_size if training.micro_batch_size == AUTO else training.micro_batch_size
    size, sizes = min(largest, reduced or largest), []
    while size:
        sizes.append(size)
        size //= 2
    return sizes


def _cost(tokens: float, recompute: int, layers: int) -> float:
    share = ceil(layers / recompute) / layers if recompute and layers else float(bool(recompute))
    return (1 + _TOKENS_OF_OVERHEAD / min(tokens, TARGET_TOKENS)) * (1 + _COST_OF_RECOMPUTING * share)
