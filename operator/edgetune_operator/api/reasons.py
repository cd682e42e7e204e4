"""CamelCase reasons of conditions and stage rows. They are part of the interface; docs/operations.md says what to do
about each.

Reasons of Kubernetes are kept where they are specific enough (ImagePullBackOff, Unschedulable, FailedMount): users look
them up.
"""

from enum import StrEnum


class Reason(StrEnum):
    """The operator's own reasons; `edgetune_contract.stages` has those of the exit codes."""

    # The run has ended or cannot start.
    PUBLISHED = "Published"
    PINNED = "Pinned"
    GATES_REFUSED = "GatesRefused"
    SUSPENDED = "Suspended"
    INVALID_SPEC = "InvalidSpec"
    PROFILE_NOT_FOUND = "ProfileNotFound"
    PROFILE_NOT_ALLOWED = "ProfileNotAllowed"
    SOURCE_NOT_ALLOWED = "SourceNotAllowed"
    JOB_REFUSED = "JobRefused"
    SERVICE_REFUSED = "ServiceRefused"
    JOB_NAME_TAKEN = "JobNameTaken"

    # Nothing is live, as far as is known.
    NOTHING_PUBLISHED = "NothingPublished"
    STORE_NOT_READ = "StoreNotRead"

    # A stage is done.
    SUCCEEDED = "Succeeded"
    CACHED = "Cached"
    MERGE_NOT_KEPT = "MergeNotKept"

    # A stage is running or will run.
    JOB_RUNNING = "JobRunning"
    PENDING = "Pending"
    QUEUED = "Queued"
    QUEUE_ON_HOLD = "QueueOnHold"
    REPLACED = "Replaced"
    ATTEMPT_FAILED = "AttemptFailed"
    POD_OUTLIVED = "PodOutlivedStage"
    MORE_MEMORY = "MoreMemory"
    RESUMED = "Resumed"

    # Somebody has to act; the stage then continues by itself.
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - no password
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    QUOTA_EXCEEDED = "QuotaExceeded"
    QUOTA_TOO_SMALL = "QuotaTooSmall"
    PODS_REFUSED = "PodsRefused"
    NODE_UNRESPONSIVE = "NodeUnresponsive"
    KUEUE_NOT_FOUND = "KueueNotFound"
    QUEUE_NOT_FOUND = "QueueNotFound"
    QUEUE_INACTIVE = "QueueInactive"
    QUEUE_REFUSES = "QueueRefuses"
    QUEUE_TOO_SMALL = "QueueTooSmall"
    PRIORITY_CLASS_NOT_FOUND = "PriorityClassNotFound"
    WORKLOAD_DEACTIVATED = "WorkloadDeactivated"

    # An attempt was stopped from outside; it does not count.
    INTERRUPTED = "Interrupted"
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    NODE_PRESSURE = "NodePressure"
    NODE_SHUTDOWN = "NodeShutdown"

    # A stage failed.
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    GPU_SECONDS_EXCEEDED = "GpuSecondsExceeded"
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
        Reason.QUOTA_TOO_SMALL,
        Reason.PODS_REFUSED,
        Reason.NODE_UNRESPONSIVE,
        Reason.KUEUE_NOT_FOUND,
        Reason.QUEUE_NOT_FOUND,
        Reason.QUEUE_INACTIVE,
        Reason.QUEUE_REFUSES,
        Reason.QUEUE_TOO_SMALL,
        Reason.PRIORITY_CLASS_NOT_FOUND,
        Reason.WORKLOAD_DEACTIVATED,
        *_BLOCKED_IN_KUBELET,
    )
)
"""Reasons for which a stage that waits needs somebody who acts. The Job stays, and continues by itself afterwards."""

UNSCHEDULABLE = "Unschedulable"
"""The scheduler's reason for a Pod that fits no node; an autoscaler may be adding one."""

_LASTING = (
    Reason.QUOTA_TOO_SMALL,
    Reason.NODE_UNRESPONSIVE,  # it has had its five minutes before it is reported
    Reason.QUEUE_TOO_SMALL,
    Reason.WORKLOAD_DEACTIVATED,
    "InvalidImageName",
)
MAY_PASS = (BLOCKING - set(_LASTING)) | {
    UNSCHEDULABLE,
    Reason.JOB_REFUSED,
    Reason.SERVICE_REFUSED,
    Reason.PROFILE_NOT_FOUND,
    Reason.PROFILE_NOT_ALLOWED,
}
"""Reasons that may pass by themselves, as when objects are applied in any order: Stalled only after a while."""
