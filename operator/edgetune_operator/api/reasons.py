"""CamelCase reasons of conditions and stage rows. They are part of the interface; docs/operations.md says what to do
about each.

Reasons of Kubernetes are kept where they are specific enough (ImagePullBackOff, Unschedulable, FailedMount): users look
them up.
"""

from enum import StrEnum

from edgetune_contract.stages import INTERNAL_ERROR


class Reason(StrEnum):
    """The operator's own reasons; `edgetune_contract.stages` has those of the exit codes."""

    # The run has ended or cannot start.
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

    # A stage is running or will run.
    JOB_RUNNING = "JobRunning"
    PENDING = "Pending"
    QUEUED = "Queued"
    REPLACED = "Replaced"
    ATTEMPT_FAILED = "AttemptFailed"
    POD_OUTLIVED = "PodOutlivedStage"
    MORE_MEMORY = "MoreMemory"
    RESUMED = "Resumed"

    # Somebody has to act; the stage then continues by itself.
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - no password
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PODS_REFUSED = "PodsRefused"
    NODE_UNRESPONSIVE = "NodeUnresponsive"

    # An attempt was stopped from outside; it does not count.
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

    # The object is being deleted, most of these with its artifacts.
    DELETED = "Deleted"
    CLEANING_UP = "CleaningUp"
    CLEANED_UP = "CleanedUp"
    CLEAN_UP_FAILED = "CleanUpFailed"
    CLEAN_UP_SKIPPED = "CleanUpSkipped"
    ARTIFACTS_RETAINED = "ArtifactsRetained"
    NAMESPACE_TERMINATING = "NamespaceTerminating"


# The kubelet's reasons for a container that does not start by waiting, and for what it cannot set up for a Pod.
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
        Reason.NODE_UNRESPONSIVE,
        *_BLOCKED_IN_KUBELET,
    )
)
"""Reasons for which a waiting stage is stalled. The Job stays, and continues by itself once the cause is removed."""

UNPLANNED = frozenset((Reason.INVALID_SPEC, Reason.PROFILE_NOT_FOUND, INTERNAL_ERROR))
"""Reasons for which a pass considers no stage."""
