"""Names, labels and annotations: each defined once, derived everywhere else."""

import hashlib
from dataclasses import dataclass

from edgetune_contract.stages import Stage

GROUP = "edgetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LoraFineTune"
PLURAL = "lorafinetunes"
SINGULAR = "lorafinetune"
SHORT_NAME = "lft"


@dataclass(frozen=True)
class Key:
    """Which object."""

    namespace: str
    name: str


# On Jobs and their Pods.
STAGE_LABEL = f"{GROUP}/stage"
OWNER_LABEL = f"{GROUP}/name"
# Names are used again after a deletion; this tells whose Job it is.
UID_LABEL = f"{GROUP}/uid"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "edgetune"
DIGEST_ANNOTATION = f"{GROUP}/digest"
# The token that was current when the Job was made: a finished Job of an older token answers no retry.
RETRY_ANNOTATION = f"{GROUP}/retry"
# What the Job has of profile and spec besides its digest: a hash. One that has not started is replaced when it changes.
SETTINGS_ANNOTATION = f"{GROUP}/settings"

# On the object, set by the operator with deletionPolicy Delete: it goes when the artifacts are gone.
FINALIZER = f"{GROUP}/artifacts"

# On the object, set by people.
RETRY_REQUESTED_ANNOTATION = f"{GROUP}/retry-requested"

CONTAINER = "stage"
# Value of the stage's label on the Job that removes an object's artifacts, and part of its name.
CLEAN_UP = "clean-up"

# A Job's name becomes a label value of its Pods.
_MAX_LABEL = 63
_DIGEST_CHARACTERS = 10
_LONGEST_SUFFIX = max(len(f"-{stage}-") for stage in Stage) + _DIGEST_CHARACTERS


def job_name(name: str, stage: Stage, digest: str) -> str:
    """Name of the Job of a stage: a function of object, stage and digest, so that creating it is idempotent."""
    return f"{_shortened(name, _MAX_LABEL - _LONGEST_SUFFIX)}-{stage}-{digest[:_DIGEST_CHARACTERS]}"


def clean_up_job_name(name: str, uid: str) -> str:
    """Name of the Job that removes an object's artifacts: it may outlive the object, whose name may be used again."""
    suffix = f"-{CLEAN_UP}-{uid.replace('-', '')[:_DIGEST_CHARACTERS]}"
    return f"{_shortened(name, _MAX_LABEL - len(suffix))}{suffix}"


def label_value(name: str) -> str:
    """The object's name as a label value; names longer than a label are cut and told apart by a hash."""
    return _shortened(name, _MAX_LABEL)


def _shortened(name: str, length: int) -> str:
    # Job names are DNS labels where object names may have dots.
    plain = name.replace(".", "-")
    if len(plain) <= length and plain == name:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain[: length - len(mark) - 1].rstrip('-')}-{mark}"
