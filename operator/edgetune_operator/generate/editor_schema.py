"""The JSON Schema of a LoraFineTune as users write it, for editors and kubeconform.

It refuses unknown fields, which a structural schema cannot: the API server does that itself. Rules across fields are in
CEL only. The file's name is the one that kubeconform and the catalogs of CRD schemas use.
"""

import json
import re
from typing import Any

from edgetune_operator.api import names
from edgetune_operator.api.spec_check import LABEL_PATTERN, METADATA_FIELDS, SUBDOMAIN_PATTERN
from edgetune_operator.generate.crd import Schema, object_schema

SCHEMA_PATH = f"schemas/{names.GROUP}/{names.KIND.lower()}_{names.VERSION}.json"
_DRAFT = "http://json-schema.org/draft-07/schema#"
_PREFIX = "x-kubernetes-"
# Character classes are written for Go and Rust; in an editor, \x{202E} is an x that is repeated.
_CODE_POINT = re.compile(r"\\x\{([0-9A-F]+)\}")
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def editor_schema() -> str:
    """Text of the schema's file."""
    whole = object_schema()
    properties = {
        "apiVersion": {"const": names.API_VERSION},
        "kind": {"const": names.KIND},
        "metadata": _metadata(),
        "spec": _rewritten(whole["properties"]["spec"], is_optional=False),
        "status": {"type": "object", "description": "Written by the operator."},
    }
    schema = {
        "$schema": _DRAFT,
        "title": names.KIND,
        "description": whole["description"],
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": properties,
    }
    # Only ASCII: the patterns have characters that change how a text is shown.
    return json.dumps(schema, indent=2) + "\n"


def _metadata() -> Schema:
    known: dict[str, Any] = {name: {} for name in sorted(METADATA_FIELDS)}
    return {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": known
        | {
            "name": {"type": "string", "maxLength": 253, "pattern": f"^{SUBDOMAIN_PATTERN}$"},
            "namespace": {"type": "string", "maxLength": 63, "pattern": f"^{LABEL_PATTERN}$"},
            "labels": _TEXTS,
            "annotations": _TEXTS,
        },
    }


def _rewritten(node: Schema, *, is_optional: bool) -> Schema:
    """A structural node as JSON Schema; the API server reads null in an optional field as no field."""
    if f"{_PREFIX}preserve-unknown-fields" in node:
        return _word_or_list(node)
    schema = {key: value for key, value in node.items() if not key.startswith(_PREFIX)}
    types = ["integer", "string"] if f"{_PREFIX}int-or-string" in node else [node["type"]]
    types += ["null"] if is_optional else []
    schema["type"] = types if len(types) > 1 else types[0]
    if "enum" in node and is_optional:
        schema["enum"] = [*node["enum"], None]
    if node.get(f"{_PREFIX}list-type") == "set":
        schema["uniqueItems"] = True
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if schema.pop(exclusive, False):
            schema[exclusive] = schema.pop(bound)
    if "pattern" in node:
        schema["pattern"] = _portable(node["pattern"])
    if "items" in node:
        schema["items"] = _rewritten(node["items"], is_optional=False)
    if "properties" in node:
        required = node.get("required", ())
        schema["additionalProperties"] = False
        schema["properties"] = {
            name: _rewritten(child, is_optional=name not in required) for name, child in node["properties"].items()
        }
    return schema


def _word_or_list(node: Schema) -> Schema:
    """A field that is one of some words, or a list: two alternatives, which a structural schema cannot have."""
    words, bounds = node["anyOf"]
    items = {"type": "array", "minItems": bounds["minItems"], "maxItems": bounds["maxItems"], "items": node["items"]}
    # Each of some words is listed once; the API server cannot check that in a field without a type.
    items |= {"uniqueItems": True} if "enum" in node["items"] else {}
    kept = {key: node[key] for key in ("description", "default") if key in node}
    return kept | {"anyOf": [words, items, {"type": "null"}]}


def _portable(pattern: str) -> str:
    """The pattern for Go and for JavaScript, which share two-digit escapes and the characters themselves."""
    return _CODE_POINT.sub(lambda found: _character(int(found[1], 16)), pattern)


def _character(code: int) -> str:
    return f"\\x{code:02X}" if code <= 0xFF else chr(code)
