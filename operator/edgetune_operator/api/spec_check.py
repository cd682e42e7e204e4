"""Check of a spec: every problem of an object as a user wrote it, with its path."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from edgetune_contract.schema import Model
from edgetune_contract.spec import TARGET_MODULE_PRESETS
from edgetune_contract.values.suggestions import did_you_mean
from edgetune_operator.api import names
from edgetune_operator.api.spec import DeletionTerms, LoraFineTuneSpec
from edgetune_operator.api.suggestions import suggestion

_Spec = TypeVar("_Spec", bound=Model)

# As Kubernetes names objects (RFC 1123).
LABEL_PATTERN = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
SUBDOMAIN_PATTERN = rf"{LABEL_PATTERN}(\.{LABEL_PATTERN})*"
_LABEL, _SUBDOMAIN = re.compile(LABEL_PATTERN), re.compile(SUBDOMAIN_PATTERN)

OBJECT_FIELDS = ("apiVersion", "kind", "metadata", "spec", "status")
METADATA_FIELDS = frozenset(
    {
        "annotations",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "name",
        "namespace",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)
_DATA_URI = ("data URI", "s3://bucket/key or, in a local run, file:///path")
_DATA_REVISION = ("revision", "the 64-digit SHA-256 that status.resolved shows")
_COLUMN = ("column name", "a text of one line without control or bidirectional characters")
_SIZE = ("size", "a whole number of bytes with an optional unit, such as 500M or 8Gi")
EXPECTED: Mapping[str, tuple[str, str]] = {
    "baseModel.uri": (
        "model URI",
        "s3://bucket/prefix, hf://organization/name or, in a local run, file:///path",
    ),
    "baseModel.revision": (
        "revision",
        "the 40-digit commit of an hf:// model, or the 64-digit SHA-256 that status.resolved.base shows",
    ),
    "dataset.train.uri": _DATA_URI,
    "dataset.train.revision": _DATA_REVISION,
    "dataset.eval.uri": _DATA_URI,
    "dataset.eval.revision": _DATA_REVISION,
    "dataset.template": (
        "template",
        "a text without control or bidirectional characters other than line breaks and tabs",
    ),
    **{
        f"dataset.fields.{name}": _COLUMN for name in ("instruction", "response", "messages", "text", "expectedKeyword")
    },
    "evaluation.gates.maxEdgeBytes": _SIZE,
    "evaluation.edge.memory": _SIZE,
    "evaluation.edge.maxPeakMemory": _SIZE,
    "evaluation.edge.cpu": ("number of CPU cores", "a number such as 2 or 1.5, or thousandths such as 500m"),
    "publish.pin": ("version", "the first 12 to 64 digits that status.publication.version shows"),
    "priority": ("priority", "lower-case letters, digits, '-' and '.', with a letter or digit at both ends"),
    "profile": ("profile name", "lower-case letters, digits and '-', with a letter or digit at both ends"),
}
"""What a field with a pattern is, and what it accepts, by path below spec."""


class Problem(Model):
    """One thing that is wrong with an object."""

    path: str
    """Field path such as spec.lora.rank."""

    message: str
    """What is wrong and what is expected."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class InvalidSpec(ValueError):
    """The spec is invalid; has every problem with its path."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


def parse_spec(spec: Any) -> LoraFineTuneSpec:
    """Spec from plain JSON values.

    Raises:
        InvalidSpec: the spec is invalid.
    """
    return _parse(LoraFineTuneSpec, spec)


def parse_deletion_terms(spec: Any) -> DeletionTerms:
    """The fields that a deletion follows; all others may be invalid, as after an upgrade with narrower bounds.

    Raises:
        InvalidSpec: one of these fields is invalid.
    """
    if not isinstance(spec, dict):
        return DeletionTerms()
    followed = {field.alias for field in DeletionTerms.model_fields.values()}
    return _parse(DeletionTerms, {name: value for name, value in spec.items() if name in followed})


def _parse(model: type[_Spec], spec: Any) -> _Spec:
    if not isinstance(spec, dict):
        raise InvalidSpec((Problem(path="spec", message="must be an object"),))
    text = json.dumps(_as_served(spec), default=str)
    try:
        # Strict, and from JSON: the API server does not accept a string for a number either.
        return model.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidSpec(_problems(error, model)) from None


def _as_served(value: Any) -> Any:
    """The value as the API server stores it: a null field is missing, and 16.0 is the integer 16."""
    if isinstance(value, dict):
        return {name: _as_served(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_as_served(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_object(document: Any) -> tuple[Problem, ...]:
    """Every problem of an object as a user wrote it: apiVersion, kind, metadata.name and spec."""
    if not isinstance(document, dict):
        return (Problem(path="(document)", message=f"must be a {names.KIND} object"),)
    problems = [
        Problem(path=key, message=f"must be {wanted}, is {document.get(key)!r}")
        for key, wanted in (("apiVersion", names.API_VERSION), ("kind", names.KIND))
        if document.get(key) != wanted
    ]
    problems += _metadata_problems(document.get("metadata"))
    problems += [
        Problem(path=key, message=f"unknown field{did_you_mean(key, OBJECT_FIELDS)}")
        for key in document
        if key not in OBJECT_FIELDS
    ]
    try:
        parse_spec(document.get("spec"))
    except InvalidSpec as error:
        problems += error.problems
    return tuple(problems)


def _metadata_problems(metadata: Any) -> list[Problem]:
    if not isinstance(metadata, dict) or metadata.get("name") is None:
        return [Problem(path="metadata.name", message="is required")]
    problems = [
        Problem(path=f"metadata.{key}", message=f"unknown field{did_you_mean(key, sorted(METADATA_FIELDS))}")
        for key in metadata
        if key not in METADATA_FIELDS
    ]
    problems += _text_problems(metadata)
    if not _is_text(metadata["name"], _SUBDOMAIN, 253):
        message = f"must be at most 253 lower-case letters, digits, '-' and '.', is {metadata['name']!r}"
        problems.append(Problem(path="metadata.name", message=message))
    if not _is_text(metadata.get("namespace", "default"), _LABEL, 63):
        message = f"must be at most 63 lower-case letters, digits and '-', is {metadata['namespace']!r}"
        problems.append(Problem(path="metadata.namespace", message=message))
    return problems


def _text_problems(metadata: Mapping[str, Any]) -> Iterator[Problem]:
    """Labels and annotations that are no strings, such as retry-requested: 3."""
    for field in ("annotations", "labels"):
        values = metadata.get(field)
        if values is not None and not isinstance(values, dict):
            yield Problem(path=f"metadata.{field}", message=f"must be an object, is {values!r}")
            continue
        for name, value in (values or {}).items():
            if not isinstance(value, str):
                message = f"must be a string, is {value!r}: put it in quotes"
                yield Problem(path=f"metadata.{field}.{name}", message=message)


def _is_text(value: Any, pattern: re.Pattern[str], limit: int) -> bool:
    return isinstance(value, str) and len(value) <= limit and pattern.fullmatch(value) is not None


def _problems(error: ValidationError, model: type[Model]) -> tuple[Problem, ...]:
    items = error.errors(include_url=False)
    # A list whose items are all invalid is also reported as too short: the problems of the items are clearer.
    items = [
        item
        for item in items
        if item["type"] != "too_short" or not any(_is_inside(other["loc"], item["loc"]) for other in items)
    ]
    return tuple(Problem(path=_path(item["loc"]), message=f"{_message(item)}{_meant(item, model)}") for item in items)


def _meant(item: ErrorDetails, model: type[Model]) -> str:
    """A field or a value that the user probably meant, as the end of the message."""
    if item["loc"][-2:] == ("lora", "targetModules"):
        return did_you_mean(item["input"], TARGET_MODULE_PRESETS)
    return suggestion(item, model, root="spec")


def _is_inside(location: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer


def _path(location: tuple[int | str, ...]) -> str:
    return "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _message(item: ErrorDetails) -> str:
    if item["type"] == "missing":
        return "is required"
    if item["type"] == "extra_forbidden":
        return "unknown field"
    if item["type"] == "string_pattern_mismatch":
        what, expected = EXPECTED[".".join(map(str, item["loc"]))]
        return f"{item['input']!r} is not a valid {what}; expected {expected}"
    if item["type"] == "too_short":
        least = item["ctx"]["min_length"]
        return f"must have at least {least} item{'' if least == 1 else 's'}, has {len(item['input'])}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error" or isinstance(item["input"], dict):
        return message
    return f"{message[0].lower()}{message[1:]}, is {item['input']!r}"
