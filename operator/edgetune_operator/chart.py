"""The generated parts of the Helm chart: the CRD that it installs, and the profiles' part of its values' schema."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetune_contract.stages import Stage
from edgetune_operator.profiles import Profile

CRD_PATH = "charts/edgetune/files/crd.yaml"
VALUES_SCHEMA_PATH = "charts/edgetune/values.schema.json"


def values_schema(root: Path) -> str:
    """Text of the schema of the chart's values: written by hand but for `$defs`, which are the profiles' models."""
    schema: dict[str, Any] = json.loads((root / VALUES_SCHEMA_PATH).read_text(encoding="utf-8"))
    return json.dumps(schema | {"$defs": profile_definitions()}, indent=2, ensure_ascii=False) + "\n"


def profile_definitions() -> dict[str, Any]:
    """JSON Schemas of a profile and of what it is made of, by name."""
    profile = Profile.model_json_schema()
    definitions = profile.pop("$defs") | {"Profile": profile}
    stage_names = definitions.pop(Stage.__name__)["enum"]
    return {name: _rewritten(definition, stage_names) for name, definition in sorted(definitions.items())}


def _rewritten(node: Any, stage_names: Sequence[str]) -> Any:
    """A schema without pydantic's titles, which repeat the names, and with the stages as properties.

    Helm reports a name that propertyNames refuses with a path of something else.
    """
    if isinstance(node, list):
        return [_rewritten(item, stage_names) for item in node]
    if not isinstance(node, dict):
        return node
    schema = {key: _rewritten(value, stage_names) for key, value in node.items() if not _is_title(key, value)}
    if schema.pop("propertyNames", None) is not None:
        schema["properties"] = dict.fromkeys(stage_names, schema["additionalProperties"])
        schema["additionalProperties"] = False
    return schema


def _is_title(key: str, value: Any) -> bool:
    return key == "title" and isinstance(value, str)
