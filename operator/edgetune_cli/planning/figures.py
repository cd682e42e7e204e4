"""What stages take, estimated from an earlier run of them: GPU time, bytes that they move, cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles.gpu_use import Prices
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import StageState

_MOVED = ("downloadedBytes", "uploadedBytes")


@dataclass(frozen=True)
class EarlierStage:
    """Figures of a stage in an earlier run."""

    seconds: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Estimate:
    """What one stage takes; None where no earlier run shows it."""

    seconds: float | None = None
    gpu_seconds: float | None = None
    """Seconds times GPUs; None without a GPU."""

    moved_bytes: int | None = None
    """Bytes read from and written to the store."""

    cost: Mapping[str, float] | None = None
    """By currency, at the profile's prices."""


def recorded_stages(status: LoraFineTuneStatus) -> dict[Stage, EarlierStage]:
    """Figures of the stages that a status records."""
    return {
        row.name: EarlierStage(row.seconds, row.metrics)
        for row in status.stages
        if row.state is StageState.SUCCEEDED and (row.seconds or row.metrics)
    }


def estimate_stage(
    stage: Stage, gpus: int, parameters: Parameters, earlier: Mapping[Stage, EarlierStage], prices: Prices | None
) -> Estimate:
    """What a stage takes.

    Args:
        stage: the stage.
        gpus: GPUs that its Job requests.
        parameters: of the run.
        earlier: figures of the stages of an earlier run.
        prices: of the profile.
    """
    found = earlier.get(stage)
    if found is None:
        return Estimate()
    seconds = _training_seconds(parameters, max(gpus, 1), earlier) if stage is Stage.TRAIN else found.seconds
    gpu_seconds = seconds * gpus if seconds is not None and gpus else None
    moved = [found.metrics[name] for name in _MOVED if name in found.metrics]
    cost = None
    if gpu_seconds is not None and prices is not None:
        cost = {prices.currency: round(gpu_seconds / 3600 * prices.gpu_hour, 2)}
    return Estimate(seconds, gpu_seconds, int(sum(moved)) if moved else None, cost)


def _training_seconds(parameters: Parameters, ranks: int, earlier: Mapping[Stage, EarlierStage]) -> float | None:
    """Seconds of a training on a number of ranks, by its tokens and the speed of each rank of the earlier one."""
    rows = earlier[Stage.PREPARE].metrics if Stage.PREPARE in earlier else {}
    trained = earlier[Stage.TRAIN]
    examples, tokens, speed = rows.get("trainExamples"), rows.get("trainTokens"), speed_per_rank(trained.metrics)
    if examples and tokens and speed:
        return trained_tokens(parameters, int(examples), int(tokens)) / (speed * ranks)
    return None if trained.seconds is None else trained.seconds * _ranks(trained.metrics) / ranks


def speed_per_rank(metrics: Mapping[str, float]) -> float:
    """Tokens per second of each process of a training, which has one GPU, by its metrics; 0 if they do not say it."""
    return metrics.get("tokensPerSecond", 0) / _ranks(metrics)


def _ranks(metrics: Mapping[str, float]) -> float:
    """Number of processes of a training: its metrics have it only if there were several."""
    return metrics.get("worldSize", 1)


def trained_tokens(parameters: Parameters, examples: int, tokens: int) -> int:
    """Tokens of all optimizer steps of a training on so many examples with so many tokens."""
    training = parameters.training
    if training.max_steps is None:
        return math.ceil(training.epochs * tokens)
    return round(training.max_steps * training.batch_size * tokens / examples)
