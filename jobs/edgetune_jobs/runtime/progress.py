"""Progress of a stage: JSON lines on stdout, and Prometheus metrics while training."""

import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol, TextIO

from pydantic.alias_generators import to_camel

from edgetune_contract.stages import Stage

logger = logging.getLogger(__name__)

_LINES_PER_SECOND = 4


@dataclass(frozen=True)
class ProgressUpdate:
    """How far a stage is: `done` of `total` units, and current figures by camelCase name."""

    done: int
    total: int
    unit: str
    figures: Mapping[str, float]


class Listener(Protocol):
    """Gets every update, also those for which no line is written."""

    def observe(self, snapshot: ProgressUpdate) -> None: ...


class LineProgress:
    """Writes one JSON object a line, flushed: {"progress": {…}} a few times a second, {"say": "…"} at once.

    The last snapshot is always written: when all units are done, before a message, and on `close`. Thread-safe.
    """

    def __init__(
        self,
        stage: Stage,
        stream: TextIO,
        listeners: Sequence[Listener] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._stream = stream
        self._listeners = list(listeners)
        self._clock = clock
        self._lock = threading.Lock()
        self._unwritten: ProgressUpdate | None = None
        self._next_line_at = -math.inf
        self._first: tuple[str, int, float] | None = None

    def update(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Report `done` of `total` units and current figures. The line omits figures that are not finite.

        etaSeconds, the expected time to the end in seconds, is added.
        """
        named = {to_camel(name): float(value) for name, value in figures.items()}
        snapshot = ProgressUpdate(done, total, unit, self._eta(done, total, unit) | named)
        for listener in self._listeners:
            listener.observe(snapshot)
        with self._lock:
            self._unwritten = snapshot
            if done >= total or self._clock() >= self._next_line_at:
                self._flush()

    def add_listener(self, listener: Listener) -> None:
        """Let another listener get the updates from now on."""
        self._listeners.append(listener)

    def say(self, message: str) -> None:
        """Report what the stage starts now, in a few words."""
        with self._lock:
            self._flush()
            self._write({"say": message})

    def close(self) -> None:
        """Write the last snapshot if it is not written yet."""
        with self._lock:
            self._flush()

    def _eta(self, done: int, total: int, unit: str) -> dict[str, float]:
        """Seconds left at the rate since the first report in this unit; empty until there is a rate."""
        now = self._clock()
        if self._first is None or self._first[0] != unit or done < self._first[1]:
            self._first = (unit, done, now)
        _, first_done, first_at = self._first
        if done == first_done:
            return {}
        return {"etaSeconds": (total - done) * (now - first_at) / (done - first_done)}

    def _flush(self) -> None:
        if self._unwritten is None:
            return
        snapshot, self._unwritten = self._unwritten, None
        self._next_line_at = self._clock() + 1 / _LINES_PER_SECOND
        figures = {name: value for name, value in snapshot.figures.items() if math.isfinite(value)}
        self._write(
            {
                "progress": {
                    "stage": self._stage.value,
                    "done": snapshot.done,
                    "total": snapshot.total,
                    "unit": snapshot.unit,
                    "figures": figures,
                }
            }
        )

    def _write(self, line: Mapping[str, object]) -> None:
        with suppress(BrokenPipeError):  # the reader is gone, which is no reason to end the stage
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._stream.flush()


def _every_address() -> str:
    """Address to listen on for all of IPv6 and IPv4; for IPv4 alone if the machine has no IPv6."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - Prometheus connects from any address


class TrainingMetrics:
    """Prometheus metrics of a training.

    Gauges edgetune_train_loss, edgetune_train_step, edgetune_train_total_steps, edgetune_train_tokens_per_second,
    edgetune_train_eta_seconds, edgetune_train_learning_rate, edgetune_train_validation_loss,
    edgetune_train_resumed_from_step and edgetune_train_start_time_seconds, with the labels namespace and name. A figure
    is absent until it is reported.
    """

    _FIGURES: Mapping[str, tuple[str, str]] = {
        "loss": ("edgetune_train_loss", "Training loss of the last logged step, in nats per token."),
        "tokensPerSecond": ("edgetune_train_tokens_per_second", "Tokens trained on per second."),
        "etaSeconds": ("edgetune_train_eta_seconds", "Expected time to the last step, in seconds."),
        "learningRate": ("edgetune_train_learning_rate", "Learning rate of the last step."),
        "validationLoss": (
            "edgetune_train_validation_loss",
            "Loss on the evaluation rows at the last evaluation, in nats per token.",
        ),
        "resumedFromStep": (
            "edgetune_train_resumed_from_step",
            "Step of the checkpoint that this attempt resumed from.",
        ),
        "startTimeSeconds": (
            "edgetune_train_start_time_seconds",
            "When this attempt began its first step, in seconds since 1970.",
        ),
    }

    def __init__(self, namespace: str, name: str) -> None:
        from prometheus_client import CollectorRegistry, Gauge

        self._labels = {"namespace": namespace, "name": name}
        self._registry = CollectorRegistry()

        def gauge(metric: str, text: str) -> Gauge:
            return Gauge(metric, text, labelnames=tuple(self._labels), registry=self._registry)

        self._step = gauge("edgetune_train_step", "Optimizer steps done.")
        self._total = gauge("edgetune_train_total_steps", "Optimizer steps in all.")
        self._figures = {figure: gauge(*described) for figure, described in self._FIGURES.items()}

    def observe(self, snapshot: ProgressUpdate) -> None:
        """Set the metrics from a snapshot; the step metrics only if its unit is steps."""
        if snapshot.unit == "steps":
            self._step.labels(**self._labels).set(snapshot.done)
            self._total.labels(**self._labels).set(snapshot.total)
        for figure, gauge in self._figures.items():
            if figure in snapshot.figures:
                gauge.labels(**self._labels).set(snapshot.figures[figure])

    @contextmanager
    def serving(self, port: int) -> Iterator[None]:
        """Serve the metrics on a port of all addresses inside the block.

        A port in use is only logged: training does not depend on its metrics.
        """
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, _every_address(), registry=self._registry)
        except OSError as error:
            logger.warning("training metrics are not served: cannot listen on port %d: %s", port, error)
            yield
            return
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
