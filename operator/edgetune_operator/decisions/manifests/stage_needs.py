"""What a stage needs of its node, by the size of the model: memory and disk space, in bytes.

    train       with a GPU, CUDA and its libraries, and the tensors that transformers' four loading threads hold on
                their way to the GPU; without one, prepare's estimate (edgetune_jobs.training.memory.estimate) and half
                as much again
    merge,      four of the largest linear weights, and the pieces in flight: docs/benchmarks.md has 336 to 427 MB with
    quantize    a model of 2.02 GB, including 300 MB of libraries. A model that cannot be streamed is held about twice
                by the libraries (4,151 MB with the same model)
    evaluate    the largest of the models, one at a time, in 16 bits; GGUF on a CPU in 32 bits, twice while transformers
                unpacks it; the KV cache and the logits of one batch (edgetune_jobs.evaluation.inference bounds both).
                With a GPU, the same as train, and what is on the CPU nevertheless: GGUF once in 32 bits while
                transformers unpacks it, and models whose speed is measured, in 16 bits
    disk        the stage's input and output files; a model that is streamed is not on the disk

Every figure is an upper estimate. A CPU without BF16 computes in 32 bits, which the limits of a Job cover: they are
twice its requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from edgetune_contract.pipeline import outputs_of
from edgetune_contract.schema import LARGEST
from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_contract.stages import Stage

_GIB = 2**30
_LIBRARIES = _GIB
_CUDA_LIBRARIES = 4 * _GIB
_PIECES = _GIB // 2
_LOADING_THREADS = 4
_HELD_WEIGHTS = 4
_COPIES_BY_LIBRARY = 2.1
_TRAINING_MARGIN = 1.5

# The batches of evaluate: rows, tokens and logits.
_ROWS, _MOST_TOKENS, _MOST_LOGITS = 32, 2**14, 2**28
# In 16 bits, and twice in 32 bits: converted, and normalized by cross-entropy.
_LOGIT_BYTES = 2 + 4 + 4

# Tokenizers, logs and temporary files.
_SMALL_FILES = _GIB
# Of a row's token as text, as its number, and both again in the cache of the training library.
_ROW_TOKEN_BYTES = 32
# An adapter has 32 bits per parameter; a checkpoint has as much again twice for its optimizer.
_ADAPTER_BYTES, _CHECKPOINT_BYTES = 4, 12
_LOCAL_CHECKPOINTS = 2


@dataclass(frozen=True)
class Need:
    """What a stage needs, in bytes."""

    memory: int
    storage: int


@dataclass(frozen=True)
class ModelShape:
    """The base and the data as prepare found them."""

    bytes: int
    parameters: int
    largest_tensor: int
    """In bytes, as stored."""

    largest_linear: int
    """The largest weight of a linear layer in bytes, as stored."""

    cache_per_token: int
    """KV cache of one token, in bytes."""

    vocabulary: int
    streamed: int
    """1 if merge and quantize read the model tensor by tensor, 0 if the libraries load it."""

    adapter_parameters: int
    training_bytes: int
    """Estimated memory of the training on the device that trains."""

    train_tokens: int
    longest: int
    """Tokens of the longest row."""

    @classmethod
    def of(cls, prepared: Mapping[str, float]) -> Self | None:
        """The shape by the metrics of prepare; None if they do not have it, such as those of an older release."""
        found = [prepared.get(name) for name in METRICS]
        values = [min(max(int(value), 0), LARGEST) for value in found if value is not None]
        return cls(*values) if len(values) == len(METRICS) else None


METRICS = (
    "baseBytes",
    "baseParameters",
    "largestTensorBytes",
    "largestLinearBytes",
    "cacheBytesPerToken",
    "vocabulary",
    "streamed",
    "expectedTrainableParameters",
    "estimatedTrainingBytes",
    "trainTokens",
    "tokensMax",
)
"""Metrics of prepare, in the order of the fields of ModelShape."""


def need_of(stage: Stage, shape: ModelShape, parameters: Parameters, *, has_gpu: bool) -> Need | None:
    """What a stage needs; None for prepare and publish, which hold no weights."""
    match stage:
        case Stage.TRAIN:
            return Need(_train_memory(shape, has_gpu=has_gpu), _train_storage(shape))
        case Stage.MERGE | Stage.QUANTIZE:
            return Need(_weights_memory(shape), _weights_storage(stage, shape, parameters))
        case Stage.EVALUATE:
            return Need(_evaluate_memory(shape, parameters, has_gpu=has_gpu), _evaluate_storage(shape, parameters))
    return None


def _train_memory(shape: ModelShape, *, has_gpu: bool) -> int:
    return _gpu_host_memory(shape) if has_gpu else _LIBRARIES + round(_TRAINING_MARGIN * shape.training_bytes)


def _gpu_host_memory(shape: ModelShape) -> int:
    return _CUDA_LIBRARIES + _LOADING_THREADS * shape.largest_tensor


def _train_storage(shape: ModelShape) -> int:
    checkpoints = _LOCAL_CHECKPOINTS * _CHECKPOINT_BYTES * shape.adapter_parameters
    return _SMALL_FILES + shape.bytes + _rows(shape) + checkpoints + _ADAPTER_BYTES * shape.adapter_parameters


def _weights_memory(shape: ModelShape) -> int:
    if shape.streamed:
        return _LIBRARIES + _PIECES + _HELD_WEIGHTS * shape.largest_linear
    return _LIBRARIES + round(_COPIES_BY_LIBRARY * shape.bytes)


def _weights_storage(stage: Stage, shape: ModelShape, parameters: Parameters) -> int:
    adapter = _ADAPTER_BYTES * shape.adapter_parameters
    if shape.streamed:
        return _SMALL_FILES + adapter
    # quantize may also write the model that the libraries merged.
    copies = 1 + len(outputs_of(stage, parameters)) + (stage is Stage.QUANTIZE)
    return _SMALL_FILES + adapter + copies * shape.bytes


def _evaluate_memory(shape: ModelShape, parameters: Parameters, *, has_gpu: bool) -> int:
    has_gguf = EdgeFormat.GGUF_Q8_0 in parameters.quantization.formats
    is_measured = parameters.evaluation.edge is not None
    # Speed is measured in a process of its own.
    measuring = is_measured * _LIBRARIES
    if has_gpu:
        on_cpu = 4 if has_gguf else 2 * is_measured
        return _gpu_host_memory(shape) + measuring + on_cpu * shape.parameters
    weights = shape.parameters * (8 if has_gguf else 2) + 2 * shape.largest_tensor
    longest = min(shape.longest, parameters.training.max_length)
    tokens = min(_MOST_TOKENS, _ROWS * (longest + parameters.evaluation.max_new_tokens))
    logits = min(_MOST_LOGITS, _ROWS * longest * shape.vocabulary)
    batch = max(tokens * shape.cache_per_token, logits * _LOGIT_BYTES)  # answers and losses are computed in turn
    return _LIBRARIES + measuring + weights + batch + _ADAPTER_BYTES * shape.adapter_parameters


def _evaluate_storage(shape: ModelShape, parameters: Parameters) -> int:
    # No copy of the model is larger than the base: an edge model has at most its 16 bits for each weight.
    models = 1 + parameters.merge.keep + len(parameters.quantization.formats)
    return _SMALL_FILES + models * shape.bytes + _rows(shape) + _ADAPTER_BYTES * shape.adapter_parameters


def _rows(shape: ModelShape) -> int:
    return _ROW_TOKEN_BYTES * shape.train_tokens
