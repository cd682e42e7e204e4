"""What one attempt at a stage sends to the tracker, if there is one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgetune_contract.request import Request
from edgetune_contract.stages import Stage
from edgetune_jobs.tracking.settings import TrackingSettings

if TYPE_CHECKING:
    from edgetune_jobs.reporting.run_record import RunRecord
    from edgetune_jobs.tracking.live import Destination, LiveTracker
    from edgetune_jobs.tracking.status import RunStatus


class AttemptTracking:
    """The tracker of one attempt. Without one, it does nothing, and imports no library."""

    def __init__(self, settings: TrackingSettings | None, request: Request) -> None:
        """
        Args:
            settings: the tracker; None for none.
            request: of the stage.
        """
        # prepare does not know the version yet, and a pin makes none.
        self._settings = None if request.stage is Stage.PREPARE or request.is_pin else settings
        self._request = request
        self._status: RunStatus | None = None
        self._has_failed = False
        """Whether the tracker has just failed: it is not waited for a second time."""

        self.warnings: tuple[str, ...] = ()
        """What could not be sent. They are about this attempt, so that no manifest has them."""

    def begin(self, version: str) -> None:
        """The stage begins to work.

        Args:
            version: digest of the version that publish will write.
        """
        destination = self._destination(version)
        if destination is None:
            return
        from edgetune_jobs.tracking.status import RunStatus

        self._status = RunStatus(destination)
        if self._request.stage is not Stage.TRAIN:  # which counts an attempt with its first step
            self._status.resume()

    def end(self, *, stopped: bool) -> None:
        """The stage ended without its output.

        Args:
            stopped: by a signal, or because another node of the training was.
        """
        if self._status is not None and not self._has_failed:
            self._status.end(stopped=stopped)

    @contextmanager
    def following(self, version: str, listen: "Callable[[LiveTracker], None]") -> Iterator[None]:
        """Inside the block, the steps of the training are sent.

        Args:
            version: digest of the version that publish will write.
            listen: gives a listener the progress of the training.
        """
        destination = self._destination(version)
        if destination is None:
            yield
            return
        from edgetune_jobs.tracking.live import LiveTracker

        tracker = LiveTracker(destination)
        listen(tracker)
        try:
            yield
        finally:
            self.warnings = tracker.close()
            self._has_failed = tracker.has_failed

    def send_version(self, run: "RunRecord") -> None:
        """Send what is known of a version that was published or refused."""
        destination = self._destination(run.document.version)
        if destination is not None:
            from edgetune_jobs.tracking.published import track_version

            self.warnings = track_version(destination, run, self._request.store)

    def _destination(self, version: str) -> "Destination | None":
        if self._settings is None:
            return None
        from edgetune_jobs.tracking.live import Destination
        from edgetune_jobs.tracking.parameters import flat_parameters
        from edgetune_jobs.tracking.runs import RunKey

        request = self._request
        key = RunKey(request.namespace, request.name, version, request.source_revision or "")
        return Destination(self._settings, key, flat_parameters(request.parameters))
