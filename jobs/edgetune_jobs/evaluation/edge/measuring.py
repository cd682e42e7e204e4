"""Measures the speed and memory of each model in a process of its own."""

import threading
from collections.abc import Callable
from pathlib import Path

from edgetune_contract.results.measurement import ModelSpeed
from edgetune_jobs.evaluation.edge import machine
from edgetune_jobs.evaluation.edge.child_process import Child
from edgetune_jobs.evaluation.edge.process import REQUEST, RESULT, MeasurementRequest, MeasurementResult

_MODULE = "edgetune_jobs.evaluation.edge.process"


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
    child = Child(_MODULE, request.folder.name, request.threads, scratch)
    ending = child.run(REQUEST.dump_json(request), stop, memory=memory, free_bytes=free_bytes)
    result = RESULT.validate_json(child.result_file.read_bytes()) if child.result_file.is_file() else None
    if not ending.stopped:
        child.check_exit(ending, result is not None, result.problem if result else "")
    peak = max(ending.peak_bytes, result.peak_bytes if result else 0)
    return _speed(request, result, peak, over_memory=memory is not None and peak > memory)


def _speed(request: MeasurementRequest, result: MeasurementResult | None, peak: int, over_memory: bool) -> ModelSpeed:
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
