"""The curves of a training as an event file, which TensorBoard reads."""

import json
import time
from pathlib import Path

from edgetune_jobs.training.curves import FIGURES, VALIDATION_LOSS

PREFIX = "events.out.tfevents"
"""By it, TensorBoard and the Hugging Face hub know such a file."""


def write_event_file(log: Path, folder: Path) -> Path:
    """Write the steps of metrics.jsonl as scalars, at the times at which they were done.

    Args:
        log: metrics.jsonl.
        folder: gets the file.
    """
    # Not FileWriter: its queue needs a semaphore, for which a full /dev/shm has no room.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    temporary = folder / "event-file"
    temporary.mkdir()
    writer = EventsWriter(str(temporary / "run"))
    names = {**FIGURES, "validationLoss": VALIDATION_LOSS}
    for line in log.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        for figure, name in names.items():
            if values.get(figure) is not None:
                summary, moment = scalar(name, values[figure]), values.get("time") or time.time()
                writer.write_event(Event(summary=summary, step=values["step"], wall_time=moment))
    writer.close()
    # The library puts the name of this machine into that of the file.
    (written,) = temporary.iterdir()
    path = folder / f"{PREFIX}.edgetune"
    written.replace(path)
    temporary.rmdir()
    return path
