"""`edgetune plan`: the stages that a run of an object would execute, by the decisions of the run itself."""

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgetune_cli.local.objects import ObjectFolder
from edgetune_contract.request import StoreLocation
from edgetune_operator.api.names import Key
from edgetune_operator.api.objects import LoraFineTuneSpec
from edgetune_operator.api.profiles import Profile
from edgetune_operator.api.spec_check import InvalidSpec, parse_spec
from edgetune_operator.decisions.forecast.passes import Forecast, StoreView, forecast
from edgetune_operator.decisions.observe import observe


def plan_object(
    document: Mapping[str, Any],
    folder: Path,
    profiles: Mapping[str, Profile],
    open_store: Callable[[StoreLocation, str], StoreView] | None,
) -> Forecast:
    """Forecast of a run of an object; nothing is written.

    Args:
        document: a valid object.
        folder: work folder of its runs.
        profiles: by name.
        open_store: opens a view of the store for the model of a name. If None, the store is assumed to have what the
            last run's status records.
    """
    key = Key(document["metadata"].get("namespace", "default"), document["metadata"]["name"])
    spec = parse_spec(document["spec"])
    profile = profiles.get(spec.profile)
    objects = ObjectFolder(folder / "objects")
    last = objects.read(key)
    # Like a run, with a new retry token: the inputs are checked and failed stages are retried.
    applied = objects.applied(key, spec.model_dump(mode="json", exclude_none=True), retry=str(uuid.uuid4()))
    store = open_store(profile.store.for_namespace(key.namespace), key.name) if open_store and profile else None
    snapshot = observe(applied, jobs=(), pods=(), progress=None)
    return forecast(spec, profile, snapshot, datetime.now(UTC), store=store, before=_spec_of(last))


def _spec_of(document: Mapping[str, Any] | None) -> LoraFineTuneSpec | None:
    try:
        return parse_spec(document.get("spec")) if document is not None else None
    except InvalidSpec:  # written by another version
        return None
