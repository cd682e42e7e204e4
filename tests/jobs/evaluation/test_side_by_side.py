"""Jobs in processes of their own: order, devices, and how a failure ends all."""

import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgetune_jobs.errors import Interrupted, InvalidInput, ReportedBug, TransientError, is_out_of_gpu_memory
from edgetune_jobs.evaluation.side_by_side import Job, Report, run_side_by_side

LIMIT = 60


def meet(report: Report, device: str, folder: str, name: str, others: int) -> tuple[str, int]:
    """Wait until as many processes are here; the device, and the number of this process."""
    report.say(f"{name} begins")
    (Path(folder) / name).touch()
    deadline = time.monotonic() + LIMIT
    while len(list(Path(folder).iterdir())) < others:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    report.update(3, 3, "rows")
    return device, os.getpid()


def fail(_report: Report, _device: str, how: str) -> None:
    """Fail in one of several ways."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "invalid":
        raise InvalidInput("spec.baseModel: its weights are damaged")
    if how == "memory":
        raise RuntimeError("CUDA error: out of memory")
    raise KeyError("no such layer")


class Watch:
    """What is reported."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.said: list[str] = []
        self.values: dict[str, Any] = {}
        self.is_stopped = False

    def run(self, jobs: Sequence[Job[Any]], devices: Sequence[str]) -> None:
        run_side_by_side(
            jobs,
            devices,
            on_done=self.done.__setitem__,
            say=self.said.append,
            on_value=self.values.__setitem__,
            is_stopped=lambda: self.is_stopped,
        )


def test_each_device_has_one_job_at_a_time_in_a_process_of_its_own(tmp_path: Path) -> None:
    watch = Watch()
    seen: list[int] = []

    def arguments(name: str) -> tuple[str, str, int]:
        seen.append(len(watch.values))
        return str(tmp_path), name, min(2, len(seen))

    watch.run([Job(name, meet, partial(arguments, name)) for name in "abc"], ["cpu", "meta"])

    assert {device for device, _ in watch.values.values()} == {"cpu", "meta"}
    assert len({pid for _, pid in watch.values.values()} - {os.getpid()}) == 3
    assert watch.done == {"a": 3, "b": 3, "c": 3}
    assert sorted(watch.said) == ["a begins", "b begins", "c begins"]
    assert seen[:2] == [0, 0], "two at the same time"
    assert seen[2] >= 1, "the third knows what an earlier one has found"


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("invalid", InvalidInput, "^spec.baseModel: its weights are damaged$"),
        ("memory", RuntimeError, "^CUDA out of memory: CUDA error: out of memory$"),
        ("kill", TransientError, "^the process that scored the tuned model ended with exit code -9 and no result"),
        ("bug", ReportedBug, r"^this is a bug in Edgetune(?s:.*)KeyError: 'no such layer'$"),
    ],
)
def test_the_first_failure_ends_all(tmp_path: Path, how: str, error: type[Exception], message: str) -> None:
    waiting = Job("base", meet, lambda: (str(tmp_path), "base", 9))
    began = time.monotonic()

    with pytest.raises(error, match=message) as raised:
        Watch().run([waiting, Job("tuned", fail, lambda: (how,))], ["cpu", "cpu"])

    assert is_out_of_gpu_memory(raised.value) == (how == "memory")
    assert time.monotonic() - began < LIMIT, "nobody waits for the other one"


def test_a_stop_ends_all(tmp_path: Path) -> None:
    watch = Watch()
    watch.is_stopped = True

    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM while scoring; the next attempt starts scoring again$"):
        watch.run([Job("base", meet, lambda: (str(tmp_path), "base", 9))], ["cpu"])
