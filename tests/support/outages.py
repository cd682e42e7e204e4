"""An S3 server that goes down in each stage of a run."""

import threading
from collections.abc import Callable
from functools import partial

from cluster.object_store import Gateway
from edgetune_contract.stages import Stage
from support.kube import Document
from support.live_object import ENDED, LiveObject

OUTAGE_SECONDS = 30
_POLL_SECONDS = 0.1


class OutageInEachStage(threading.Thread):
    """Stops a server for 30 s in each stage, until the object's run has ended.

    An outage starts when the stage has its first Pod; for train, while it makes steps. Other stages are too short for
    that.
    """

    def __init__(self, run: LiveObject, gateway: Gateway) -> None:
        super().__init__(name="outages", daemon=True)
        self.object = run
        self.cut: list[Stage] = []
        """Stages in which the server was down."""

        self._gateway = gateway
        self._cancelled = threading.Event()
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            for stage in Stage:
                if not self._wait(partial(self._has_reached, stage)):
                    return
                if self.object.pods(stage):
                    self._take_down()
                    self.cut.append(stage)
        except Exception as error:  # noqa: BLE001  handed to the test, which raises it
            self._error = error

    def wait_for_end(self) -> Document:
        """The object's status, once its run has ended."""
        status = self.object.wait_for_end()
        self.join(timeout=OUTAGE_SECONDS + 60)
        assert not self.is_alive(), "the server is still down, or not yet in the last stage"
        if self._error is not None:
            raise self._error
        return status

    def cancel(self) -> None:
        """End the outages."""
        self._cancelled.set()
        self.join(timeout=OUTAGE_SECONDS)

    def _take_down(self) -> None:
        self._gateway.stop()
        self._cancelled.wait(OUTAGE_SECONDS)
        self._gateway.start()

    def _has_reached(self, stage: Stage) -> bool:
        return self._is_running(stage) or self.object.status().get("phase") in ENDED

    def _is_running(self, stage: Stage) -> bool:
        pods = self.object.pods(stage)
        if stage is not Stage.TRAIN:
            return bool(pods)
        lines = (line for pod in pods for line in self.object.lines(pod["metadata"]["name"]))
        return any(str(line.get("say")).startswith("training") for line in lines)

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds; False if cancelled first."""
        while not condition():
            if self._cancelled.wait(_POLL_SECONDS):
                return False
        return True
