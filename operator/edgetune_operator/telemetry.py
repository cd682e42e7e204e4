"""Prometheus metrics of the operator and its stages."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from edgetune_contract.pipeline import SCORED_MODELS
from edgetune_contract.request import Scores
from edgetune_contract.values.times import seconds_between
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.gpu_use import GpuAttempt, GpuStatus, StageGpuUse
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import StageState, StageStatus

WASTE_CAUSES = ("failed", "repeated", "loading", "lost_peer", "waiting")
"""Kinds of GPU time without progress; see `GpuUse`."""

_MOVED = ("downloaded", "uploaded", "cached")
_STAGE_BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)

OBJECTS = Gauge("edgetune_objects", "LoraFineTunes, by phase.", ["phase"])
PASSES = Counter("edgetune_passes_total", "Passes over objects, by result.", ["result"])
PASS_SECONDS = Histogram("edgetune_pass_seconds", "Duration of a pass.")
LAST_PASS = Gauge("edgetune_last_pass_timestamp_seconds", "When the last pass ended, in seconds since 1970.")
QUEUE_DEPTH = Gauge("edgetune_queue_depth", "Objects waiting for a pass.")
QUEUE_SECONDS = Histogram("edgetune_queue_wait_seconds", "Time that an object waited for its pass.")
NAMESPACES_FAILING = Gauge("edgetune_namespaces_failing", "Watched namespaces that cannot be listed.")
LEASES_HELD = Gauge("edgetune_leases_held", "Leases of watched scopes that this process holds; 0 for a standby.")
SCOPES_OF_OTHERS = Gauge(
    "edgetune_scopes_of_others", "Watched scopes that another release reconciles, or whose Lease cannot be taken."
)
API_WRITES = Counter("edgetune_api_writes_total", "Writes to the Kubernetes API.", ["verb", "resource"])
EVENTS_DROPPED = Counter(
    "edgetune_events_dropped_total", "Events that were not posted: too many waited, or the API server refused them."
)
STAGES = Counter("edgetune_stages_total", "Ended stages.", ["stage", "state", "cached"])
STAGE_SECONDS = Histogram("edgetune_stage_seconds", "Duration of ended stages.", ["stage"], buckets=_STAGE_BUCKETS)
STAGE_ATTEMPTS = Counter("edgetune_stage_attempts_total", "Attempts of ended stages.", ["stage"])
PREEMPTIONS = Counter("edgetune_preemptions_total", "Attempts that were stopped from outside.", ["stage"])
ARTIFACT_BYTES = Counter("edgetune_artifact_bytes_total", "Bytes of the artifacts that stages wrote.", ["stage"])
MOVED_BYTES = Counter(
    "edgetune_moved_bytes_total",
    "Bytes that finished stages moved to and from the store, and read from the cache.",
    ["namespace", "stage", "kind"],
)
DELETIONS = Counter(
    "edgetune_deletions_total",
    "Deleted objects with deletionPolicy Delete, by the reason of their last Event.",
    ["result"],
)
STAGE_FAILURES = Counter("edgetune_stage_failures_total", "Failed stages.", ["namespace", "stage", "reason"])
GPU_WAIT_SECONDS = Histogram(
    "edgetune_gpu_wait_seconds",
    "Time from the request of a GPU to the start of the container: queue, scheduling and image.",
    ["namespace", "profile", "stage"],
    buckets=_STAGE_BUCKETS,
)
LOST_STEPS = Counter("edgetune_lost_steps_total", "Optimizer steps repeated after interruptions.")

# A counter must be 0 before it grows, or Prometheus does not see the first increase.
for _result in ("changed", "unchanged", "conflict", "error"):
    PASSES.labels(result=_result)


def count_stages(namespace: str, before: LoraFineTuneStatus, after: LoraFineTuneStatus) -> None:
    """Count the changes of the stages of an object in this namespace between two of its statuses."""
    known = {row.name: row for row in before.stages}
    for row in after.stages:
        was = known.get(row.name)
        # An attempt may still run after an edit has begun the row again.
        counted_attempt = None if was is None else was.gpu_attempt
        if was is None or was.digest != row.digest:
            was = StageStatus(name=row.name)  # its figures start at 0 again
        PREEMPTIONS.labels(stage=row.name).inc(max(row.preemptions - was.preemptions, 0))
        LOST_STEPS.inc(max((row.lost_steps or 0) - (was.lost_steps or 0), 0))
        if row.gpu_attempt is not None and row.gpu_attempt != counted_attempt:
            waited = seconds_between(row.gpu_attempt.requested_at, row.gpu_attempt.started_at) or 0.0
            GPU_WAIT_SECONDS.labels(namespace, row.gpu_attempt.profile, row.name).observe(waited)
        if row.state in (StageState.SUCCEEDED, StageState.FAILED) and row.state is not was.state:
            if row.state is StageState.FAILED:
                STAGE_FAILURES.labels(namespace, row.name, row.reason).inc()
            for kind in _MOVED:
                MOVED_BYTES.labels(namespace, row.name, kind).inc(row.metrics.get(f"{kind}Bytes", 0.0))
            _count_end(row, sum(artifact.bytes for artifact in after.artifacts if artifact.stage is row.name))


def _count_end(row: StageStatus, artifact_bytes: int) -> None:
    STAGES.labels(stage=row.name, state=row.state, cached=str(row.cached).lower()).inc()
    STAGE_ATTEMPTS.labels(stage=row.name).inc(row.attempts)
    if row.cached:
        return  # its duration and artifacts were counted when it ran
    if row.seconds is not None:
        STAGE_SECONDS.labels(stage=row.name).observe(row.seconds)
    ARTIFACT_BYTES.labels(stage=row.name).inc(artifact_bytes)


@dataclass(frozen=True)
class ObjectFigures:
    """What the metrics of one object show, from its status."""

    gpu: tuple[StageGpuUse, ...] = ()
    scores: Scores | None = None
    running: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Number of GPUs of running attempts, by profile and stage."""

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> Self:
        """Figures of a status; none of one that another version wrote."""
        rows = [row for row in status.get("stages") or () if "gpuAttempt" in row]
        if not rows and not status.keys() & {"gpu", "scores"}:
            return cls()
        try:
            gpu, scores = GpuStatus.model_validate(status.get("gpu") or {}), status.get("scores")
            attempts = [(row["name"], GpuAttempt.model_validate(row["gpuAttempt"])) for row in rows]
            return cls(
                gpu.stages,
                Scores.model_validate({**scores, "details": {}}) if scores else None,
                {(attempt.profile, stage): attempt.gpus for stage, attempt in attempts},
            )
        except ValidationError:
            return cls()


