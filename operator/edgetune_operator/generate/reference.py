"""The field reference, docs/reference.md: every field of spec and status, exit codes and reasons, from the models."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edgetune_contract.stages import INTERNAL_ERROR, ExitCode
from edgetune_operator.api import names
from edgetune_operator.api.reasons import Reason
from edgetune_operator.generate.crd import object_schema

_EXIT_CODES: Mapping[ExitCode, str] = {
    ExitCode.DONE: "The stage is done.",
    ExitCode.INVALID: "The request or the data is invalid; the message names the field, or the file and line.",
    ExitCode.DENIED: "The store or the hub refuses the credentials, or a licence was not accepted.",
    ExitCode.OUT_OF_GPU_MEMORY: "The next attempt begins with smaller forward passes; batchSize is kept.",
    ExitCode.DIVERGED: "The loss is not finite: lower training.learningRate, or use another precision.",
    ExitCode.TRANSIENT: "A transient error of network, store or disk; a retry may succeed.",
    ExitCode.INTERRUPTED: "Stopped by SIGTERM with the checkpoint in the store; the next attempt resumes from it.",
    ExitCode.PEER_LOST: "Another node of the training failed or is gone; all resume from the checkpoint.",
}
_OTHER_EXIT_CODES = "A bug; the message has the last lines of the log."

REASONS: Mapping[Reason, str] = {
    Reason.PUBLISHED: "All gates passed and the pointer names this version. Ready is True. Of Available: a version is "
    "live, this spec's own or an earlier one.",
    Reason.NOTHING_PUBLISHED: "Of Available: the model has no pointer in the store.",
    Reason.STORE_NOT_READ: "Of Available: no stage of the object has read the store yet.",
    Reason.PINNED: "The pointer names the version in spec.publish.pin rather than the spec's own. Ready is True.",
    Reason.GATES_REFUSED: "A gate failed; the message has the figure and the limit. The pointer is unchanged.",
    Reason.SUSPENDED: "spec.suspend is true. Finished stages are kept.",
    Reason.INVALID_SPEC: "The spec is invalid; the message has every problem with its path.",
    Reason.PROFILE_NOT_FOUND: "No profile has the name in spec.profile.",
    Reason.PROFILE_NOT_ALLOWED: "The namespace may not use the profile; the message lists those that it may use.",
    Reason.SOURCE_NOT_ALLOWED: "The base model or data may not be read from this namespace or with this profile.",
    Reason.JOB_REFUSED: "The cluster refuses the stage's Job; the message says why. The operator retries.",
    Reason.SERVICE_REFUSED: "The cluster refuses the Service by which the Pods of a training on several nodes find one "
    "another; the message says why. The operator retries.",
    Reason.JOB_NAME_TAKEN: "A Job with the name of the stage's Job exists and does not belong to the object.",
    Reason.SUCCEEDED: "The stage is done.",
    Reason.CACHED: "The stage's output was already in the store.",
    Reason.MERGE_NOT_KEPT: "merge.keep is false: quantize merges on the fly.",
    Reason.JOB_RUNNING: "The stage's Job exists and has not ended.",
    Reason.RESUMED: "The stage resumed after an interruption; the message has the step and the lost steps.",
    Reason.PENDING: "The stage waits until an older Job of the object is gone.",
    Reason.REPLACED: "The profile or a limit of the spec changed before the stage started: its Job is replaced.",
    Reason.QUEUED: "The stage's Job waits until a queue admits it.",
    Reason.QUEUE_ON_HOLD: "An administrator holds the queue in which the stage's Job waits.",
    Reason.ATTEMPT_FAILED: "An attempt failed and the stage is retried; the message says why.",
    Reason.POD_OUTLIVED: "An attempt failed and another container of its Pod ran on: another Job retries it.",
    Reason.MORE_MEMORY: "An attempt was killed at its memory limit: another Job retries it with twice the memory.",
    Reason.SECRET_NOT_FOUND: "The profile's Secret is missing in the namespace. The stage starts once it exists.",
    Reason.CONFIG_MAP_NOT_FOUND: "A ConfigMap that the stage's Pod mounts is missing. The stage starts once it exists.",
    Reason.QUOTA_EXCEEDED: "A quota refuses the stage's Job or Pod while others use it. It waits as in a queue.",
    Reason.QUOTA_TOO_SMALL: "The stage requests more than a quota of the namespace can ever give.",
    Reason.PODS_REFUSED: "The cluster refuses the stage's Pod; the message says why. The Job retries.",
    Reason.INTERRUPTED: "The attempt was stopped from outside and does not count. The stage resumes.",
    Reason.EVICTED: "The attempt was evicted through the API, for example by a drain. The stage resumes.",
    Reason.PREEMPTED: "The attempt was preempted by a Pod of higher priority. The stage resumes.",
    Reason.NODE_LOST: "The attempt's node is gone, unreachable or tainted. The stage resumes on another node.",
    Reason.NODE_UNRESPONSIVE: "A Pod should have ended; its node does not confirm it. Restore or delete the node.",
    Reason.NODE_PRESSURE: "The attempt's node ran short of memory or disk. The stage resumes.",
    Reason.NODE_SHUTDOWN: "The attempt's node shut down. The stage resumes on another node.",
    Reason.INTERRUPTED_TOO_OFTEN: "The stage was stopped from outside more than 100 times. Find the cause, then retry.",
    Reason.RESULT_LOST: "The stage ended without a readable result. It runs once more; then it fails.",
    Reason.QUEUE_NOT_FOUND: "The namespace has no LocalQueue with the name in the profile. Create it.",
    Reason.QUEUE_INACTIVE: "The ClusterQueue is missing or incomplete. Ask the platform team.",
    Reason.QUEUE_REFUSES: "The ClusterQueue does not admit the namespace. Ask the platform team.",
    Reason.QUEUE_TOO_SMALL: "The stage requests more than its queue can ever give.",
    Reason.KUEUE_NOT_FOUND: "The profile has a queue, and the cluster has no Kueue. Ask the platform team.",
    Reason.PRIORITY_CLASS_NOT_FOUND: "The WorkloadPriorityClass does not exist. Create it or correct the name.",
    Reason.WORKLOAD_DEACTIVATED: "Kueue's Workload of the stage is deactivated. Activate it.",
    Reason.DEADLINE_EXCEEDED: "The stage took longer than spec.activeDeadlineSeconds.",
    Reason.GPU_SECONDS_EXCEEDED: "The stage used up spec.maxGpuSeconds. Raise it.",
    Reason.OUT_OF_MEMORY: "The container was killed at its memory limit, which the profile sets.",
    Reason.STORAGE_EXCEEDED: "The Pod used more of its node's disk than the profile allows.",
    Reason.KILLED: "The process was killed without notice.",
    Reason.JOB_FAILED: "The Job failed and no Pod is left that says why.",
    Reason.DELETED: "The object is deleted; its stages have stopped. The finalizers of others still hold it.",
    Reason.CLEANING_UP: "The object is being deleted; its artifacts are removed first.",
    Reason.CLEANED_UP: "The artifacts are removed; the Event says how much, and what other objects still use.",
    Reason.CLEAN_UP_FAILED: "Some artifacts were not removed; the Event says why, and what is left where.",
    Reason.CLEAN_UP_SKIPPED: "The artifacts were not removed; the Event says why, and what is left where.",
    Reason.ARTIFACTS_RETAINED: "spec.deletionPolicy was set to Retain after the object was deleted.",
    Reason.NAMESPACE_TERMINATING: "The object's namespace is being deleted and accepts no new Jobs.",
}

_BOUNDS = {
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "minItems": "items ≥ {}",
    "maxItems": "items ≤ {}",
    "pattern": "matches `{}`",
    "format": "{}",
}


def reference() -> str:
    """The whole page as Markdown."""
    fields = object_schema()["properties"]
    sections = (
        f"# {names.KIND} reference",
        f"`{names.API_VERSION}`, kind `{names.KIND}`, short name `{names.SHORT_NAME}`, namespaced. In a path, `[]` is "
        "an item of a list and `*` a key of a map. The API server sets an omitted field to its default.",
        "## Spec",
        _table(("Field", "Type", "Default", "Bounds", "Description"), _rows(fields["spec"], "spec")),
        "## Rules across fields",
        _table(("At", "Rule"), _rules(fields["spec"], "spec")),
        "## Status",
        "Written by the operator only. Programs read `conditions`.",
        _table(("Field", "Type", "Bounds", "Description"), _without_default(_rows(fields["status"], "status"))),
        "## Exit codes of a stage",
        _table(("Code", "Reason", "The Job", "Meaning"), _exit_codes()),
        "## Reasons",
        "Conditions and stage rows have these reasons, those of the exit codes, and Kubernetes' own for a waiting Pod.",
        _table(("Reason", "Meaning"), ((f"`{reason}`", meaning) for reason, meaning in REASONS.items())),
    )
    return "\n\n".join(sections) + "\n"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _rows(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str, str, str]]:
    """One row for each field of a node, followed by the rows of its children."""
    for name, field in node.get("properties", {}).items():
        required = "required" if name in node.get("required", ()) else ""
        where = f"{path}.{name}"
        element, suffix = _element(field)
        default = "" if "properties" in field else _default(field)
        yield f"`{where}`", _type(field), default or required, _bounds(field), field.get("description", "")
        yield from _rows(element, where + suffix)


def _without_default(rows: Iterable[tuple[str, str, str, str, str]]) -> Iterator[tuple[str, str, str, str]]:
    return ((path, type_name, bounds, description) for path, type_name, _, bounds, description in rows)


def _element(field: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The node that has a field's children, and its suffix in their paths."""
    if "items" in field:
        return field["items"], "[]"
    if "additionalProperties" in field:
        return field["additionalProperties"], ".*"
    return field, ""


