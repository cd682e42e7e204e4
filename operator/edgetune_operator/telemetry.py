"""Prometheus metrics of the operator and its stages."""

from prometheus_client import Counter, Gauge, Histogram

from edgetune_operator.api.objects import LoraFineTuneStatus, StageState, StageStatus

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
DELETIONS = Counter(
    "edgetune_deletions_total",
    "Deleted objects with deletionPolicy Delete, by the reason of their last Event.",
    ["result"],
)
GPU_SECONDS = Counter(
    "edgetune_gpu_seconds_total",
    "GPU time of ended attempts: seconds of their containers times GPUs.",
    ["stage"],
)
LOST_STEPS = Counter("edgetune_lost_steps_total", "Optimizer steps repeated after interruptions.")


def count_stages(before: LoraFineTuneStatus, after: LoraFineTuneStatus) -> None:
    """Count the changes of an object's stages between two of its statuses."""
    known = {row.name: row for row in before.stages}
    for row in after.stages:
        was = known.get(row.name)
        if was is None or was.digest != row.digest:
            was = StageStatus(name=row.name)  # its figures start at 0 again
        PREEMPTIONS.labels(stage=row.name).inc(max(row.preemptions - was.preemptions, 0))
        LOST_STEPS.inc(max((row.lost_steps or 0) - (was.lost_steps or 0), 0))
        GPU_SECONDS.labels(stage=row.name).inc(max((row.gpu_seconds or 0.0) - (was.gpu_seconds or 0.0), 0.0))
        if row.state in (StageState.SUCCEEDED, StageState.FAILED) and row.state is not was.state:
            _count_end(row, sum(artifact.bytes for artifact in after.artifacts if artifact.stage is row.name))


def _count_end(row: StageStatus, artifact_bytes: int) -> None:
    STAGES.labels(stage=row.name, state=row.state, cached=str(row.cached).lower()).inc()
    STAGE_ATTEMPTS.labels(stage=row.name).inc(row.attempts)
    if row.cached:
        return  # its duration and artifacts were counted when it ran
    if row.seconds is not None:
        STAGE_SECONDS.labels(stage=row.name).observe(row.seconds)
    ARTIFACT_BYTES.labels(stage=row.name).inc(artifact_bytes)
