"""Warnings about settings that have no effect, or together less than they promise."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

from edgetune_contract.results.candidates import AUTO_FORMATS
from edgetune_contract.spec import DatasetSpec, EdgeFormat, MergeBase, Method, QuantizationSpec
from edgetune_contract.training import TrainingSpec
from edgetune_operator.api.spec import LoraFineTuneSpec

# Updates of Adam have about the size of the rate: below, a thousand steps change no weight by more than 0.0001.
_SMALL_RATE = 1e-7
_USUAL_RATES = "0.00001 to 0.001"

_DEFAULTS = TrainingSpec()
_DEFAULT_THRESHOLD = QuantizationSpec().outlier_threshold
_DEFAULT_SPLIT = DatasetSpec.model_fields["eval_split_percent"].default


def spec_warnings(spec: LoraFineTuneSpec, prepared: Mapping[str, float]) -> tuple[str, ...]:
    """Warnings for the status, the plan and a run, each with the path of the field.

    Args:
        spec: of the object.
        prepared: metrics of prepare, which count the rows; empty if it has not finished.
    """
    warnings = [*_unused_fields(spec)]
    if spec.training.learning_rate < _SMALL_RATE:
        warnings.append(
            f"spec.training.learningRate {spec.training.learning_rate:g} leaves the adapter nearly unchanged; LoRA "
            f"usually needs {_USUAL_RATES}"
        )
    length = _Length.of(spec, prepared)
    if length is not None:
        warnings += _about_rows(spec.training, length)
    steps = spec.training.max_steps or (length.steps if length else None)
    if steps is not None:
        warnings += _about_steps(spec.training, steps)
    scored, found = spec.evaluation.max_examples, int(prepared.get("evalExamples", 0))
    if scored < found:
        warnings.append(f"spec.evaluation.maxExamples: {scored:,} of {found:,} evaluation rows are scored")
    return tuple(warnings)


@dataclass(frozen=True)
class _Length:
    """The length of a training, as transformers computes it."""

    rows: int
    """Training examples."""

    steps: int

    @classmethod
    def of(cls, spec: LoraFineTuneSpec, prepared: Mapping[str, float]) -> "_Length | None":
        if not prepared.get("trainExamples"):
            return None
        training, rows = spec.training, int(prepared["trainExamples"])
        return cls(rows, training.max_steps or ceil(training.epochs * ceil(rows / training.batch_size)))


def _unused_fields(spec: LoraFineTuneSpec) -> Iterator[str]:
    training, dataset, quantization = spec.training, spec.dataset, spec.quantization
    if training.scheduler == "constant" and training.warmup_ratio not in (0, _DEFAULTS.warmup_ratio):
        yield "spec.training.warmupRatio has no effect with scheduler: constant; use constant_with_warmup"
    if training.max_steps is not None and training.epochs != _DEFAULTS.epochs:
        yield "spec.training.epochs has no effect, because maxSteps overrides it; remove one of them"
    if dataset.eval is not None and dataset.eval_split_percent != _DEFAULT_SPLIT:
        yield "spec.dataset.evalSplitPercent has no effect, because spec.dataset.eval has the evaluation rows"
    if spec.method is Method.LORA and spec.merge.base is MergeBase.ORIGINAL:
        yield "spec.merge.base has no effect with method: LoRA, which trains on the original base"
    if (
        EdgeFormat.BITSANDBYTES_INT8 not in (quantization.formats or AUTO_FORMATS)
        and quantization.outlier_threshold != _DEFAULT_THRESHOLD
    ):
        yield "spec.quantization.outlierThreshold has no effect without the format BitsAndBytesInt8"
    if quantization.importance_matrix and not quantization.needs_rows:
        yield "spec.quantization.importanceMatrix has no effect without GGUF-Q6_K, GGUF-Q5_K_M or GGUF-Q4_K_M"


def _about_rows(training: TrainingSpec, length: _Length) -> Iterator[str]:
    rows, batch = length.rows, training.batch_size
    trained = length.steps * batch
    if batch > rows:
        yield (
            f"spec.training.batchSize {batch:,} is more than the {rows:,} training examples: each step trains on all "
            "of them, and an epoch is one step; lower batchSize"
        )
    if training.max_steps is not None and trained < rows:
        yield (
            f"spec.training.maxSteps {training.max_steps:,} with batchSize {batch:,} trains on {trained:,} of {rows:,} "
            "training examples; the others are not used"
        )
    if training.max_steps is None and training.epochs * ceil(rows / batch) < 1:
        yield (
            f"spec.training.epochs {training.epochs:g} of {rows:,} training examples is less than one step of "
            f"batchSize {batch:,}: one step is trained"
        )


def _about_steps(training: TrainingSpec, steps: int) -> Iterator[str]:
    if steps == 1:
        yield "spec.training: the training has one step; for more, raise epochs or maxSteps, or lower batchSize"
    every = training.checkpoint.every_steps
    if every >= steps > _DEFAULTS.checkpoint.every_steps:
        yield (
            f"spec.training.checkpoint.everySteps {every:,} is not less than the {steps:,} steps of the training: a "
            "killed training begins again"
        )
    evaluation = training.evaluation
    if evaluation is None:
        return
    if evaluation.every_steps > steps:
        yield (
            f"spec.training.evaluation.everySteps {evaluation.every_steps:,} is more than the {steps:,} steps of the "
            "training: only the last step is evaluated"
        )
    elif evaluation.patience is not None and (evaluation.patience + 1) * evaluation.every_steps >= steps:
        yield (
            f"spec.training.evaluation.patience {evaluation.patience:,} has no effect: with everySteps "
            f"{evaluation.every_steps:,}, the training of {steps:,} steps ends first"
        )
