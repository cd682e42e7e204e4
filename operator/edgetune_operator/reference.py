"""The field reference, docs/reference.md: every field of spec and status, exit codes and reasons, from the models."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edgetune_contract.stages import INTERNAL_ERROR, ExitCode
from edgetune_operator import names
from edgetune_operator.crd import object_schema

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

REASONS: Mapping[str, str] = {
    "Published": "The gates held and the pointer names this version. Ready is True.",
    "Pinned": "The pointer names the version in spec.publish.pin, not the spec's own. Ready is True.",
    "GatesRefused": "A gate did not hold; the message gives figure and limit. The old pointer stays.",
    "InvalidSpec": "The spec is invalid; the message gives every problem with its path.",
    "ProfileNotFound": "There is no profile of the name in spec.profile.",
    "JobRefused": "The cluster refuses the stage's Job, such as by a quota; the message says why. It is tried again.",
    "JobNameTaken": "A Job of the name that the stage's Job needs belongs to somebody else.",
    "Suspended": "spec.suspend is true; all that is finished is kept.",
    "Pending": "The stage waits until an older Job of the object is gone.",
    "JobCreated": "The stage's Job was created in this pass.",
    "JobRunning": "The stage's Job is there and has not ended.",
    "Succeeded": "The stage is done.",
    "Cached": "The stage's output was in the store already.",
    "MergeNotKept": "merge.keep is false: quantize merges on the fly.",
    "ResultLost": "The stage ended without a readable result: it runs once more, then it has failed.",
    "DeadlineExceeded": "The stage took longer than spec.activeDeadlineSeconds.",
    "JobFailed": "The Job failed and left nothing that says why.",
    "AttemptFailed": "An attempt failed and the next one is on its way; the message says why.",
    "InterruptedTooOften": "Stopped from outside more than 100 times; find out what stops the stage, then retry.",
    "OutOfMemory": "The container was killed at its memory limit, which the profile sets.",
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
