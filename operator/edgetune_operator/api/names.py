"""Names, labels and annotations: each defined once, derived everywhere else."""

import hashlib
import re
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
    """Namespace and name of an object."""

    namespace: str
    name: str


# On Jobs and their Pods.
STAGE_LABEL = f"{GROUP}/stage"
OWNER_LABEL = f"{GROUP}/name"
# A name can be used again after a deletion; the UID identifies the owner of a Job.
UID_LABEL = f"{GROUP}/uid"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "edgetune"
DIGEST_ANNOTATION = f"{GROUP}/digest"
# The retry token when the Job was created: a finished Job with an older token does not satisfy a newer request.
RETRY_ANNOTATION = f"{GROUP}/retry"
# On prepare's Job: digest of the part of the spec for whose later stages it looks in the store (`recipe_digest`).
LOOKED_FOR_ANNOTATION = f"{GROUP}/looked-for"
# Hash of what the Job takes from profile and spec besides its digest. When it changes, a Job that has not started is
# replaced.
SETTINGS_ANNOTATION = f"{GROUP}/settings"
# Name of the profile and its prices when the Job was created, for the account of its GPU time.
PROFILE_ANNOTATION = f"{GROUP}/profile"
PRICES_ANNOTATION = f"{GROUP}/prices"
# Hash of the part of the settings that a Job keeps while it waits in a queue; the rest is changed in place.
FIXED_SETTINGS_ANNOTATION = f"{GROUP}/fixed-settings"

# Kubernetes' own, on the Pods of a Job with several nodes: the number of the Pod's node, from 0.
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
# Kubernetes' own, on the Pods of a Job: the Job's name.
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"

# Kueue's, on Jobs.
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"

# Kueue's, on the Pods of a Job.
REQUIRED_TOPOLOGY_ANNOTATION = "kueue.x-k8s.io/podset-required-topology"
PREFERRED_TOPOLOGY_ANNOTATION = "kueue.x-k8s.io/podset-preferred-topology"
# Kueue accepts one of them.
TOPOLOGY_ANNOTATIONS = (
    REQUIRED_TOPOLOGY_ANNOTATION,
    PREFERRED_TOPOLOGY_ANNOTATION,
    "kueue.x-k8s.io/podset-unconstrained-topology",
)

# On the object, set by the operator for deletionPolicy Delete; removed once the artifacts are removed.
FINALIZER = f"{GROUP}/artifacts"

# On the object, set by users.
RETRY_REQUESTED_ANNOTATION = f"{GROUP}/retry-requested"
# The Git commit that the object comes from, for the signed provenance of what it publishes.
SOURCE_REVISION_ANNOTATION = f"{GROUP}/source-revision"

# The Lease in each watched namespace, and the one of operators that watch the whole cluster.
LEASE = "edgetune-operator"
CLUSTER_LEASE = "edgetune-operator-of-all-namespaces"

CONTAINER = "stage"
# Value of the stage label on the Job that removes an object's artifacts, and part of its name.
CLEAN_UP = "clean-up"

# A Job's name becomes a label value of its Pods.
_MAX_LABEL = 63
_DIGEST_CHARACTERS = 10
_HASH_CHARACTERS = 20
_MARKED = re.compile(r"-[0-9a-f]{8}$")
_LONGEST_SUFFIX = max(len(f"-{stage}-") for stage in Stage) + _DIGEST_CHARACTERS


def job_name(name: str, stage: Stage, digest: str) -> str:
    """Name of a stage's Job: a function of object, stage and digest, so that creating it is idempotent.

    That of train leaves three characters for `-<index>`, which the host name of a Pod of several has at its end.
    """
    return f"{_shortened(name, _MAX_LABEL - _LONGEST_SUFFIX)}-{stage}-{digest[:_DIGEST_CHARACTERS]}"


def service_name(job: str) -> str:
    """Name of the Service through which the Pods of a Job find each other: the Job's, if a Service can have it.

    The name of a Service begins with a letter, that of a Job may begin with a digit. Other names than the Job's own end
    unlike the name of any Job, so that none has the Service of another.
    """
    if job[0].isalpha():
        return job
    return f"peers-{hashlib.sha256(job.encode()).hexdigest()[:_HASH_CHARACTERS]}"


def clean_up_job_name(name: str, uid: str) -> str:
    """Name of the Job that removes an object's artifacts.

    It has the UID because the Job can outlive the object, whose name can be used again.
    """
    suffix = f"-{CLEAN_UP}-{uid.replace('-', '')[:_DIGEST_CHARACTERS]}"
    return f"{_shortened(name, _MAX_LABEL - len(suffix))}{suffix}"


def label_value(name: str) -> str:
    """The object's name as a label value; a name that is too long for a label is cut and gets a hash."""
    return _shortened(name, _MAX_LABEL)


def _shortened(name: str, length: int) -> str:
    # Object names may have dots; Job names are DNS labels.
    plain = name.replace(".", "-")
    # A name that ends like a mark gets one too: it could be what another name becomes.
    if len(plain) <= length and plain == name and not _MARKED.search(name):
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain[: length - len(mark) - 1].rstrip('-')}-{mark}"
