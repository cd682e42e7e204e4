"""The results of prepare: metrics for the status, and details for report.json."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from edgetune_contract.spec import Parameters
from edgetune_jobs.data.token_lengths import TokenCount
from edgetune_jobs.models.inspection import BaseModel
from edgetune_jobs.stage import LARGEST_BASE
from edgetune_jobs.training.memory.estimate import Workload
from edgetune_jobs.training.memory.gpu_fit import GpuFit, describe_fits, describe_largest_base


@dataclass(frozen=True)
class Preparation:
    """Everything that prepare measured."""

    workload: Workload
    text_part_of: str | None
    """Architecture of the multimodal model whose text part the base is; None for a text model."""

    train_rows: int
    """Conversations can be several training examples each."""

    train: TokenCount
    evaluation: TokenCount
    is_split_off: bool
    """Whether evaluation rows are split off from the training rows."""

    is_streamed: bool
    """Whether merge and quantize read the base tensor by tensor."""

    fits: Sequence[GpuFit]
    """How the training fits into GPU memories."""

    gpu_bytes: int | None
    """Memory of the GPU that train will have; None if it is not known."""

    warnings: Sequence[str]

    @property
    def parameters(self) -> Parameters:
        """Of the run."""
        return self.workload.parameters

    @property
    def base(self) -> BaseModel:
        """The base model."""
        return self.workload.base

    def metrics(self) -> dict[str, float]:
        """The main figures; lengths are in tokens, before truncation."""
        lengths = self.train.lengths
        percentiles = lengths.percentiles(50, 90, 99)
        return {
            **base_figures(self.base, is_streamed=self.is_streamed),
            **training_figures(self.workload),
            "trainRows": self.train_rows,
            "trainExamples": self.train.examples,
            "evalExamples": self.evaluation.examples,
            "trainTokens": self.train.kept,
            "truncatedShare": round(lengths.truncated_share, 4),
            "tokensP50": percentiles["p50"],
            "tokensP90": percentiles["p90"],
            "tokensP99": percentiles["p99"],
            "tokensMax": lengths.longest,
        }

    def facts(self) -> dict[str, str]:
        """The base's architecture, that of the multimodal model that it is a part of, and what fits into a GPU."""
        return {**self._architecture, **training_facts(self.workload, self.fits, self.gpu_bytes)}

    @property
    def _architecture(self) -> dict[str, str]:
        whole = {} if self.text_part_of is None else {"textPartOf": self.text_part_of}
        return {"architecture": self.base.architecture, **whole}

    def report(self) -> dict[str, object]:
        """The content of report.json."""
        dataset, training = self.parameters.dataset, self.parameters.training
        targets, memory = self.workload.targets, self.workload.least()
        split = {"percent": dataset.eval_split_percent, "seed": training.seed} if self.is_split_off else None
        return {
            "base": {
                **self._architecture,
                "parameters": self.base.parameters,
                "bytes": self.base.bytes,
            },
            "adapter": {
                "layers": len(targets),
                "modules": sorted({layer.short_name for layer in targets}),
                "trainableParameters": self.workload.trainable_parameters,
            },
            "maxLength": training.max_length,
            "train": _described(self.train),
            "eval": _described(self.evaluation),
            "split": split,
            "estimatedTrainingBytes": {**asdict(memory), "total": memory.total},
            "gpus": [fit.described() for fit in self.fits],
            "warnings": list(self.warnings),
        }


def base_figures(base: BaseModel, *, is_streamed: bool) -> dict[str, float]:
    """The figures from which the operator derives the memory and disk space of later stages."""
    return {
        "baseBytes": base.bytes,
        "baseParameters": base.parameters,
        "largestTensorBytes": base.largest_tensor_bytes,
        "largestLinearBytes": base.largest_linear_bytes,
        "cacheBytesPerToken": base.cache_bytes_per_token,
        "vocabulary": base.vocabulary or 0,
        "streamed": is_streamed,
    }


def training_figures(workload: Workload) -> dict[str, float]:
    """The figures that depend on training and lora options, not only on the rows."""
    return {
        "expectedTrainableParameters": workload.trainable_parameters,
        "estimatedTrainingBytes": workload.least().total,
    }


def training_facts(workload: Workload, fits: Sequence[GpuFit], gpu_bytes: int | None) -> dict[str, str]:
    """What depends on them in words: the micro-batch size by GPU memory, whether its estimate is measured, and the
    largest base that fits the GPU of the profile, if that is known."""
    largest = "" if gpu_bytes is None else describe_largest_base(workload, gpu_bytes)
    return {
        "microBatchSizes": describe_fits(fits),
        "activations": workload.activations.described,
        **({LARGEST_BASE: largest} if largest else {}),
    }


def bound_warning(workload: Workload) -> list[str]:
    """A warning about an estimate by a bound, which is not used to refuse anything."""
    if workload.activations.is_measured:
        return []
    return [
        f"the activations of {workload.base.architecture} could not be measured ({workload.activations.problem}): the "
        "estimate of the GPU memory is an upper bound, and whether the training fits is not checked"
    ]


def _described(tokens: TokenCount) -> dict[str, object]:
    lengths = tokens.lengths
    return {
        "examples": tokens.examples,
        "tokens": tokens.kept,
        "truncated": lengths.truncated,
        "truncatedShare": round(lengths.truncated_share, 4),
        "lengths": {**lengths.percentiles(50, 90, 99), "max": lengths.longest},
        "histogram": lengths.histogram(),
    }
