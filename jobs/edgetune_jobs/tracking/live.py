"""The figures of each step, sent while the training runs, by a thread for which the training never waits."""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

from edgetune_jobs.tracking.runs import Metric, MlflowRun, RunKey
from edgetune_jobs.tracking.server import MlflowServer, TrackerFailed
from edgetune_jobs.tracking.settings import TrackingSettings
from edgetune_jobs.training.curves import FIGURES, LOSS, VALIDATION_LOSS
from edgetune_jobs.wording import count

logger = logging.getLogger(__name__)

END_SECONDS = 5.0
"""How long the end of a training waits for what is not sent yet."""

# Steps that wait while the server is away: of more, the oldest are dropped, and publish sends them.
_MOST_STEPS = 10_000
_BATCH_STEPS = 200
_INTERVAL_SECONDS = 2.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 300.0
_MOST_FAILURES = 20


class Snapshot(Protocol):
    """What the tracker reads of a progress report."""

    @property
    def done(self) -> int: ...
    @property
    def unit(self) -> str: ...
    @property
    def figures(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Destination:
    """Where the run of one version is tracked, and what it is about."""

    settings: TrackingSettings
    key: RunKey
    parameters: Mapping[str, str]

    @property
    def experiment(self) -> str:
        """Name of the experiment: without one in the settings, one for each object."""
        return self.settings.experiment or f"{self.key.namespace}/{self.key.name}"

    def open(self, started: float) -> MlflowRun:
        """The run, which begins at this time (seconds since 1970) if it is new.

        Raises:
            TrackerFailed: the server refused a call or did not answer.
        """
        return MlflowRun.open(MlflowServer(self.settings), self.experiment, self.key, started)

    def find(self) -> MlflowRun | None:
        """The run; None if there is none.

        Raises:
            TrackerFailed: the server refused a call or did not answer.
        """
        return MlflowRun.find(MlflowServer(self.settings), self.experiment, self.key)

    def warning(self, reason: str) -> str:
        """A sentence about what was not sent."""
        return self.settings.without_secrets(f"MLflow at {self.settings.shown_uri}: {reason}")


class LiveTracker:
    """Sends the steps of one attempt. Its thread begins with the first step."""

    def __init__(
        self, destination: Destination, interval: float = _INTERVAL_SECONDS, pause: float = _FIRST_PAUSE_SECONDS
    ) -> None:
        """
        Args:
            destination: where to send.
            interval: shortest time between two calls, in seconds.
            pause: after the first failed call, in seconds; it doubles with each further one.
        """
        self._destination = destination
        self._interval = interval
        self._pause = pause
        self._waiting: deque[list[Metric]] = deque(maxlen=_MOST_STEPS)
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._run: MlflowRun | None = None
        self._known: set[int] = set()
        self._dropped = 0
        self._failure: TrackerFailed | None = None
        """Of the last call; None if it succeeded."""

        self._validated = 0
        """The last step whose validation loss was seen."""

    def observe(self, snapshot: Snapshot) -> None:
        """Take the figures of a step; other progress is ignored. Never waits for the server."""
        if snapshot.unit != "steps" or "loss" not in snapshot.figures:
            return
        metrics = self._metrics(snapshot, time.time())
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
                self._thread.start()
            self._dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(metrics)
            self._changed.notify()

    def _metrics(self, snapshot: Snapshot, now: float) -> list[Metric]:
        figures = snapshot.figures
        metrics = [
            Metric(name, figures[figure], snapshot.done, now) for figure, name in FIGURES.items() if figure in figures
        ]
        validated = int(figures.get("validationStep", 0))
        if validated > self._validated:
            self._validated = validated
            metrics.append(Metric(VALIDATION_LOSS, figures["validationLoss"], validated, now))
        return [metric for metric in metrics if isfinite(metric.value)]

    @property
    def has_failed(self) -> bool:
        """Whether the last call failed; a call that only takes long has not."""
        return self._failure is not None

    def close(self, seconds: float = END_SECONDS) -> tuple[str, ...]:
        """Send what waits, for this many seconds at most; warnings about what was not sent."""
        if self._thread is None:
            return ()
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        lost = len(self._waiting) + self._dropped
        if not lost and self._failure is None and not self._thread.is_alive():
            return ()
        reason = str(self._failure or f"it did not take everything within {seconds:g} s of the end")
        unsent = f"publish sends the {count(lost, 'step')} that it lacks, if it can" if lost else "no step is lost"
        warning = self._destination.warning(f"{reason}; {unsent}")
        logger.warning("%s", warning)
        return (warning,)

    def _send_all(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                closing = self._closing
            try:
                self._send()
                failures, self._failure = 0, None
                if closing and not self._waiting:
                    return
            except TrackerFailed as error:
                failures += 1
                self._failure = error
                if error.is_final or failures == _MOST_FAILURES or closing:
                    return
                if failures == 1:
                    logger.warning("%s; it is tried again", self._destination.warning(str(error)))
            pause = min(self._pause * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, self._interval if failures == 0 else pause)

    def _send(self) -> None:
        run = self._opened()
        while self._waiting:
            steps = [self._waiting[index] for index in range(min(len(self._waiting), _BATCH_STEPS))]
            # What an attempt sent before it was killed is not sent again by the one that repeats its steps.
            new = [metric for step in steps for metric in step if step[0].step not in self._known]
            run.log(new)
            self._known.update(metric.step for metric in new if metric.name == LOSS)
            with self._changed:
                for step in steps:
                    # The oldest may have been dropped meanwhile.
                    if self._waiting and self._waiting[0] is step:
                        self._waiting.popleft()

    def _opened(self) -> MlflowRun:
        if self._run is None:
            run = self._destination.open(time.time())
            run.begin_attempt(self._destination.parameters)
            self._known = run.steps_of(LOSS)
            self._run = run
        return self._run
