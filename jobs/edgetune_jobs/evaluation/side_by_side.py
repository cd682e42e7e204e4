"""Scores several models at the same time, each in a process of its own on a device of its own.

Processes and not threads: between two kernels, generating a token is Python's work, and the libraries change global
state while they load a model.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from edgetune_jobs.errors import Interrupted, ReportedBug, StageError, TransientError, is_out_of_gpu_memory
from edgetune_jobs.models.libraries import end_with

Value = TypeVar("Value")

_LOOK_SECONDS = 0.1
_LAST_WORDS_SECONDS = 10.0


class Report:
    """Progress of one process, as messages to the stage's."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    def update(self, done: int, total: int, unit: str, **_: float) -> None:  # noqa: ARG002 - of a stage's progress
        """Report how many units are done."""
        self._connection.send(("done", done))

    def say(self, message: str) -> None:
        """Report what starts now."""
        self._connection.send(("say", message))


@dataclass(frozen=True)
class Job(Generic[Value]):
    """The work for one model."""

    name: str
    """Of the model."""

    function: Callable[..., Value]
    """Called with a Report, a device, and the arguments; a function of a module, which the process imports."""

    arguments: Callable[[], Sequence[Any]]
    """Made when the job starts: what earlier ones have found may be among them."""


@dataclass
class _Running:
    job: Job[Any]
    device: str
    process: SpawnProcess
    connection: "Connection"


def run_side_by_side(
    jobs: Sequence[Job[Value]],
    devices: Sequence[str],
    *,
    on_done: Callable[[str, int], None],
    say: Callable[[str], None],
    on_value: Callable[[str, Value], None],
    is_stopped: Callable[[], bool],
) -> None:
    """Run jobs on devices, each of which has one at a time, in their order. The first failure ends all.

    Args:
        jobs: what to do.
        devices: names for torch.device.
        on_done: called with a job's name and its units that are done.
        say: called with what a job starts.
        on_value: called with a job's name and value, as soon as it has one.
        is_stopped: whether to stop.

    Raises:
        StageError: the error of the job that failed first; TransientError if its process was killed.
        ReportedBug: it was no StageError.
        RuntimeError: out of GPU memory.
        Interrupted: `is_stopped` was true.
    """
    waiting, free, running = list(jobs), list(devices), list[_Running]()
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(waiting.pop(0), free.pop(0)))
            ready = wait([each.connection for each in running], timeout=_LOOK_SECONDS)
            for each in [each for each in running if each.connection in ready]:
                kind, value = _receive(each)
                if kind == "done":
                    on_done(each.job.name, value)
                elif kind == "say":
                    say(value)
                else:
                    on_value(each.job.name, value)
                    each.process.join(_LAST_WORDS_SECONDS)
                    running.remove(each)
                    free.append(each.device)
            if is_stopped():
                raise Interrupted("stopped by SIGTERM while scoring; the next attempt starts scoring again")
    finally:
        for each in running:
            each.process.kill()
            each.process.join()


def _start(job: Job[Any], device: str) -> _Running:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, os.getpid(), job.function, device, job.arguments())
    process = context.Process(target=_work, args=arguments, name=f"scoring {job.name}", daemon=True)
    process.start()
    theirs.close()
    return _Running(job, device, process, ours)


def _receive(running: _Running) -> tuple[str, Any]:
    """The next message of a process.

    Raises:
        Exception: that with which it has failed.
    """
    try:
        kind, value = running.connection.recv()
    except (EOFError, OSError) as error:
        running.process.join(_LAST_WORDS_SECONDS)
        raise TransientError(
            f"the process that scored the {running.job.name} model ended with exit code {running.process.exitcode} and "
            "no result, probably because the container ran out of memory: give the stage evaluate more memory in the "
            "profile"
        ) from error
    if kind == "error":
        error_class, text = value
        raise error_class(text)
    return kind, value


def _work(
    connection: "Connection", parent: int, function: Callable[..., Any], device: str, arguments: Sequence[Any]
) -> None:
    """What the process does."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the stage's process, which ends this one
    message: tuple[str, Any]
    try:
        message = ("value", function(Report(connection), device, *arguments))
    except Exception as error:  # noqa: BLE001 - the other process raises it
        message = ("error", _portable(error))
    connection.send(message)


def _portable(error: Exception) -> tuple[type[Exception], str]:
    """Class and message of the error that the stage's process raises."""
    if isinstance(error, StageError):
        return type(error), str(error)
    if is_out_of_gpu_memory(error):
        return RuntimeError, f"CUDA out of memory: {error}"
    lines = "".join(traceback.format_exception(error)).rstrip()
    return ReportedBug, f"this is a bug in Edgetune; report it with this traceback:\n{lines}"
