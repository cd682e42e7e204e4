"""The CustomResourceDefinition, generated from the models in `api`.

pydantic produces JSON Schema; the API server accepts structural schemas only: no references, no unions, one type for
every node. The generator fails, with the path, on anything that a structural schema cannot express, so that a check is
never lost silently.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from edgetune_contract.schema import Model
from edgetune_operator.api import names
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.status.object_status import LoraFineTuneStatus

Schema = dict[str, Any]

_DEFS = "#/$defs/"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_FREE_FORM = "x-kubernetes-preserve-unknown-fields"
_LIST_TYPE = "x-kubernetes-list-type"
# Copied unchanged, in this order, before the child nodes.
_COPIED = (
    "description",
    "type",
    "format",
    "default",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "multipleOf",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    _INT_OR_STRING,
    _FREE_FORM,
    _LIST_TYPE,
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
    "required",
)
_NESTED = ("anyOf", "properties", "items", "additionalProperties")
# Titles repeat the names. The API server cannot restrict the keys of a map: only the operator writes such maps.
_DROPPED = ("title", "propertyNames")


class NotStructural(ValueError):
    """A model has something that a structural schema cannot express."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


def structural_schema(model: type[Model], path: str, with_defaults: bool = True) -> Schema:
    """OpenAPI schema of a model as the API server accepts it.

    Args:
        model: the model.
        path: name of its field in the object, for messages.
        with_defaults: whether the API server sets omitted fields to their defaults.

    Raises:
        NotStructural: the API server could not check a part of the model; the message has its path.
    """
    schema = model.model_json_schema(by_alias=True)
    return _Rewriter(schema.pop("$defs", {}), with_defaults).rewrite(schema, path)


class _Rewriter:
    """Rewrites the nodes of one JSON Schema."""

    def __init__(self, definitions: Mapping[str, Schema], with_defaults: bool) -> None:
        self._definitions = definitions
        self._with_defaults = with_defaults

    def rewrite(self, node: Schema, path: str, inside: tuple[str, ...] = ()) -> Schema:
        """Structural node for a node at `path`; `inside` are the definitions that contain it."""
        node, inside = self._inlined(node, path, inside)
        node = _with_boolean_bounds(_without_null(node))
        if "const" in node:
            node["enum"] = [node.pop("const")]
        _refuse_unknown(node, path)
        rewritten = {key: node[key] for key in _COPIED if key in node}
        if "description" in node:
            rewritten["description"] = " ".join(node["description"].split())
        if "anyOf" in node:
            # Already written by hand as the API server accepts it.
            rewritten["anyOf"] = node["anyOf"]
        if "properties" in node:
            rewritten["properties"] = {
                name: self.rewrite(child, f"{path}.{name}", inside) for name, child in node["properties"].items()
            }
        if "items" in node:
            rewritten["items"] = self.rewrite(node["items"], f"{path}[]", inside)
            if node.get("type") == "array":
                rewritten.setdefault(_LIST_TYPE, "atomic")
        # Beside properties, it only makes unknown fields errors, which the API server does anyway.
        if "additionalProperties" in node and "properties" not in node:
            rewritten["additionalProperties"] = self._values(node["additionalProperties"], path, inside)
        self._set_default(rewritten)
        return rewritten

    def _values(self, values: Any, path: str, inside: tuple[str, ...]) -> Schema:
        if not isinstance(values, dict):
            raise NotStructural(path, "a map needs a type for its values")
        return self.rewrite(values, f"{path}.*", inside)

    def _inlined(self, node: Schema, path: str, inside: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]]:
        """The node with its reference, or that of its only alternative to null, replaced by the definition."""
        node = _without_null(dict(node))
        while "$ref" in node:
            name = node.pop("$ref").removeprefix(_DEFS)
            if name in inside:
                raise NotStructural(path, f"{name} contains itself")
            node, inside = {**self._definitions[name], **node}, (*inside, name)
        return node, inside

    def _set_default(self, node: Schema) -> None:
        """Keep the whole default, because the API server evaluates rules on it as written; drop a default of null."""
        default = _without_nulls(node.pop("default", None))
        if self._with_defaults and default is not None:
            node["default"] = default


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _without_null(node: Schema) -> Schema:
    """The node without its alternative null: an optional field may be missing instead."""
    alternatives = node.get("anyOf", [])
    others = [alternative for alternative in alternatives if alternative != {"type": "null"}]
    if len(others) == len(alternatives) or len(others) != 1:
        return node
    return {**others[0], **{key: value for key, value in node.items() if key != "anyOf"}}


def _with_boolean_bounds(node: Schema) -> Schema:
    """The node with exclusive bounds as in OpenAPI 3.0: the bound, and a boolean beside it."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in node:
            node = node | {bound: node[exclusive], exclusive: True}
    return node


def _refuse_unknown(node: Schema, path: str) -> None:
    unknown = sorted(set(node) - {*_COPIED, *_NESTED, *_DROPPED})
    if unknown:
        raise NotStructural(path, f"a structural schema has no {', '.join(unknown)}")
    typeless = bool(node.get(_FREE_FORM) or node.get(_INT_OR_STRING))
    if "anyOf" in node and not typeless:
        raise NotStructural(path, "a structural schema has no union of types")
    if "type" not in node and not typeless:
        raise NotStructural(path, "the type is missing")
    if node.get("type") == "array" and "items" not in node:
        raise NotStructural(path, "a list needs a type for its items")


def custom_resource_definition() -> dict[str, Any]:
    """The whole CustomResourceDefinition as plain values."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
                "categories": ["edgetune"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": list(_printer_columns()),
                    "schema": {"openAPIV3Schema": object_schema()},
                }
            ],
        },
    }


def object_schema() -> Schema:
    """Schema of the whole object."""
    # Only the operator writes status, and it writes all of it: a default would look like a change.
    status = structural_schema(LoraFineTuneStatus, "status", with_defaults=False)
    # A new object must not look current: kstatus compares observedGeneration with metadata.generation.
    status["default"] = {"observedGeneration": -1}
    return {
        "description": "One fine-tuning run: from a base model and data to a scored INT8 edge model in the store.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{names.API_VERSION}."},
            "kind": {"type": "string", "description": f"{names.KIND}."},
            "metadata": {"type": "object"},
            "spec": structural_schema(LoraFineTuneSpec, "spec"),
            "status": status,
        },
    }


def _printer_columns() -> Iterable[dict[str, Any]]:
    columns = {
        "Phase": "phase",
        "Progress": "display.progress",
        "Base": "display.base",
        "Tuned": "display.tuned",
        "Edge": "display.edge",
        "Adapter": "display.adapterSize",
        "Edge-size": "display.edgeSize",
    }
    for name, field in columns.items():
        yield {"name": name, "type": "string", "jsonPath": f".status.{field}"}
    # Priority 1: shown by `kubectl get -o wide`.
    for name, field in (("Version", "version"), ("Processes", "processes"), ("Note", "note")):
        yield {"name": name, "type": "string", "jsonPath": f".status.display.{field}", "priority": 1}
    yield {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