def _type(field: Mapping[str, Any]) -> str:
    if "x-kubernetes-int-or-string" in field:
        return "integer or string"
    if "type" not in field:
        return "string or list of string"
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return f"map of {_type(field['additionalProperties'])}"
    return str(field["type"])


def _default(field: Mapping[str, Any]) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field else ""


def _bounds(field: Mapping[str, Any]) -> str:
    bounds = []
    choices = field.get("enum") or field.get("items", {}).get("enum")
    if choices:
        bounds.append(", ".join(f"`{choice}`" for choice in choices))
    if "minimum" in field:
        bounds.append(f"{'>' if field.get('exclusiveMinimum') else '≥'} {_number(field['minimum'])}")
    if "maximum" in field:
        bounds.append(f"{'<' if field.get('exclusiveMaximum') else '≤'} {_number(field['maximum'])}")
    bounds += [text.format(field[key]) for key, text in _BOUNDS.items() if key in field]
    return "; ".join(bounds)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _rules(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for rule in node.get("x-kubernetes-validations", ()):
        yield f"`{path}`", rule["message"]
    for name, field in node.get("properties", {}).items():
        yield from _rules(field, f"{path}.{name}")


def _exit_codes() -> Iterator[tuple[str, str, str, str]]:
    for code in ExitCode:
        yield str(code.value), f"`{code.reason}`", _job_action(code), _EXIT_CODES[code]
    yield "other", f"`{INTERNAL_ERROR}`", "counts the attempt", _OTHER_EXIT_CODES


def _job_action(code: ExitCode) -> str:
    if code is ExitCode.DONE:
        return "completes"
    if code.fails_job:
        return "fails at once"
    return "starts the next attempt without counting this one" if code.is_ignored else "counts the attempt"
