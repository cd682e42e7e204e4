"""`edgetune plan`: what a run of an object would do, as the run itself would decide it."""

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
    """What a run would do with an object; nothing is written.

    Args:
        document: a valid object.
        folder: work folder of its runs.
        profiles: by name.
        open_store: gives the view of the store where the model of this name has its versions; None: what the last
            run's status recorded is taken to be there.
    """
    key = Key(document["metadata"].get("namespace", "default"), document["metadata"]["name"])
    spec = parse_spec(document["spec"])
    profile = profiles.get(spec.profile)
    objects = ObjectFolder(folder / "objects")
    last = objects.read(key)
    # As a run does: it asks for a look at the inputs and for another try of what failed.
    applied = objects.applied(key, spec.model_dump(mode="json", exclude_none=True), retry=str(uuid.uuid4()))
    store = open_store(profile.store.for_namespace(key.namespace), key.name) if open_store and profile else None
    snapshot = observe(applied, jobs=(), pods=(), progress=None)
    return forecast(spec, profile, snapshot, datetime.now(UTC), store=store, before=_spec_of(last))


def _spec_of(document: Mapping[str, Any] | None) -> LoraFineTuneSpec | None:
    try:
        return parse_spec(document.get("spec")) if document is not None else None
    except InvalidSpec:  # of another version
        return None
