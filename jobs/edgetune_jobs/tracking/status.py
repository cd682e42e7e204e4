"""The status of a run while stages work: RUNNING, and FAILED or KILLED once one of them ends without its output."""

import logging
import threading
import time
from collections.abc import Callable

from edgetune_jobs.tracking.live import END_SECONDS, Destination
from edgetune_jobs.tracking.runs import FAILED, FINISHED, KILLED, RUNNING
from edgetune_jobs.tracking.server import TrackerFailed

logger = logging.getLogger(__name__)


class RunStatus:
    """Sets the status of the run of one version, if train has begun one. It creates nothing."""

    def __init__(self, destination: Destination) -> None:
        """`destination`: where the run is."""
        self._destination = destination
        self._resuming: threading.Thread | None = None

    def resume(self) -> None:
        """A stage begins: a run that an earlier attempt ended is RUNNING again. Returns at once."""
        self._resuming = self._started(self._resume)

    def end(self, *, stopped: bool, seconds: float = END_SECONDS) -> None:
        """A stage ended without its output: the run is KILLED if it was stopped, and otherwise FAILED.

        Args:
            stopped: whether a signal stopped it, or another node of the training did.
            seconds: the longest time that this takes.
        """
        thread = self._started(lambda: self._end(KILLED if stopped else FAILED))
        thread.join(seconds)
        if thread.is_alive():
            logger.warning("%s", self._destination.warning(f"it did not answer within {seconds:g} s"))

    def _started(self, call: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                call()
            except TrackerFailed as error:
                logger.warning("%s", self._destination.warning(f"{error}; the status of its run was not set"))

        thread = threading.Thread(target=run, name="mlflow-status", daemon=True)
        thread.start()
        return thread

    def _resume(self) -> None:
        run = self._destination.find()
        if run is not None and run.status in (FAILED, KILLED):
            run.set_status(RUNNING)

    def _end(self, status: str) -> None:
        if self._resuming is not None:  # it must not set the status afterwards
            self._resuming.join()
        run = self._destination.find()
        if run is not None and run.status != FINISHED:
            run.set_status(status, time.time())
