"""The generated parts of the Helm chart: the CRD that it installs, and the profiles' part of its values' schema."""

import json
from pathlib import Path
from typing import Any

from edgetune_operator.profiles import Profile

CRD_PATH = "charts/edgetune/files/crd.yaml"
VALUES_SCHEMA_PATH = "charts/edgetune/values.schema.json"


def values_schema(root: Path) -> str:
    """Text of the schema of the chart's values: written by hand but for `$defs`, which are the profiles' models."""
    schema: dict[str, Any] = json.loads((root / VALUES_SCHEMA_PATH).read_text(encoding="utf-8"))
    return json.dumps(schema | {"$defs": profile_definitions()}, indent=2, ensure_ascii=False) + "\n"


def profile_definitions() -> dict[str, Any]:
    """JSON Schemas of a profile and of what it is made of, by name; a profile that `load_profiles` takes is valid."""
    profile = Profile.model_json_schema()
    definitions = profile.pop("$defs") | {"Profile": profile}
    return {name: _without_titles(definition) for name, definition in sorted(definitions.items())}


def _without_titles(node: Any) -> Any:
    """A schema without pydantic's titles, which repeat the names."""
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: _without_titles(value) for key, value in node.items() if key != "title" or not isinstance(value, str)}
