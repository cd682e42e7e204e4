"""What a stage needs of its node, by the size of the model: memory and disk space, in bytes.

    train       for each GPU, CUDA and its libraries, and the tensors that transformers' four loading threads hold on
                their way to the GPU; without one, prepare's estimate (edgetune_jobs.training.memory.estimate) and half
                as much again
    merge,      four of the largest linear weights, and the pieces in flight: docs/benchmarks.md has 336 to 427 MB with
    quantize    a model of 2.02 GB, including 300 MB of libraries. A model that cannot be streamed is held about twice
                by the libraries (4,151 MB with the same model). llama.cpp makes K-quants in a process of its own, with
                at most 64 MiB of rows at once; for an importance matrix, the activations of 2,048 tokens
                and the embedding, while it is read
    evaluate    the largest of the models, one at a time, in 16 bits; GGUF on a CPU in 32 bits, twice while transformers
                unpacks it, but not K-quants; the KV cache and the logits of one batch
                (edgetune_jobs.evaluation.inference bounds both). With a GPU, the same as train, and what is on the CPU
                nevertheless: GGUF once in 32 bits while transformers unpacks it, and models whose speed is measured,
                in 16 bits. On the GPU, a model in 16 bits, also where training holds it in NF4
    disk        the stage's input and output files; a model that is streamed is not on the disk, but llama.cpp reads
                what it quantizes from the disk, and writes one K-quant at a time there

Every figure is an upper estimate. A CPU without BF16 computes in 32 bits, which the limits of a Job cover: they are
twice its requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from edgetune_contract.evaluation import ScoredModel
from edgetune_contract.pipeline import outputs_of
from edgetune_contract.results.candidates import AUTO_FORMATS
from edgetune_contract.schema import LARGEST
from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_contract.stages import Stage

_GIB = 2**30
_LIBRARIES = _GIB
_CUDA_LIBRARIES = 4 * _GIB
_LEAST_ON_GPU = _GIB // 2
_PIECES = _GIB // 2
_LOADING_THREADS = 4
_HELD_WEIGHTS = 4
_COPIES_BY_LIBRARY = 2.1
_QUANTIZER = _GIB // 2
# The activations of 2,048 tokens are at most as large as a linear layer with as many rows.
_HELD_ACTIVATIONS = 4
# Its source, and its output: at most 8.5 of 16 bits, for rows that are too narrow for K-quants.
_COPIES_BY_QUANTIZER = 1.6
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
    gpu_memory: int = 0
    """Of evaluate's GPU, at least; 0 without one. The least memory of train's is checked by prepare."""


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


def need_of(stage: Stage, shape: ModelShape, parameters: Parameters, *, gpus: int) -> Need | None:
    """What a stage with this number of GPUs needs; None for prepare and publish, which hold no weights."""
    match stage:
        case Stage.TRAIN:
            return Need(_train_memory(shape, gpus), _train_storage(shape))
        case Stage.MERGE | Stage.QUANTIZE:
            return Need(_weights_memory(stage, shape, parameters), _weights_storage(stage, shape, parameters))
        case Stage.EVALUATE:
            return Need(
                _evaluate_memory(shape, parameters, gpus),
                _evaluate_storage(shape, parameters),
                _evaluate_gpu_memory(shape, parameters) if gpus else 0,
            )
    return None


def _train_memory(shape: ModelShape, gpus: int) -> int:
    return gpus * _gpu_host_memory(shape) if gpus else _LIBRARIES + round(_TRAINING_MARGIN * shape.training_bytes)


def _gpu_host_memory(shape: ModelShape) -> int:
    return _CUDA_LIBRARIES + _LOADING_THREADS * shape.largest_tensor


def _train_storage(shape: ModelShape) -> int:
    checkpoints = _LOCAL_CHECKPOINTS * _CHECKPOINT_BYTES * shape.adapter_parameters
    return _SMALL_FILES + shape.bytes + _rows(shape) + checkpoints + _ADAPTER_BYTES * shape.adapter_parameters


def _weights_memory(stage: Stage, shape: ModelShape, parameters: Parameters) -> int:
    libraries = _LIBRARIES + _QUANTIZER * _needs_quantizer(stage, parameters)
    if stage is Stage.QUANTIZE and parameters.quantization.needs_rows:
        libraries += _HELD_ACTIVATIONS * shape.largest_linear + 2 * shape.largest_tensor
    if shape.streamed:
        return libraries + _PIECES + _HELD_WEIGHTS * shape.largest_linear
    return libraries + round(_COPIES_BY_LIBRARY * shape.bytes)


def _weights_storage(stage: Stage, shape: ModelShape, parameters: Parameters) -> int:
    needed = _SMALL_FILES + _ADAPTER_BYTES * shape.adapter_parameters
    needed += round(_COPIES_BY_QUANTIZER * shape.bytes) * _needs_quantizer(stage, parameters)
    if shape.streamed:
        return needed
    # quantize may also write the model that the libraries merged.
    copies = 1 + len(outputs_of(stage, parameters, AUTO_FORMATS)) + (stage is Stage.QUANTIZE)
    return needed + copies * shape.bytes


def _needs_quantizer(stage: Stage, parameters: Parameters) -> bool:
    """Whether llama.cpp makes a format in this stage."""
    return stage is Stage.QUANTIZE and any(each.is_k_quant for each in _formats(parameters))


_GGUF = (*(each for each in EdgeFormat if each.file_type is not None), EdgeFormat.GGUF_LORA)


def _evaluate_memory(shape: ModelShape, parameters: Parameters, gpus: int) -> int:
    gguf = [each for each in _formats(parameters) if each in _GGUF]
    is_measured = parameters.evaluation.edge is not None
    # Speed is measured in a process of its own.
    measuring = is_measured * _LIBRARIES
    if gpus:
        on_cpu = 4 if gguf else 2 * is_measured
        # With several GPUs, each has a process of its own beside that of the stage.
        processes = gpus * _gpu_host_memory(shape) + _CUDA_LIBRARIES * (gpus > 1)
        return processes + measuring + on_cpu * shape.parameters
    # llama.cpp, which has written a K-quant, reads it too.
    is_unpacked = any(not each.is_k_quant for each in gguf)
    weights = shape.parameters * (8 if is_unpacked else 2) + 2 * shape.largest_tensor
    longest = min(shape.longest, parameters.training.max_length)
    tokens = min(_MOST_TOKENS, _ROWS * (longest + parameters.evaluation.max_new_tokens))
    logits = min(_MOST_LOGITS, _ROWS * longest * shape.vocabulary)
    batch = max(tokens * shape.cache_per_token, logits * _LOGIT_BYTES)  # answers and losses are computed in turn
    return _LIBRARIES + measuring + weights + batch + _ADAPTER_BYTES * shape.adapter_parameters


def _evaluate_gpu_memory(shape: ModelShape, parameters: Parameters) -> int:
    """Of one row, to which evaluate halves its batches."""
    is_in_16_bits = any(scored is not ScoredModel.EDGE for scored in parameters.evaluation.models) or any(
        each is not EdgeFormat.BITSANDBYTES_INT8 for each in _formats(parameters)
    )
    weights = shape.parameters * (2 if is_in_16_bits else 1)
    longest = min(shape.longest, parameters.training.max_length)
    return _LEAST_ON_GPU + weights + max(longest * shape.cache_per_token, longest * shape.vocabulary * _LOGIT_BYTES)


def _evaluate_storage(shape: ModelShape, parameters: Parameters) -> int:
    # No copy of the model is larger than the base: an edge model has at most its 16 bits for each weight.
    # Candidates of formats Auto are on the disk one at a time.
    models = 1 + parameters.merge.keep + max(1, len(parameters.quantization.formats))
    return _SMALL_FILES + models * shape.bytes + _rows(shape) + _ADAPTER_BYTES * shape.adapter_parameters


def _formats(parameters: Parameters) -> tuple[EdgeFormat, ...]:
    """The formats of the spec; with formats Auto all that may be among the candidates."""
    return parameters.quantization.formats or AUTO_FORMATS


def _rows(shape: ModelShape) -> int:
    return _ROW_TOKEN_BYTES * shape.train_tokens
