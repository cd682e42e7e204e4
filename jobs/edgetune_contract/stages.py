"""Stages, their order, and the exit codes by which a stage tells the Job controller what to do next."""

from enum import IntEnum, StrEnum


class Stage(StrEnum):
    """The stages of a run, in the order in which they run: one Job each."""

    PREPARE = "prepare"
    TRAIN = "train"
    MERGE = "merge"
    QUANTIZE = "quantize"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


class ExitCode(IntEnum):
    """How a stage's container ends. The Job's podFailurePolicy is rendered from `fails_job` and `is_ignored`."""

    DONE = 0
    INVALID = 10
    DENIED = 11
    OUT_OF_GPU_MEMORY = 12
    DIVERGED = 13
    TRANSIENT = 14
    # A stopped stage never exits 0: after an eviction the Job controller would count that as success.
    INTERRUPTED = 75

    @property
    def reason(self) -> str:
        """CamelCase reason for conditions and stage rows."""
        return _REASONS[self]

    @property
    def fails_job(self) -> bool:
        """Whether another attempt could not end differently, so that the Job fails at once."""
        return self in (ExitCode.INVALID, ExitCode.DENIED, ExitCode.DIVERGED)

    @property
    def is_ignored(self) -> bool:
        """Whether the attempt does not count towards the retry limit."""
        return self is ExitCode.INTERRUPTED


_REASONS = {
    ExitCode.DONE: "Succeeded",
    ExitCode.INVALID: "InvalidInput",
    ExitCode.DENIED: "AccessDenied",
    ExitCode.OUT_OF_GPU_MEMORY: "OutOfGpuMemory",
    ExitCode.DIVERGED: "TrainingDiverged",
    ExitCode.TRANSIENT: "TransientError",
    ExitCode.INTERRUPTED: "Interrupted",
}

INTERNAL_ERROR = "InternalError"


def reason_for(exit_code: int) -> str:
    """Reason for any exit code; codes outside the contract are bugs."""
    try:
        return ExitCode(exit_code).reason
    except ValueError:
        return INTERNAL_ERROR
