"""From an exception to a failure of the contract: exit code, reason, and message for the user."""

import errno
import os
import tempfile
import traceback
from pathlib import Path

from edgetune_contract.clean_up import CleanUpResult
from edgetune_contract.request import Failure, Request, Result
from edgetune_contract.stages import ExitCode, Stage, reason_for
from edgetune_jobs.errors import (
    Interrupted,
    NodeLost,
    ReportedBug,
    StageError,
    is_compiler_missing,
    is_out_of_gpu_memory,
)
from edgetune_jobs.runtime.signals import STOPPED, Stopped
from edgetune_jobs.store.files import disk_full, is_disk_full

BUG = 1
_TRACEBACK_LINES = 12
_NO_COMPILER = (
    "Triton cannot compile its GPU kernels on this machine; install a C compiler and Python's headers (for example: "
    "apt install gcc libc6-dev python3-dev), or set CC to the compiler"
)
_UNKNOWN_DIGEST = "0" * 64


def failed_result(request: Request | None, error: BaseException) -> Result:
    """Result of a stage that failed. Without a request the stage is unknown, and prepare is used."""
    stage, digest = (request.stage, request.digest) if request else (Stage.PREPARE, _UNKNOWN_DIGEST)
    return Result(stage=stage, digest=digest, failure=failure_of(error, stage))


def failure_of(error: BaseException, stage: Stage = Stage.PREPARE) -> Failure:
    """The failure that an exception means; `stage` determines the advice if the GPU ran out of memory."""
    exit_code, message, step = _judge(error, stage)
    return Failure.brief(exit_code, reason_for(exit_code), message, step)


def exit_code_of(result: Result | CleanUpResult) -> int:
    """Exit code of a process with this result."""
    return ExitCode.DONE if result.failure is None else result.failure.exit_code


def _judge(error: BaseException, stage: Stage) -> tuple[int, str, int | None]:
    if isinstance(error, StageError):
        return error.exit_code, str(error), error.step if isinstance(error, Interrupted | NodeLost) else None
    if isinstance(error, ReportedBug):
        return BUG, str(error), None
    if isinstance(error, Stopped):
        return ExitCode.INTERRUPTED, STOPPED, None
    if _says_disk_full(error):
        place = error.filename if isinstance(error, OSError) and error.filename else tempfile.gettempdir()
        return ExitCode.TRANSIENT, str(disk_full(Path(place))), None
    if isinstance(error, MemoryError):
        return ExitCode.TRANSIENT, "the stage ran out of memory; raise its memory in the profile's resources", None
    if is_out_of_gpu_memory(error):
        return ExitCode.OUT_OF_GPU_MEMORY, f"out of GPU memory: {error}; {_how_to_fit(stage)}", None
    if is_compiler_missing(error):
        return ExitCode.INVALID, f"{_NO_COMPILER}: {' '.join(str(error).split())}", None
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return (
        BUG,
        "\n".join(["this is a bug in Edgetune; report it with this traceback:", *lines[-_TRACEBACK_LINES:]]),
        None,
    )


def _how_to_fit(stage: Stage) -> str:
    if stage is Stage.TRAIN:
        return "lower spec.training.microBatchSize or spec.training.maxLength, or use a profile with a larger GPU"
    if stage is Stage.EVALUATE:
        return (
            "a model in 16 bits, or it and a single row, do not fit: lower spec.evaluation.maxNewTokens, or use a "
            "profile that gives the stage evaluate a larger GPU or no GPU (it can run on a CPU: raise "
            "evaluateOnGpuAbove)"
        )
    return f"use a profile that gives the stage {stage} a larger GPU or no GPU (it can run on a CPU)"


def _says_disk_full(error: BaseException) -> bool:
    """Whether an error means a full disk: an OSError by its number, other errors (as of safetensors) by their text."""
    return is_disk_full(error) if isinstance(error, OSError) else os.strerror(errno.ENOSPC) in str(error)
