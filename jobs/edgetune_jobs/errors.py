"""Errors that end a stage: each class has its exit code.

    StageError
    ├── InvalidInput        10  the request or the data is invalid
    ├── AccessDenied        11  access denied, or licence not accepted
    ├── OutOfGpuMemory      12  the next attempt halves the micro-batch
    ├── TrainingDiverged    13  loss not finite
    ├── TransientError      14  network, store, disk: another attempt may succeed
    │   └── PeerLost            another process of the training has ended or does not answer
    ├── Interrupted         75  stopped by SIGTERM; the checkpoint is in the store
    └── NodeLost            76  another node of the training failed, was stopped or is gone

A message says what happened, where, and what to do.
"""

import re
import traceback
from typing import ClassVar

from edgetune_contract.stages import ExitCode

BASE_FIELD = "spec.baseModel"
"""Field that messages about the base model name."""

# For messages about missing output of an earlier stage.
HOW_TO_RETRY = "ask for a retry (annotation edgetune.dev/retry-requested, or run the command again)"

# For messages about weights that are too large after training.
HOW_TO_TRAIN_SMALLER_WEIGHTS = "train with a lower spec.training.learningRate or spec.lora.alpha"

# These are not torch.OutOfMemoryError. CUDA, its driver, Triton and NCCL each have words of their own; CUDA's libraries
# have statuses for when they allocate memory.
_OUT_OF_GPU_MEMORY = re.compile(
    r"\b(CUDA|HIP|NCCL|Triton)\b.*out of memory|\b(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_ALLOC_FAILED",
    re.IGNORECASE | re.DOTALL,
)


class StageError(Exception):
    """A stage cannot finish; the subclass decides the exit code."""

    exit_code: ClassVar[ExitCode]


class InvalidInput(StageError):
    """The request or the data is invalid: another attempt would fail the same way."""

    exit_code = ExitCode.INVALID


class AccessDenied(StageError):
    """The store or the hub rejects these credentials."""

    exit_code = ExitCode.DENIED


class OutOfGpuMemory(StageError):
    """The micro-batch does not fit into GPU memory."""

    exit_code = ExitCode.OUT_OF_GPU_MEMORY


class TrainingDiverged(StageError):
    """The loss is not finite."""

    exit_code = ExitCode.DIVERGED


class TransientError(StageError):
    """Network, store or disk: another attempt may succeed."""

    exit_code = ExitCode.TRANSIENT


class PeerLost(TransientError):
    """Another process of this training has ended or does not answer. Its own error, if it reports one, says why."""

    def __init__(self, message: str, *, killed: bool = False) -> None:
        """
        Args:
            message: what is known.
            killed: a process of this container did not end by itself, and had to be killed.
        """
        super().__init__(message)
        self.killed = killed


class Interrupted(StageError):
    """Stopped by SIGTERM. `step` is the optimizer step of the newest checkpoint in the store, None if there is none."""

    exit_code = ExitCode.INTERRUPTED

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class NodeLost(StageError):
    """Another node of the training failed, was stopped or is gone: only that node's end counts as an attempt.

    `step` is that of the checkpoint with which all nodes stopped, None if they did not.
    """

    exit_code = ExitCode.PEER_LOST

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class ReportedBug(Exception):
    """A bug in another process of this stage; the message is complete, with its traceback."""


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Whether an error means that the GPU ran out of memory.

    Compares class names and text, so that stages without torch need not import it.
    """
    is_torchs_own = any(
        kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(error).mro()
    )
    is_cudas = isinstance(error, RuntimeError) and _OUT_OF_GPU_MEMORY.search(str(error)) is not None
    return is_torchs_own or is_cudas


def is_compiler_missing(error: BaseException) -> bool:
    """Whether Triton could not compile a part of its GPU kernels, for which it calls the machine's C compiler."""
    return any(
        frame.f_globals.get("__name__") == "triton.runtime.build" and frame.f_code.co_name == "_build"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def is_from_library(error: BaseException) -> bool:
    """Whether code outside of Edgetune raised an error."""
    innermost = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        innermost = frame.f_globals.get("__name__", "")
    return innermost.partition(".")[0] != __name__.partition(".")[0]
