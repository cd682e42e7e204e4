"""Measures each model in a process of its own and watches the process's memory."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgetune_contract.measurement import ModelSpeed
from edgetune_jobs.errors import Interrupted, TransientError
from edgetune_jobs.evaluation.edge import machine
from edgetune_jobs.evaluation.edge.process import REQUEST, RESULT, MeasurementRequest, MeasurementResult

_POLL_SECONDS = 0.02
# The rest of the free memory is for the stage itself.
_SHARE_OF_FREE_MEMORY = 0.9
_STANDARD_ERROR = 2
# Killed by the kernel or another process.
_KILLED = -9


class OutOfMemory(Exception):
    """The machine or the container has too little memory for a model. The message has the figures."""


class CannotRun(RuntimeError):
    """A runtime does not load or run a model. The message has the runtime's."""


class CannotStart(CannotRun):
    """A runtime does not start on this machine, whatever the model: it lacks a library, or the CPU an instruction."""


@dataclass(frozen=True)
class _Ending:
    """How a process ended."""

    exit_code: int
    peak_bytes: int
    """Largest resident set that was observed."""

    stopped: bool
    """Whether it was stopped because of its memory."""


def measure(
    request: MeasurementRequest,
    scratch: Path,
    stop: threading.Event,
    memory: int | None,
    free_bytes: Callable[[], int | None] = machine.free_bytes,
) -> ModelSpeed:
    """Run a model in a process of its own.

    Args:
        request: the measurement.
        scratch: folder for temporary files.
        stop: interrupts the measurement when set.
        memory: limit on the process's resident set in bytes; the process is stopped if it exceeds it.
        free_bytes: returns the free memory of this machine in bytes; None if it is unknown.

    Raises:
        OutOfMemory: the process used the free memory of this machine, which is less than the limit.
        TransientError: the process was killed from outside.
        Interrupted: `stop` was set.
        CannotRun: the process failed; its error is in the log too. CannotStart: already before it loaded the model.
    """
    free = free_bytes()
    bound = None if free is None else int(free * _SHARE_OF_FREE_MEMORY)
    limit = min((each for each in (memory, bound) if each is not None), default=None)
    result_file = scratch / f"{request.folder.name}-result.json"
    result_file.unlink(missing_ok=True)
    ending = _run(request, scratch / f"{request.folder.name}-request.json", result_file, stop, limit)
    result = RESULT.validate_json(result_file.read_bytes()) if result_file.is_file() else None
    over_memory = memory is not None and max(ending.peak_bytes, result.peak_bytes if result else 0) > memory
    if ending.stopped and not over_memory:
        raise OutOfMemory(
            f"its process was stopped at {ending.peak_bytes:,} bytes of memory: only {free or 0:,} bytes were free"
        )
    if not ending.stopped:
        _check_exit(request, ending.exit_code, result)
    return _speed(request, result, ending, over_memory)


def _run(
    request: MeasurementRequest, request_file: Path, result_file: Path, stop: threading.Event, limit: int | None
) -> _Ending:
    request_file.write_bytes(REQUEST.dump_json(request))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(request.threads),
        "CUDA_VISIBLE_DEVICES": "",  # measure the CPU, also on a machine with a GPU
    }
    command = [sys.executable, "-P", "-m", "edgetune_jobs.evaluation.edge.process", str(request_file), str(result_file)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=_STANDARD_ERROR) as process:
        try:
            return _watch(process, stop, limit)
        finally:
            process.kill()


def _watch(process: subprocess.Popen[bytes], stop: threading.Event, limit: int | None) -> _Ending:
    """Wait for the end of a process; stop it if it exceeds its memory limit."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, machine.resident_bytes(process.pid))
        if limit is not None and peak > limit:
            process.kill()
            return _Ending(process.wait(), peak, stopped=True)
        if stop.is_set():
            raise Interrupted("stopped by SIGTERM while measuring; the next attempt starts the evaluation again")
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
    return _Ending(process.returncode, peak, stopped=False)


def _check_exit(request: MeasurementRequest, exit_code: int, result: MeasurementResult | None) -> None:
    if exit_code == _KILLED:
        raise TransientError(
            f"the process that measured {request.folder.name} was killed, probably because the container ran out of "
            "memory: give the stage evaluate more memory in the profile"
        )
    if exit_code == 0:
        return
    if exit_code == -signal.SIGILL:
        raise CannotStart("the CPU of this machine lacks an instruction that it was built for")
    ending = f"its process ended with exit code {exit_code}; the log has its last words"
    if result is None:
        raise CannotStart(ending)
    raise CannotRun(result.problem or ending)


def _speed(
    request: MeasurementRequest, result: MeasurementResult | None, ending: _Ending, over_memory: bool
) -> ModelSpeed:
    peak = max(ending.peak_bytes, result.peak_bytes if result else 0)
    timing = result.timing if result else None
    return ModelSpeed(
        runtime=result.runtime if result else request.runtime.value,
        prompt_tokens_per_second=round(len(request.prompt) / timing.first_token, 1) if timing else None,
        generation_tokens_per_second=round(1 / timing.further_token, 2) if timing else None,
        time_to_first_token_seconds=round(timing.first_token, 4) if timing else None,
        peak_memory_bytes=peak,
        baseline_memory_bytes=result.baseline_bytes if result else None,
        over_memory=over_memory,
    )
