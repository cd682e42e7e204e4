"""GPU time in the status: what an object used, what part of it made no progress, and what it cost."""

from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import Field

from edgetune_contract.schema import Model, Name
from edgetune_contract.stages import Stage

MAX_GPU_ROWS = 64
_COST_DIGITS = 6

Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
"""ISO 4217 code."""

GpuSeconds = Annotated[float, Field(ge=0, le=1e12)]
PodTime = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]


class Prices(Model):
    """What the resources of stages cost."""

    currency: Currency
    """ISO 4217 code, such as EUR."""

    gpu_hour: Annotated[float, Field(ge=0, le=1_000_000)]
    """Price of one GPU, or of one slice, for one hour."""


class GpuUse(Model):
    """GPU time of ended attempts: seconds that their containers ran, times the GPUs that they had."""

    seconds: GpuSeconds = 0.0
    """All GPU time. It only grows."""

    failed_seconds: GpuSeconds = 0.0
    """Part of it: failed attempts. A training may have resumed from their checkpoints."""

    repeated_seconds: GpuSeconds = 0.0
    """Part of it, estimated from the pace: steps that were repeated after interruptions."""

    loading_seconds: GpuSeconds = 0.0
    """Part of it: trainings that did not fail, before their first step and after their last one."""

    lost_peer_seconds: GpuSeconds = 0.0
    """Part of it: Pods of an attempt on several nodes that did not fail, after the first of them had been stopped."""

    waiting_seconds: GpuSeconds = 0.0
    """Not part of it: Pods that held GPUs before their container started, such as during the pull of an image."""

    estimated_seconds: GpuSeconds = 0.0
    """Part of it, estimated from the times of Jobs and Pods: attempts whose end the operator did not observe."""

    cost: dict[Name, Annotated[float, Field(ge=0, le=1e15)]] = {}
    """Price of the GPU time, by currency, at the prices of the profile when each Job was created."""

    def plus(self, other: "GpuUse") -> "GpuUse":
        """The sum of both."""
        names = [name for name in GpuUse.model_fields if name != "cost"]
        cost = {
            currency: round(self.cost.get(currency, 0.0) + other.cost.get(currency, 0.0), _COST_DIGITS)
            for currency in sorted({*self.cost, *other.cost})
        }
        return GpuUse(**{name: getattr(self, name) + getattr(other, name) for name in names}, cost=cost)


class StageGpuUse(GpuUse):
    """GPU time of one stage with one profile."""

    profile: Annotated[str, Field(max_length=63)]
    """Name of the profile; empty for the profiles for which there is no row left."""

    stage: Stage
    """The stage."""

    def with_use(self, other: GpuUse) -> Self:
        """This row, with further use."""
        return type(self)(profile=self.profile, stage=self.stage, **dict(self.plus(other)))


class GpuStatus(Model):
    """GPU time of an object."""

    total: GpuUse = GpuUse()
    """Of all runs of the object since it was created."""

    run: GpuUse = GpuUse()
    """Of the current run, and of attempts that ended since the last one did."""

    stages: Annotated[
        tuple[StageGpuUse, ...],
        Field(
            max_length=MAX_GPU_ROWS,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["profile", "stage"]},
        ),
    ] = ()
    """Of all runs, by profile and stage. The operator's metrics are these figures."""

    def plus(self, used: Iterable[StageGpuUse]) -> "GpuStatus":
        """This status with further use."""
        total, run, rows = self.total, self.run, {(row.profile, row.stage): row for row in self.stages}
        for each in used:
            total, run = total.plus(each), run.plus(each)
            key = (each.profile, each.stage)
            if key not in rows and len(rows) >= MAX_GPU_ROWS - len(Stage):
                key = ("", each.stage)
            rows[key] = rows.get(key, StageGpuUse(profile=key[0], stage=key[1])).with_use(each)
        return GpuStatus(total=total, run=run, stages=tuple(rows.values()))


class GpuAttempt(Model):
    """A running attempt with GPUs. If the operator does not observe its end, its GPU time is estimated from this."""

    pod: Annotated[str, Field(max_length=253)]
    """Name of its Pod."""

    job: Annotated[str, Field(max_length=253)]
    """Name of its Job."""

    profile: Annotated[str, Field(max_length=63)]
    """Name of the profile with which its Job was created."""

    gpus: Annotated[int, Field(ge=1, le=1024)]
    """Number of its GPUs."""

    prices: Prices | None = None
    """Prices when its Job was created."""

    requested_at: PodTime | None = None
    """When it was asked for (RFC 3339): its Job was created, or the attempt before it ended."""

    scheduled_at: PodTime | None = None
    """When its Pod was bound to a node (RFC 3339)."""

    started_at: PodTime
    """When its container started (RFC 3339)."""
