"""SIGTERM and SIGINT: they stop a stage at once, or set an event where it must not be interrupted."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from edgetune_jobs.errors import Interrupted

STOPPED = "stopped by a signal before the stage was done; the next attempt starts it again"


class Stopped(BaseException):
    """Raised in the main thread by the first signal. A BaseException, so that only the runtime catches it."""


class StopSignals:
    """Handlers of SIGTERM and SIGINT. Only the first signal has an effect."""

    def __init__(self) -> None:
        self.event = threading.Event()
        """Set when a signal has arrived."""

        self._arrived = False
        self._raises = False
        self._wake_up, self._signalled = os.pipe()

    def install(self) -> None:
        """Install the handlers for the rest of the process."""
        # A handler runs in the main thread and must not take a lock that this thread may hold. Event.set takes one,
        # so another thread calls it.
        threading.Thread(target=self._set_event, name="stop-signal", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside the block, the first signal raises Stopped in the main thread. Outside, it only sets the event.

        Raises:
            Interrupted: a signal arrived before the block.
        """
        self._raises = True
        try:
            self.check()
            yield
        finally:
            self._raises = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within `immediate`: a part that must not be interrupted, in which a signal only sets the event."""
        self._raises = False
        try:
            yield
        finally:
            self._raises = True

    def check(self) -> None:
        """Raise if a signal has arrived.

        Raises:
            Interrupted: a signal has arrived.
        """
        if self._arrived:
            raise Interrupted(STOPPED)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._arrived:
            return
        self._arrived = True
        os.write(self._signalled, b"\0")
        if self._raises:
            raise Stopped

    def _set_event(self) -> None:
        os.read(self._wake_up, 1)
        self.event.set()
