"""Reasons: the CamelCase words of conditions and stage rows. They are part of the interface; docs/operations.md says
what to do about each.

Words of the cluster are kept where they say enough (ImagePullBackOff, Unschedulable, FailedMount): people look them up.
"""

from enum import StrEnum


class Reason(StrEnum):
    """What the operator itself says; exit codes have reasons of their own in `edgetune_contract.stages`."""

    # How a run ends, or cannot begin.
    PUBLISHED = "Published"
    PINNED = "Pinned"
    GATES_REFUSED = "GatesRefused"
    SUSPENDED = "Suspended"
    INVALID_SPEC = "InvalidSpec"
    PROFILE_NOT_FOUND = "ProfileNotFound"
    JOB_REFUSED = "JobRefused"
    JOB_NAME_TAKEN = "JobNameTaken"

    # A stage is done.
    SUCCEEDED = "Succeeded"
    CACHED = "Cached"
    MERGE_NOT_KEPT = "MergeNotKept"

    # A stage runs, or will.
    JOB_RUNNING = "JobRunning"
    PENDING = "Pending"
    QUEUED = "Queued"
    REPLACED = "Replaced"
    ATTEMPT_FAILED = "AttemptFailed"
    RESUMED = "Resumed"

    # Somebody has to do something, and the stage goes on by itself afterwards.
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - no password
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PODS_REFUSED = "PodsRefused"

    # An attempt was ended from outside; it does not count.
    INTERRUPTED = "Interrupted"
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    NODE_PRESSURE = "NodePressure"
    NODE_SHUTDOWN = "NodeShutdown"

    # A stage failed.
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    INTERRUPTED_TOO_OFTEN = "InterruptedTooOften"
    JOB_FAILED = "JobFailed"
    KILLED = "Killed"
    OUT_OF_MEMORY = "OutOfMemory"
    RESULT_LOST = "ResultLost"
    STORAGE_EXCEEDED = "EphemeralStorageExceeded"

    # The object is deleted, and its artifacts with it.
    CLEANING_UP = "CleaningUp"
    CLEANED_UP = "CleanedUp"
    CLEAN_UP_FAILED = "CleanUpFailed"
    CLEAN_UP_SKIPPED = "CleanUpSkipped"
    ARTIFACTS_RETAINED = "ArtifactsRetained"
    NAMESPACE_TERMINATING = "NamespaceTerminating"


# What the kubelet says of a container that no amount of waiting starts, and of what it cannot make ready for a Pod.
_BLOCKED_IN_KUBELET = (
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "FailedAttachVolume",
    "FailedCreatePodSandBox",
    "FailedMapVolume",
    "FailedMount",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
)
BLOCKING = frozenset(
    (
        Reason.SECRET_NOT_FOUND,
        Reason.CONFIG_MAP_NOT_FOUND,
        Reason.QUOTA_EXCEEDED,
        Reason.PODS_REFUSED,
        *_BLOCKED_IN_KUBELET,
    )
)
"""Reasons for which a stage that waits is stalled: the Job lives and goes on by itself once the cause is gone."""

UNPLANNED = frozenset((Reason.INVALID_SPEC, Reason.PROFILE_NOT_FOUND))
"""Reasons for which a pass looks at no stage."""
