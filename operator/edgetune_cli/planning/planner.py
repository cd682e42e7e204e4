"""Plans of objects, by the decisions of the run itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from edgetune_cli.documents.many import FileObject
from edgetune_cli.planning.before import Before, spec_of
from edgetune_cli.planning.figures import EarlierStage, Estimate, estimate_stage, recorded_stages
from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.profiles.tenants import Tenant
from edgetune_operator.api.spec import DeletionPolicy, LoraFineTuneSpec
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.decisions.admission import admit
from edgetune_operator.decisions.forecast.explanation import ForecastAction, StageForecast
from edgetune_operator.decisions.forecast.passes import Forecast, StoreView, forecast
from edgetune_operator.decisions.observe import observe
from edgetune_operator.decisions.plans import Outcome

_RUNS = (ForecastAction.RUN, ForecastAction.CHECK)


@dataclass(frozen=True)
class ObjectPlan:
    """The plan of one object."""

    file: str
    key: Key
    forecast: Forecast
    estimates: Mapping[Stage, Estimate]
    """Of the stages that run."""

    warnings: tuple[str, ...] = ()
    """Those of the forecast, and about paths with nothing behind them."""

    @property
    def running(self) -> tuple[StageForecast, ...]:
        """The stages that get a Job."""
        return tuple(line for line in self.forecast.stages if line.action in _RUNS)

    @property
    def asks_for_gpu(self) -> bool:
        """Whether a stage that runs requests a GPU."""
        return any(line.gpus for line in self.running)

    @property
    def is_refused(self) -> bool:
        """Whether the object ends without a model, whatever its stages find."""
        return self.forecast.outcome in (Outcome.FAILED, Outcome.STALLED)

    @property
    def gpu_seconds(self) -> float | None:
        """Estimated GPU time of all stages; None if it is unknown for one that requests a GPU."""
        parts = [self.estimates[line.stage].gpu_seconds for line in self.running if line.gpus]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None


class StoreOfModel(StoreView, Protocol):
    """A store that also has figures of earlier runs."""

    def earlier_stages(self, parameters: Parameters) -> Mapping[Stage, EarlierStage]:
        """Figures of the newest run of each stage with the same base."""
        ...


def plan_object(
    found: FileObject,
    before: Before,
    profile_of: Callable[[LoraFineTuneSpec], Mapping[str, Profile]],
    open_store: Callable[[StoreLocation, str, bool], StoreOfModel] | None,
) -> ObjectPlan:
    """Plan of an object; nothing is written.

    Args:
        found: a valid object.
        before: has the object before the change.
        profile_of: the profiles that an object may use, by name.
        open_store: opens a view of the store for the model of a name, which may have to be signed. If None, the store
            is assumed to have what the status before the change records.
    """
    key, spec = found.key, parse_spec(found.document["spec"])
    profile = admit(spec, profile_of(spec), Tenant(key.namespace))
    applied = before.applied(key, found.document, spec.model_dump(mode="json", exclude_none=True))
    usable = profile if isinstance(profile, Profile) else None
    store: StoreOfModel | None = None
    if open_store and usable:
        store = open_store(usable.store.for_namespace(key.namespace), key.name, usable.signing is not None)
    snapshot = observe(applied, jobs=(), pods=(), progress=None)
    found_forecast = forecast(spec, profile, snapshot, datetime.now(UTC), store=store, before=spec_of(before.read(key)))
    earlier: dict[Stage, EarlierStage] = {} if store is None else dict(store.earlier_stages(spec.parameters))
    earlier |= recorded_stages(snapshot.previous)
    prices = usable.prices if usable else None
    estimates = {
        line.stage: estimate_stage(line.stage, line.gpus, spec.parameters, earlier, prices)
        for line in found_forecast.stages
        if line.action in _RUNS
    }
    missing = (f"{warning.path}: {warning.message}: a run fails here" for warning in found.warnings)
    return ObjectPlan(found.file, key, found_forecast, estimates, (*missing, *found_forecast.warnings))


def removed_objects(before: Mapping[Key, Mapping[str, Any]], planned: set[Key]) -> dict[Key, str]:
    """Objects that were there before and no longer are, with what their deletion does."""
    removed = {}
    for key, document in before.items():
        if key not in planned:
            spec = spec_of(document)
            deletes = spec is not None and spec.deletion_policy is DeletionPolicy.DELETE
            removed[key] = (
                "removed; its artifacts are deleted" if deletes else "removed; its artifacts stay in the store"
            )
    return removed
