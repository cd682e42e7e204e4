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
    ExitCode.OUT_OF_GPU_MEMORY: "The next attempt halves microBatchSize and doubles accumulation: batchSize stays.",
    ExitCode.DIVERGED: "The loss is not finite: lower training.learningRate, or use another precision.",
    ExitCode.TRANSIENT: "Network, store or disk; another attempt may succeed.",
    ExitCode.INTERRUPTED: "Stopped by SIGTERM with the checkpoint in the store; the next attempt goes on from there.",
}
_OTHER_EXIT_CODES = "A bug; the message holds the last lines of the log."

REASONS: Mapping[Reason, str] = {
    Reason.PUBLISHED: "The gates held and the pointer names this version. Ready is True.",
    Reason.PINNED: "The pointer names the version in spec.publish.pin, not the spec's own. Ready is True.",
    Reason.GATES_REFUSED: "A gate did not hold; the message gives figure and limit. The old pointer stays.",
    Reason.SUSPENDED: "spec.suspend is true; all that is finished is kept.",
    Reason.INVALID_SPEC: "The spec is invalid; the message gives every problem with its path.",
    Reason.PROFILE_NOT_FOUND: "There is no profile of the name in spec.profile.",
    Reason.JOB_REFUSED: "The cluster refuses the stage's Job; the message says why. It is tried again.",
    Reason.JOB_NAME_TAKEN: "A Job of the name that the stage's Job needs belongs to somebody else.",
    Reason.SUCCEEDED: "The stage is done.",
    Reason.CACHED: "The stage's output was in the store already.",
    Reason.MERGE_NOT_KEPT: "merge.keep is false: quantize merges on the fly.",
    Reason.JOB_RUNNING: "The stage's Job is there and has not ended.",
    Reason.RESUMED: "The stage runs again after an interruption; the message says from where, and what it cost.",
    Reason.PENDING: "The stage waits until an older Job of the object is gone.",
    Reason.REPLACED: "The profile or a limit of the spec changed before the stage started: its Job is created again.",
    Reason.QUEUED: "The stage's Job waits until a queue admits it.",
    Reason.ATTEMPT_FAILED: "An attempt failed and the next one is on its way; the message says why.",
    Reason.SECRET_NOT_FOUND: "The profile's Secret is not in the object's namespace. It goes on when it is.",
    Reason.CONFIG_MAP_NOT_FOUND: "A ConfigMap that the stage's Pod mounts is not there. It goes on when it is.",
    Reason.QUOTA_EXCEEDED: "A quota refuses the stage's Pod; the message has the figures. It is tried again.",
    Reason.PODS_REFUSED: "The cluster refuses the stage's Pod; the message says why. It is tried again.",
    Reason.INTERRUPTED: "The attempt was stopped from outside and goes on later; it does not count.",
    Reason.EVICTED: "The attempt was evicted through the API, as by a drain, and goes on later.",
    Reason.PREEMPTED: "The attempt made room for a Pod of higher priority, and goes on later.",
    Reason.NODE_LOST: "The attempt's node is gone, silent, or tainted; it goes on elsewhere.",
    Reason.NODE_PRESSURE: "The attempt's node ran short of memory or disk; it goes on later.",
    Reason.NODE_SHUTDOWN: "The attempt's node shut down; it goes on elsewhere.",
    Reason.INTERRUPTED_TOO_OFTEN: "Stopped from outside more than 100 times: find out by what, then retry.",
    Reason.RESULT_LOST: "The stage ended without a readable result: it runs once more, then it has failed.",
    Reason.DEADLINE_EXCEEDED: "The stage took longer than spec.activeDeadlineSeconds.",
    Reason.OUT_OF_MEMORY: "The container was killed at its memory limit, which the profile sets.",
    Reason.STORAGE_EXCEEDED: "The Pod took more of its node's disk than the profile lets it.",
    Reason.KILLED: "The process was killed without notice.",
    Reason.JOB_FAILED: "The Job failed and left nothing that says why.",
    Reason.CLEANING_UP: "The object is deleted and its artifacts are removed first.",
    Reason.CLEANED_UP: "The artifacts are removed; the Event says how much, and what other objects keep.",
    Reason.CLEAN_UP_FAILED: "The artifacts are not all removed; the Event says why, and what stays where.",
    Reason.CLEAN_UP_SKIPPED: "The object went without its artifacts; the Event says why, and what stays where.",
    Reason.ARTIFACTS_RETAINED: "spec.deletionPolicy was set to Retain after the object was deleted.",
    Reason.NAMESPACE_TERMINATING: "The object's namespace is being deleted and takes no Job any more.",
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
        f"`{names.API_VERSION}`, kind `{names.KIND}`, short name `{names.SHORT_NAME}`, namespaced. `[]` stands for the "
        "items of a list, `*` for the keys of a map. The API server fills in the default of a field that is left out.",
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
        "Of conditions and stage rows, besides those of the exit codes and Kubernetes' own words for a Pod that waits.",
        _table(("Reason", "Meaning"), ((f"`{reason}`", meaning) for reason, meaning in REASONS.items())),
    )
    return "\n\n".join(sections) + "\n"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _rows(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str, str, str]]:
    """One row for each field below a node, its children after it."""
    for name, field in node.get("properties", {}).items():
        required = "required" if name in node.get("required", ()) else ""
        where = f"{path}.{name}"
        holder, suffix = _held(field)
        default = "" if "properties" in field else _default(field)
        yield f"`{where}`", _type(field), default or required, _bounds(field), field.get("description", "")
        yield from _rows(holder, where + suffix)


def _without_default(rows: Iterable[tuple[str, str, str, str, str]]) -> Iterator[tuple[str, str, str, str]]:
    return ((path, kind, bounds, description) for path, kind, _, bounds, description in rows)


def _held(field: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The node that has a field's children, and what stands for it in their paths."""
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
