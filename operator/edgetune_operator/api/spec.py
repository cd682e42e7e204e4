"""The spec of a LoraFineTune. The CRD, the field reference and every check of a spec come from here."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from edgetune_contract.digest import sha256_of
from edgetune_contract.schema import Model
from edgetune_contract.spec import Parameters

MAX_RETRY_TOKEN = 256

ProfileName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
PriorityName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
RetryToken = Annotated[str, Field(max_length=MAX_RETRY_TOKEN)]


class DeletionPolicy(StrEnum):
    """What happens to the artifacts when the object is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class LoraFineTuneSpec(Parameters):
    """The desired state."""

    profile: ProfileName = "default"
    """Name of a profile of the platform team, which sets images, resources, node selection, bucket, credentials and
    queue."""

    priority: PriorityName | None = None
    """Priority in the profile's queue, one of the profile's `queue.priorities`. A change moves a waiting stage.
    Default: Kueue's."""

    suspend: bool = False
    """Stop the running stage (training writes a checkpoint first). Finished stages are kept. With publish.pin, the
    pointer is still moved."""

    retry: RetryToken = ""
    """Any text, such as a date or a number. A new one requests a retry, like the annotation
    edgetune.dev/retry-requested: base and data are checked again, and stages that failed or are missing in the store
    run again. It is in no digest, and each text is handled once."""

    retry_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Retries of one stage after a failed attempt: 3 allows four attempts. Preemptions do not count. A running stage
    keeps the limit with which it started."""

    active_deadline_seconds: Annotated[int, Field(ge=60, le=31_536_000)] = 86_400
    """Deadline of one stage, in seconds, over all its attempts. The time that it waits in a queue does not count. A
    running stage keeps the deadline with which it started."""

    max_gpu_seconds: Annotated[int, Field(ge=1, le=1_000_000_000_000)] | None = None
    """GPU time that one stage may use over all its attempts: seconds, times its GPUs. A stage that has used it up
    fails; raising this, or a retry, continues from the checkpoint. Default: no limit."""

    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    """What happens to the artifacts when the object is deleted. Retain keeps all of them. Delete removes, before the
    object is gone, the versions and the pointer of this name, and the outputs of its stages that no other object uses.
    It also removes those that an earlier object of this name left."""

    @property
    def retryable_digest(self) -> str:
        """Digest of all fields whose edit retries stages that failed. Fields at their default do not matter."""
        # A token is handled by itself, and suspending and pinning must not start what failed.
        without: Any = {"retry": True, "suspend": True, "publish": {"pin": True}}
        dumped = self.model_dump(mode="json", exclude_defaults=True, exclude=without)
        return sha256_of({name: value for name, value in dumped.items() if value != {}})

    @property
    def parameters(self) -> Parameters:
        """The part of the spec that reaches the stages."""
        return Parameters.model_construct(**{name: getattr(self, name) for name in Parameters.model_fields})


class DeletionTerms(Model):
    """The fields of a spec that a deletion follows: they count although another field is invalid."""

    profile: ProfileName = LoraFineTuneSpec.model_fields["profile"].default
    deletion_policy: DeletionPolicy = LoraFineTuneSpec.model_fields["deletion_policy"].default
