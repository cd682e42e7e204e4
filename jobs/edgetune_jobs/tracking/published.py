"""What publish sends of a version: the steps that the run lacks, scores, sizes, speeds, gates and addresses."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from math import isfinite

from edgetune_contract.digest import version_key
from edgetune_contract.request import StoreLocation
from edgetune_contract.version import VersionDocument
from edgetune_jobs.reporting.run_record import RunRecord, TrainingStep
from edgetune_jobs.reporting.tables import gate_table
from edgetune_jobs.tracking.live import Destination
from edgetune_jobs.tracking.runs import FINISHED, Metric, MlflowRun
from edgetune_jobs.tracking.server import TrackerFailed
from edgetune_jobs.training.curves import FIGURES, VALIDATION_LOSS

logger = logging.getLogger(__name__)

LIMIT_SECONDS = 30.0
"""The longest time for all calls together. A server that does not answer is given up at its first call."""

_SCORES = ("keyword_recall", "exact_match", "loss")
_SPEEDS = (
    "prompt_tokens_per_second",
    "generation_tokens_per_second",
    "time_to_first_token_seconds",
    "peak_memory_bytes",
)


def track_version(
    destination: Destination, run: RunRecord, store: StoreLocation, seconds: float = LIMIT_SECONDS
) -> tuple[str, ...]:
    """Send what is known of a version that was published or refused; a warning if that failed.

    Args:
        destination: where to send.
        run: of the version.
        store: that has it.
        seconds: the longest time that this takes.
    """
    failure: list[str] = ["it did not take everything within the time limit"]

    def send() -> None:
        try:
            _send(destination, run, store)
            failure.clear()
        except TrackerFailed as error:
            failure[:] = [str(error)]

    thread = threading.Thread(target=send, name="mlflow", daemon=True)
    thread.start()
    thread.join(seconds)
    if not failure:
        return ()
    warning = destination.warning(f"{failure[0]}; scores, addresses or steps of this version were not sent")
    logger.warning("%s", warning)
    return (warning,)


def _send(destination: Destination, run: RunRecord, store: StoreLocation) -> None:
    now = time.time()
    tracked = destination.open(_started(run) or now)
    tracked.log(_missing_steps(tracked, run), destination.parameters)
    tracked.log_latest(dict(_figures(run)), now)
    tracked.log(tags=_tags(run.document, store))
    tracked.set_status(FINISHED, time.time())


def _missing_steps(tracked: MlflowRun, run: RunRecord) -> list[Metric]:
    """The figures of steps that train did not send, or that another version's run has."""
    curves = {figure: name for figure, name in FIGURES.items() if any(_value(step, figure) for step in run.steps)}
    curves["validationLoss"] = VALIDATION_LOSS
    known = {name: tracked.steps_of(name) for name in curves.values()}
    ended = _ended(run)
    metrics = []
    for step in run.steps:
        for figure, name in curves.items():
            value = _value(step, figure)
            if value is not None and isfinite(value) and step.step not in known[name]:
                metrics.append(Metric(name, value, step.step, step.time or ended))
    return metrics


def _value(step: TrainingStep, figure: str) -> float | None:
    values: Mapping[str, float | None] = {
        "loss": step.loss,
        "learningRate": step.learning_rate,
        "gradientNorm": step.gradient_norm,
        "tokensPerSecond": step.tokens_per_second,
        "validationLoss": step.validation_loss,
    }
    return values[figure]


def _started(run: RunRecord) -> float | None:
    return next((step.time for step in run.steps if step.time), None)


def _ended(run: RunRecord) -> float:
    """When the training ended, for steps of older releases, which have no time."""
    times = [_seconds(origin.created_at) for stage, origin in run.origins.items() if stage == "train"]
    return next((each for each in times if each is not None), time.time())


def _seconds(timestamp: str) -> float | None:
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return None


def _figures(run: RunRecord) -> Iterator[tuple[str, float]]:
    """Figures of all models, by a name that groups them in MLflow: what is measured, then the model."""
    document = run.document
    scores = document.scores
    for name, score in (("improvement", scores.improvement), ("drop", scores.drop)):
        if score is not None:
            yield f"score/{name}", score
    for model, details in scores.details.items():
        if details.score is not None:
            yield f"score/{model}", details.score
        for measure in _SCORES:
            if (value := getattr(details, measure)) is not None:
                yield f"{measure}/{model}", value
    for artifact in document.artifacts:
        yield f"size_bytes/{artifact.name}", artifact.bytes
    for model, speed in (document.measurement.by_model if document.measurement else {}).items():
        for measure in _SPEEDS:
            if (value := getattr(speed, measure)) is not None:
                yield f"{measure}/{model}", value
    for stage, manifest in run.manifests.items():
        yield f"seconds/{stage}", manifest.result.seconds


def _tags(document: VersionDocument, store: StoreLocation) -> dict[str, str]:
    """Verdict, gates and addresses; the note is what MLflow shows on the run's page."""
    addresses = {artifact.name: f"{store.uri}/{artifact.key}" for artifact in document.artifacts}
    report = f"{store.uri}/{document.reports_key}/{document.report.path}" if document.report else ""
    gates = _gates(document)
    verdict = "Published." if document.published else "Refused by its gates."
    lines = (
        f"**{verdict}** {' '.join(document.refusals)}",
        *(f"- {gate}" for gate in gates),
        *(f"- {name}: `{uri}`" for name, uri in addresses.items()),
        f"- report: `{report}`" if report else "",
    )
    return {
        "edgetune.published": str(document.published).lower(),
        "edgetune.refusals": " ".join(document.refusals),
        "edgetune.gates": "; ".join(gates),
        "edgetune.document": f"{store.uri}/{version_key(document.model, document.version)}",
        "edgetune.report": report,
        **{f"edgetune.artifact.{name}": uri for name, uri in addresses.items()},
        "mlflow.note.content": "\n".join(line for line in lines if line),
    }


def _gates(document: VersionDocument) -> tuple[str, ...]:
    """Each gate with the measured value, its limit and the result."""
    try:
        table = gate_table(document)
    except ValueError:
        return ()
    rows = table.rows if table else ()
    return tuple(f"{gate} of {model}: {measured}, {limit}, {result}" for gate, model, measured, limit, result in rows)
