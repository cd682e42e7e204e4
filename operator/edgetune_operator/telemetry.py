"""Prometheus metrics of the operator and of the stages that it watches."""

from prometheus_client import Counter, Gauge, Histogram

_STAGE_BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)

OBJECTS = Gauge("edgetune_objects", "LoraFineTunes by phase.", ["phase"])
PASSES = Counter("edgetune_passes_total", "Passes over objects by result.", ["result"])
PASS_SECONDS = Histogram("edgetune_pass_seconds", "Time of one pass.")
LAST_PASS = Gauge("edgetune_last_pass_timestamp_seconds", "When the last pass ended, in seconds since 1970.")
QUEUE_DEPTH = Gauge("edgetune_queue_depth", "Objects that wait for a pass.")
QUEUE_SECONDS = Histogram("edgetune_queue_wait_seconds", "Time that an object waited for its pass.")
NAMESPACES_FAILING = Gauge("edgetune_namespaces_failing", "Watched namespaces that cannot be listed.")
API_WRITES = Counter("edgetune_api_writes_total", "Writes to the Kubernetes API.", ["verb", "resource"])
STAGES = Counter("edgetune_stages_total", "Stages that ended.", ["stage", "state", "cached"])
STAGE_SECONDS = Histogram("edgetune_stage_seconds", "Time of the stages that ended.", ["stage"], buckets=_STAGE_BUCKETS)
STAGE_ATTEMPTS = Counter("edgetune_stage_attempts_total", "Attempts of the stages that ended.", ["stage"])
PREEMPTIONS = Counter("edgetune_preemptions_total", "Attempts that were stopped from outside.", ["stage"])
ARTIFACT_BYTES = Counter("edgetune_artifact_bytes_total", "Bytes of the artifacts that stages made.", ["stage"])
DELETIONS = Counter("edgetune_deletions_total", "Objects with deletionPolicy Delete that went.", ["result"])
GPU_SECONDS = Counter(
    "edgetune_gpu_seconds_total",
    "GPU time of the stages that ended: seconds of their containers times GPUs.",
    ["stage"],
)
LOST_STEPS = Counter("edgetune_lost_steps_total", "Optimizer steps that were done again after interruptions.")
