"""How long the containers of trainings ran, by the kubelet's own times."""

import threading
from datetime import datetime

from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from support.kube import Document, Kube
from support.live_object import LiveObject


class ContainerTimes(threading.Thread):
    """Records the end of each training's Pod: one that a queue stops is gone within a second of its end."""

    def __init__(self, kube: Kube) -> None:
        super().__init__(name="container-times", daemon=True)
        self._kube = kube
        self._seconds: dict[tuple[str, str, str], float] = {}
        """By namespace, name of the object, and UID of the Pod."""

    def run(self) -> None:
        for pod in self._kube.watch("v1", "Pod", f"{names.STAGE_LABEL}={Stage.TRAIN}"):
            metadata = pod["metadata"]
            for container in pod["status"].get("containerStatuses") or ():
                if ended := container["state"].get("terminated"):
                    place = (metadata["namespace"], metadata["labels"][names.OWNER_LABEL], metadata["uid"])
                    self._seconds[place] = _seconds(ended)

    def of(self, run: LiveObject) -> list[float]:
        """Seconds of each ended container of an object's training."""
        place = (run.namespace, names.label_value(run.name))
        return [seconds for key, seconds in self._seconds.copy().items() if key[:2] == place]


def _seconds(ended: Document) -> float:
    started_at, finished_at = (datetime.fromisoformat(ended[key]) for key in ("startedAt", "finishedAt"))
    return (finished_at - started_at).total_seconds()
