"""Stages, their order, and their exit codes, which determine what the Job controller does next."""

from enum import IntEnum, StrEnum


class Stage(StrEnum):
    """The stages of a run, in the order in which they run. Each is one Job."""

    PREPARE = "prepare"
    TRAIN = "train"
    MERGE = "merge"
    QUANTIZE = "quantize"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


class ExitCode(IntEnum):
    """Exit codes of a stage's container. The Job's podFailurePolicy is rendered from `fails_job` and `is_ignored`."""

    DONE = 0
    INVALID = 10
    DENIED = 11
    OUT_OF_GPU_MEMORY = 12
    DIVERGED = 13
    TRANSIENT = 14
    # A stopped stage never exits with 0: after an eviction, the Job controller would count that as success.
    INTERRUPTED = 75
    # Another node of the training has failed or is gone, so that one incident does not count once for each node.
    PEER_LOST = 76

    @property
    def reason(self) -> str:
        """CamelCase reason in conditions and stage rows."""
        return _REASONS[self]

    @property
    def fails_job(self) -> bool:
        """Whether the Job fails at once, because another attempt would fail in the same way."""
        return self in (ExitCode.INVALID, ExitCode.DENIED, ExitCode.DIVERGED)

    @property
    def is_ignored(self) -> bool:
        """Whether the attempt does not count towards the retry limit."""
        return self in (ExitCode.INTERRUPTED, ExitCode.PEER_LOST)


_REASONS = {
    ExitCode.DONE: "Succeeded",
    ExitCode.INVALID: "InvalidInput",
    ExitCode.DENIED: "AccessDenied",
    ExitCode.OUT_OF_GPU_MEMORY: "OutOfGpuMemory",
    ExitCode.DIVERGED: "TrainingDiverged",
    ExitCode.TRANSIENT: "TransientError",
    ExitCode.INTERRUPTED: "Interrupted",
    ExitCode.PEER_LOST: "PeerLost",
}

INTERNAL_ERROR = "InternalError"


def reason_for(exit_code: int) -> str:
    """Reason for any exit code; a code outside the contract means a bug."""
    try:
        return ExitCode(exit_code).reason
    except ValueError:
        return INTERNAL_ERROR
