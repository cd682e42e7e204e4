"""Which GPU memory a training fits into, by the choices that it will make there itself (see `step_fit`)."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from typing import Any

from edgetune_contract.spec import Method
from edgetune_contract.training import GradientCheckpointing, Optimizer
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.training.memory.estimate import TrainingMemory, Workload
from edgetune_jobs.training.memory.step_fit import Choice, Lengths, StepFit

GIB = 2**30
COMMON_GPU_BYTES = tuple(size * GIB for size in (16, 24, 40, 48, 80, 141))
LIBRARY_BYTES = GIB
"""What CUDA's context and libraries take on a GPU at most; the least is half of it."""

_LEAST_LIBRARY_BYTES = LIBRARY_BYTES // 2
_SMALL_OPTIMIZER: Optimizer = "paged_adamw_8bit"
_LENGTH_STEP = 64


@dataclass(frozen=True)
class GpuFit:
    """How a training fits into one size of GPU memory."""

    gpu_bytes: int
    choice: Choice
    """How the training would compute a step there: the fastest way that fits, not the most examples."""

    total: int
    """Estimated memory of this choice with the libraries, in bytes."""

    largest: int
    """The largest micro-batch size that fits, with 15 % of the free memory to spare; 0 if none does."""

    is_possible: bool
    """Whether the smallest step fits at all."""

    @property
    def largest_or_less(self) -> str:
        """The largest micro-batch size: 4, "1 (tight)" if nothing is to spare, or "none"."""
        if not self.is_possible:
            return "none"
        return str(self.largest or f"{self.choice.micro_batch_size} (tight)")

    def described(self) -> dict[str, Any]:
        """The fit as JSON; without a choice if none is possible."""
        choice = {
            "microBatchSize": self.choice.micro_batch_size,
            "recomputed": self.choice.recomputed,
            "estimatedBytes": self.total,
        }
        head = {"gpuBytes": self.gpu_bytes, "fits": self.is_possible}
        return {**head, "largestMicroBatchSize": self.largest, "chosen": choice} if self.is_possible else head


def fit_gpu(workload: Workload, mean: float, gpu_bytes: int) -> GpuFit:
    """Fit a training into a GPU that is otherwise empty.

    Args:
        workload: the training.
        mean: mean length of the training examples in tokens, after truncation.
        gpu_bytes: memory of the GPU.
    """
    training = workload.parameters.training
    resident = workload.memory(0, 1).base + workload.adapter_weights_bytes + LIBRARY_BYTES

    def memory_of_step(tokens: int, recompute: int) -> int:
        return workload.memory(tokens, recompute).total + LIBRARY_BYTES - resident

    fit = StepFit(
        training,
        training.layout,
        Lengths(workload.longest, mean),
        len(workload.activations.layers),
        memory_of_step,
        max(gpu_bytes - resident, 0),
    )
    while not fit.fits and fit.shrink():
        pass  # as training does when it runs out of memory
    total = resident + fit.choice.bytes
    return GpuFit(gpu_bytes, fit.choice, total, fit.largest, is_possible=least_bytes(workload) <= gpu_bytes)


def common_fits(workload: Workload, mean: float, gpu_bytes: int | None = None) -> Sequence[GpuFit]:
    """Fits into the common sizes of GPU memory, and into `gpu_bytes` if it is known, by size."""
    sizes = {*COMMON_GPU_BYTES, *(() if gpu_bytes is None else (gpu_bytes,))}
    return [fit_gpu(workload, mean, size) for size in sorted(sizes)]


def least_bytes(workload: Workload) -> int:
    """Memory below which no step fits, with the libraries: one example in a forward pass, also if the spec says more,
    because a training that runs out of memory halves its micro-batch."""
    return _smallest(workload).total + _LEAST_LIBRARY_BYTES


def largest_base(workload: Workload, gpu_bytes: int) -> int | None:
    """Parameters of the largest base in NF4 that fits: one like this with more or fewer layers, and its adapter.

    Several GPUs change nothing: each holds the whole model.

    Args:
        workload: the training.
        gpu_bytes: memory of each GPU.

    Returns:
        The estimate; None if there is none, because the activations are not known, or nothing of the base is quantized.
    """
    if not workload.activations.is_measured or not workload.coverage.quantized:
        return None
    memory = _smallest(_changed_method(workload))
    fixed = memory.logits + memory.dequantized + _LEAST_LIBRARY_BYTES
    return max(0, round(workload.base.parameters * (gpu_bytes - fixed) / (memory.total + _LEAST_LIBRARY_BYTES - fixed)))


def describe_largest_base(workload: Workload, gpu_bytes: int) -> str:
    """The largest base that fits, such as "about 63 billion parameters in NF4 fit 40 GiB"; empty if it is not known."""
    parameters = largest_base(workload, gpu_bytes)
    if not parameters:
        return ""
    unit, name = (10**9, "billion") if parameters >= 10**9 else (10**6, "million")
    return f"about {float(f'{parameters / unit:.2g}'):g} {name} parameters in NF4 fit {format_gib(gpu_bytes)}"


