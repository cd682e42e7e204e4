"""What earlier runs in a store tell about a training: the tokens of its data, and the speed of its base by device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetune_cli.planning.figures import EarlierStage, speed_per_rank
from edgetune_contract.digest import MANIFEST
from edgetune_contract.request import Manifest
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage

if TYPE_CHECKING:
    from edgetune_jobs.store.store import Store


@dataclass(frozen=True)
class Rows:
    """The training rows, as prepare counted them."""

    examples: int
    tokens: int
    """Of all examples, after truncation."""

    longest: int
    """Tokens of the longest example, after truncation."""

    @property
    def mean(self) -> float:
        """Mean tokens of an example."""
        return self.tokens / self.examples


@dataclass(frozen=True)
class Speed:
    """The speed of a training."""

    device: str
    tokens_per_second: float
    """Of one device, also if several trained together."""

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return not self.device.lower().startswith("cpu")


@dataclass(frozen=True)
class EarlierRuns:
    """What is known from earlier runs."""

    rows: Rows | None
    speeds: tuple[Speed, ...]
    """The newest of each device."""


def find_earlier_stages(store: "Store", parameters: Parameters) -> dict[Stage, EarlierStage]:
    """The newest run of each stage with the same base; of prepare with the same data, of train with the same method."""
    found = {}
    for stage in Stage:
        manifests = [each for each in _manifests(store, stage) if _is_comparable(stage, each, parameters)]
        if manifests:
            newest = max(manifests, key=lambda each: each.created_at)
            found[stage] = EarlierStage(newest.result.seconds, newest.result.metrics)
    return found


def _is_comparable(stage: Stage, manifest: Manifest, parameters: Parameters) -> bool:
    if stage is Stage.PREPARE:
        return _has_same_rows(manifest, parameters)
    if stage is Stage.TRAIN:
        return _has_same_model(manifest, parameters)
    return manifest.parameters.get("baseModel") == parameters.base_model.model_dump(mode="json", exclude_none=True)


def find_earlier_runs(store: "Store", parameters: Parameters) -> EarlierRuns:
    """Look through the manifests of prepare and train, in which other objects of the namespace count too."""
    prepared = [each for each in _manifests(store, Stage.PREPARE) if _has_same_rows(each, parameters)]
    trained = [each for each in _manifests(store, Stage.TRAIN) if _has_same_model(each, parameters)]
    speeds = {}
    for each in sorted(trained, key=lambda each: each.created_at):
        device, speed = each.result.facts.get("device"), speed_per_rank(each.result.metrics)
        if device and speed > 0:
            speeds[device] = Speed(device, speed)
    rows = [rows for each in sorted(prepared, key=lambda each: each.created_at) if (rows := _rows(each, parameters))]
    return EarlierRuns(rows[-1] if rows else None, tuple(speeds.values()))


def _manifests(store: "Store", stage: Stage) -> Iterator[Manifest]:
    from edgetune_jobs.store.manifests import read_manifest

    prefix = f"stages/{stage.value}"
    for stored in store.list(prefix):
        digest, _, name = stored.key.removeprefix(f"{prefix}/").partition("/")
        if name == MANIFEST and (manifest := read_manifest(store, stage, digest)) is not None:
            yield manifest


def _has_same_rows(manifest: Manifest, parameters: Parameters) -> bool:
    wanted = parameters.model_dump(mode="json", exclude_none=True)
    found = manifest.parameters
    return all(found.get(part) == wanted[part] for part in ("baseModel", "dataset"))


def _has_same_model(manifest: Manifest, parameters: Parameters) -> bool:
    wanted = parameters.model_dump(mode="json", exclude_none=True)
    return all(manifest.parameters.get(part) == wanted[part] for part in ("baseModel", "method"))


def _rows(manifest: Manifest, parameters: Parameters) -> Rows | None:
    """The rows, if they were truncated at the same length."""
    metrics, training = manifest.result.metrics, manifest.parameters.get("training")
    length = training.get("maxLength") if isinstance(training, dict) else None
    if length != parameters.training.max_length or not metrics.get("trainExamples"):
        return None
    longest = min(int(metrics.get("tokensMax", 0)), parameters.training.max_length)
    return Rows(int(metrics["trainExamples"]), int(metrics.get("trainTokens", 0)), longest)
