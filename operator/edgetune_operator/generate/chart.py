"""The generated parts of the Helm chart: the CRD that it installs, and the part of the values schema for profiles."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetune_contract.access.allowed_sources import SOURCE_FORMS
from edgetune_contract.stages import Stage
from edgetune_contract.training import MOST_GPUS
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import (
    CA_VARIABLES,
    OWN_LABEL_PREFIX,
    OWN_VARIABLE_PREFIX,
    OWN_VARIABLES,
    VARIABLE_PATTERN,
    Profile,
)
from edgetune_operator.api.profiles.resources import GPU_PATTERN, ON_SEVERAL_GPUS, SLICE_PATTERN

CRD_PATH = "charts/edgetune/files/crd.yaml"
VALUES_SCHEMA_PATH = "charts/edgetune/values.schema.json"

_ONE_GPU = {"type": ["string", "integer"], "minimum": 0, "maximum": 1, "pattern": "^[01]$"}
_GPU_COUNT = {"type": ["string", "integer"], "minimum": 0, "maximum": MOST_GPUS, "pattern": "^[0-9]{1,2}$"}
# Of the schemas that reject every value, Helm reports a constant best: "at '<path>': value must be '<constant>'".
_RESERVED = {"const": "left out: the operator sets it"}
_IN_THE_CA_BUNDLE = {"const": "left out: caBundleConfigMap sets it"}
_OF_THE_QUEUE = {"const": "left out: queue.topology sets one"}


def values_schema(root: Path) -> str:
    """Text of the schema of the chart's values: written by hand, except for `$defs`, which come from the models."""
    schema: dict[str, Any] = json.loads((root / VALUES_SCHEMA_PATH).read_text(encoding="utf-8"))
    return json.dumps(schema | {"$defs": profile_definitions()}, indent=2, ensure_ascii=False) + "\n"


def profile_definitions() -> dict[str, Any]:
    """JSON Schemas of a profile and its parts, by name."""
    profile = Profile.model_json_schema()
    definitions = profile.pop("$defs") | {"Profile": profile}
    stage_names = definitions.pop(Stage.__name__)["enum"]
    rewritten = {name: _rewritten(definition, stage_names) for name, definition in sorted(definitions.items())}
    _add_what_validators_check(rewritten)
    return rewritten


def _add_what_validators_check(definitions: dict[str, Any]) -> None:
    """Add the rules that the models have as code: a profile that the operator rejects would stop the operator.

    The template `_gpus.tpl` has those that compare numbers of GPUs, which a schema cannot. Also require a bucket: a
    store in a folder is for local runs only.
    """
    definitions["ProfileStore"]["properties"]["uri"]["pattern"] = "^s3://.+$"
    numbers = {f"^({GPU_PATTERN})$": _GPU_COUNT, f"^({SLICE_PATTERN})$": _ONE_GPU}
    for field in ("requests", "limits"):
        definitions["Resources"]["properties"][field]["patternProperties"] = numbers
    definitions["Resources"]["properties"]["claims"]["maxItems"] = MOST_GPUS
    one = {"patternProperties": {f"^({GPU_PATTERN})$": _ONE_GPU}}
    definitions["OneNode"] = {"properties": {"nodes": {"maximum": 1}}}
    definitions["OneGpu"] = {"properties": {"requests": one, "limits": one, "claims": {"maxItems": 1}}}
    of_stages = definitions["Profile"]["properties"]["resources"]["properties"]
    for stage in of_stages.keys() - {Stage.TRAIN.value}:
        limits = ["OneNode"] if stage in ON_SEVERAL_GPUS else ["OneNode", "OneGpu"]
        of_stages[stage] = {"allOf": [of_stages[stage], *({"$ref": f"#/$defs/{each}"} for each in limits)]}
    definitions["Cache"]["oneOf"] = [{"required": [name]} for name in ("hostPath", "persistentVolumeClaim")]
    definitions["Topology"]["oneOf"] = [{"required": [name]} for name in ("required", "preferred")]
    profile = definitions["Profile"]
    env, labels = profile["properties"]["env"], profile["properties"]["podLabels"]
    own_variables = f"^({'|'.join(OWN_VARIABLES)}|{OWN_VARIABLE_PREFIX}.*)$"
    env["patternProperties"] = {f"^{VARIABLE_PATTERN}$": {"type": "string"}, own_variables: _RESERVED}
    env["additionalProperties"] = False
    own_labels = f"^({re.escape(OWN_LABEL_PREFIX)}.*|{re.escape(names.MANAGED_BY_LABEL)})$"
    labels["patternProperties"] = {own_labels: _RESERVED}
    definitions["LabelSelector"]["minProperties"] = 1
    is_required = {"properties": {"requireQueue": {"const": True}}, "required": ["requireQueue"]}
    has_queue = {"properties": {"queue": {"not": {"type": "null"}}}, "required": ["queue"]}
    topology = {"type": "object", "properties": {"topology": {"type": "object"}}, "required": ["topology"]}
    has_topology = {"properties": {"queue": topology}, "required": ["queue"]}
    without = {
        "properties": {"podAnnotations": {"properties": dict.fromkeys(names.TOPOLOGY_ANNOTATIONS, _OF_THE_QUEUE)}}
    }
    profile["allOf"] = [{"if": is_required, "then": has_queue}, {"if": has_topology, "then": without}]
    sources = profile["properties"]["sources"]["anyOf"][0]
    sources["items"] = {"if": sources["items"], "else": {"const": SOURCE_FORMS}}
    bundle = {"type": "string", "minLength": 1}
    profile["if"] = {"properties": {"caBundleConfigMap": bundle}, "required": ["caBundleConfigMap"]}
    profile["then"] = {"properties": {"env": {"properties": dict.fromkeys(CA_VARIABLES, _IN_THE_CA_BUNDLE)}}}


def _rewritten(node: Any, stage_names: Sequence[str]) -> Any:
    """A schema without pydantic's titles, which repeat the names, and with the stages as properties.

    For a name that propertyNames rejects, Helm reports the wrong path.
    """
    if isinstance(node, list):
        return [_rewritten(item, stage_names) for item in node]
    if not isinstance(node, dict):
        return node
    if node == {"$ref": f"#/$defs/{Stage.__name__}"}:
        return {"enum": list(stage_names)}
    schema = {key: _rewritten(value, stage_names) for key, value in node.items() if not _is_title(key, value)}
    if schema.pop("propertyNames", None) is not None:
        schema["properties"] = dict.fromkeys(stage_names, schema["additionalProperties"])
        schema["additionalProperties"] = False
    return schema


def _is_title(key: str, value: Any) -> bool:
    return key == "title" and isinstance(value, str)