def check_gpu(workload: Workload, gpu_bytes: int, given_by: str = "gpuMemory in the profile") -> None:
    """Refuse a training that cannot fit into the GPU's memory.

    Nothing is refused if the activations could not be measured, because their bound may be too high.

    Args:
        workload: the training.
        gpu_bytes: memory of the GPU.
        given_by: where that is set, for the message.

    Raises:
        InvalidInput: not even one example fits; the message has the smallest change with which one does.
    """
    least = least_bytes(workload)
    if least <= gpu_bytes or not workload.activations.is_measured:
        return
    memory = _smallest(workload)
    raise InvalidInput(
        f"spec.training needs at least {format_gib(least)} of GPU memory for examples of "
        f"{workload.tokens_of_example:,} tokens ({_largest_parts(memory)}), and the GPU has {format_gib(gpu_bytes)} "
        f"({given_by}): {_advice(workload, gpu_bytes)}"
    )


def format_gib(count: int) -> str:
    """Bytes in GiB, such as 23.5 GiB."""
    return f"{count / GIB:.1f}".removesuffix(".0") + " GiB"


def _smallest(workload: Workload) -> TrainingMemory:
    return _changed(workload, "training", micro_batch_size=1).least()


def _largest_parts(memory: TrainingMemory) -> str:
    parts = {
        "the base model": memory.base + memory.dequantized,
        "adapter and optimizer": memory.adapter + memory.optimizer,
        "activations and logits": memory.activations + memory.logits,
        "CUDA's libraries": _LEAST_LIBRARY_BYTES,
    }
    return ", ".join(f"{name} {format_gib(count)}" for name, count in parts.items())


def _advice(workload: Workload, gpu_bytes: int) -> str:
    larger = f"a profile whose GPU has {format_gib(_rounded_up(least_bytes(workload)))} or more"
    changes = _smallest_changes(workload, gpu_bytes)
    if not changes:
        limit = describe_largest_base(workload, gpu_bytes)
        smaller = f"a smaller base model ({limit})" if limit else "a smaller base model"
        return f"use {larger}, or {smaller}; several GPUs make no larger model fit, because each holds all of it"
    return f"set {' and '.join(changes)}, or use {larger}"


def _rounded_up(count: int) -> int:
    """The smallest common GPU memory that is enough, otherwise the next whole GiB."""
    return next((size for size in COMMON_GPU_BYTES if size >= count), -(-count // GIB) * GIB)


def _smallest_changes(workload: Workload, gpu_bytes: int) -> Sequence[str]:
    """The fewest changes that are enough, those that keep the examples whole first; none if all are not enough."""

    def shorten(workload: Workload) -> tuple[str, Workload] | None:
        length = _longest_that_fits(workload, gpu_bytes)
        return (f"spec.training.maxLength to {length}", _shortened(workload, length)) if length else None

    lossless = [each for number in range(1, 4) for each in combinations((_recompute, _optimize, _quantize), number)]
    for changes in (*lossless, (shorten,), *((*each, shorten) for each in lossless)):
        changed, texts = workload, []
        for change in changes:
            if (found := change(changed)) is None:
                break
            texts.append(found[0])
            changed = found[1]
        if len(texts) == len(changes) and least_bytes(changed) <= gpu_bytes:
            return texts
    return []


def _recompute(workload: Workload) -> tuple[str, Workload] | None:
    if workload.parameters.training.gradient_checkpointing is not GradientCheckpointing.NEVER:
        return None
    changed = _changed(workload, "training", gradient_checkpointing=GradientCheckpointing.AUTO)
    return "spec.training.gradientCheckpointing to Auto", changed


def _optimize(workload: Workload) -> tuple[str, Workload] | None:
    changed = _changed(workload, "training", optimizer=_SMALL_OPTIMIZER)
    is_smaller = changed.least().optimizer < workload.least().optimizer
    return (f"spec.training.optimizer to {_SMALL_OPTIMIZER}", changed) if is_smaller else None


def _quantize(workload: Workload) -> tuple[str, Workload] | None:
    if workload.parameters.method is Method.QLORA or not workload.coverage.quantized:
        return None
    return "spec.method to QLoRA", _changed_method(workload)


def _changed_method(workload: Workload) -> Workload:
    return replace(workload, parameters=_with(workload.parameters, method=Method.QLORA))


def _longest_that_fits(workload: Workload, gpu_bytes: int) -> int:
    """The largest maxLength with which one example fits, in steps of 64; 0 if none does."""
    lengths = range(_LENGTH_STEP, workload.tokens_of_example, _LENGTH_STEP)
    fitting = bisect_left(lengths, True, key=lambda length: least_bytes(_shortened(workload, length)) > gpu_bytes)
    return lengths[fitting - 1] if fitting else 0


def _shortened(workload: Workload, length: int) -> Workload:
    return replace(_changed(workload, "training", max_length=length), longest=min(workload.longest, length))


def _changed(workload: Workload, field: str, **values: Any) -> Workload:
    part = _with(getattr(workload.parameters, field), **values)
    return replace(workload, parameters=_with(workload.parameters, **{field: part}))


def _with(model: Any, **values: Any) -> Any:
    return model.model_copy(update=values)


def describe_fits(fits: Sequence[GpuFit]) -> str:
    """Micro-batch sizes by GPU memory, such as "none in 16 GiB, 4 from 24 GiB, 16 from 48 GiB"."""
    words = []
    for size, group in groupby(fits, lambda fit: fit.largest_or_less):
        first = next(group)
        words.append(f"{size} {'from' if first.is_possible else 'in'} {format_gib(first.gpu_bytes)}")
    return ", ".join(words)