class ObjectMetrics(Collector):
    """Metrics of this process's objects from their status: a restart of the operator resets none of them."""

    def __init__(self) -> None:
        self._figures: Mapping[Key, ObjectFigures] = {}

    def replace(self, figures: Mapping[Key, ObjectFigures]) -> None:
        """Show these figures from now on."""
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """The families, for Prometheus; called by the thread of the metrics server."""
        row = ("namespace", "name", "profile", "stage")
        seconds = CounterMetricFamily("edgetune_gpu_seconds", "GPU time of ended attempts.", labels=row)
        estimated = CounterMetricFamily("edgetune_gpu_estimated_seconds", "Of it, estimated.", labels=row)
        waste = CounterMetricFamily("edgetune_gpu_waste_seconds", "GPU time without progress.", labels=(*row, "cause"))
        cost = CounterMetricFamily("edgetune_gpu_cost", "Price of the GPU time.", labels=(*row, "currency"))
        running = GaugeMetricFamily("edgetune_gpus_running", "GPUs of running attempts.", labels=row)
        scores = GaugeMetricFamily("edgetune_score", "Score of a model.", labels=("namespace", "name", "model"))
        for key, figures in self._figures.items():
            for use in figures.gpu:
                labels = [key.namespace, key.name, use.profile, use.stage.value]
                seconds.add_metric(labels, use.seconds)
                estimated.add_metric(labels, use.estimated_seconds)
                for cause in WASTE_CAUSES:
                    waste.add_metric([*labels, cause], getattr(use, f"{cause}_seconds"))
                for currency, amount in use.cost.items():
                    cost.add_metric([*labels, currency], amount)
            for (profile, stage), gpus in figures.running.items():
                running.add_metric([key.namespace, key.name, profile, stage], gpus)
            for model in SCORED_MODELS if figures.scores is not None else ():
                if (score := getattr(figures.scores, model)) is not None:
                    scores.add_metric([key.namespace, key.name, model], score)
        yield from (seconds, estimated, waste, cost, running, scores)


OBJECT_METRICS = ObjectMetrics()
REGISTRY.register(OBJECT_METRICS)
