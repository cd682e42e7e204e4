"""The parameters of a spec as a tracker has them: flat, as text."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from edgetune_contract.spec import Parameters


def flat_parameters(parameters: Parameters) -> dict[str, str]:
    """Parameters by their path in the spec, such as training.learningRate; a list is JSON."""
    return dict(_flat(parameters.model_dump(mode="json", exclude_none=True), ""))


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
