"""What one attempt at a stage sends to the tracker, if there is one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgetune_contract.request import Request
from edgetune_jobs.errors import Interrupted
from edgetune_jobs.tracking.settings import TrackingSettings

if TYPE_CHECKING:
    from edgetune_jobs.reporting.run_record import RunRecord
    from edgetune_jobs.tracking.live import Destination, LiveTracker


class AttemptTracking:
    """The tracker of one attempt. Without one, it does nothing, and imports no library."""

    def __init__(self, settings: TrackingSettings | None, request: Request) -> None:
        """
        Args:
            settings: the tracker; None for none.
            request: of the stage.
        """
        self._settings = settings
        self._request = request
        self.warnings: tuple[str, ...] = ()
        """What could not be sent. They are about this attempt, so that no manifest has them."""

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
        except BaseException as error:
            tracker.close(failed=not isinstance(error, Interrupted))
            raise
        self.warnings = tracker.close()

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
