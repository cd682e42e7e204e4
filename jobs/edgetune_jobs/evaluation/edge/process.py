"""`python -m edgetune_jobs.evaluation.edge.process REQUEST RESULT`: run one model and measure it; a process of its own.

Both are JSON files. RESULT is written twice: when the libraries are there, and
in the end.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from edgetune_jobs.evaluation.edge.runtimes import LlamaCppRunner, Runner, Runtime, TransformersRunner
from edgetune_jobs.models import loading

REPEATS = 3
# A repeat is not begun after this time, so that a slow model on few cores does not take an hour.
_ENOUGH_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class MeasurementRequest:
    """What to measure."""

    runtime: Runtime
    folder: Path
    """The model."""

    dtype: str
    """transformers: torch's name of the dtype of the weights, or AS_STORED."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""

    new_tokens: int
    """Tokens to generate, at least two."""

    threads: int
    parent: int
    """Process that asks: without it, this one ends."""


@dataclass(frozen=True)
class Timing:
    """Medians over the repeats, in seconds."""

    first_token: float
    """From the prompt to the first token."""

    further_token: float
    """Between two tokens after the first."""


@dataclass(frozen=True)
class MeasurementResult:
    """What was found."""

    runtime: str
    """With its version."""

    baseline_bytes: int
    """Resident set before the model was loaded."""

    peak_bytes: int
    """Largest resident set."""

    timing: Timing | None = None
    """None as long as the model has not run."""


REQUEST = TypeAdapter(MeasurementRequest)
RESULT = TypeAdapter(MeasurementResult)


def time_tokens(start: Callable[[], Iterator[int]], new_tokens: int, clock: Callable[[], float]) -> Timing:
    """Let a prompt be answered a few times with `new_tokens` tokens and take medians, after a warm-up of two tokens."""
    warm_up = start()
    next(warm_up)
    next(warm_up)
    first: list[float] = []
    further: list[float] = []
    began = clock()
    while not first or (len(first) < REPEATS and clock() - began < _ENOUGH_SECONDS):
        tokens, asked = start(), clock()
        next(tokens)
        answered = clock()
        for _ in range(new_tokens - 1):
            next(tokens)
        first.append(answered - asked)
        further.append((clock() - answered) / (new_tokens - 1))
    return Timing(median(first), median(further))


def main() -> None:
    """Measure what the command line names."""
    request_file, result_file = map(Path, sys.argv[1:])
    request = REQUEST.validate_json(request_file.read_bytes())
    _end_with(request.parent)
    _keep_to_cores(request.threads)
    runner = _open_runner(request)
    baseline = loading.peak_resident_bytes()
    _write(result_file, MeasurementResult(runner.name, baseline, baseline))
    runner.load(request.folder, len(request.prompt) + request.new_tokens)
    timing = time_tokens(lambda: runner.tokens(request.prompt), request.new_tokens, perf_counter)
    _write(result_file, MeasurementResult(runner.name, baseline, loading.peak_resident_bytes(), timing))


def _open_runner(request: MeasurementRequest) -> Runner:
    if request.runtime is Runtime.LLAMA_CPP:
        return LlamaCppRunner(request.threads)
    return TransformersRunner(request.dtype)


def _end_with(parent: int) -> None:
    """Be killed when the parent is: nobody would wait for the result any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that asked has ended")


def _keep_to_cores(count: int) -> None:
    """Run on so many cores only. Call it before any thread is started."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # forbidden here: the number of threads is a limit too
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def _write(file: Path, result: MeasurementResult) -> None:
    """All of it or nothing: the reader may look at any time."""
    part = file.with_suffix(".part")
    part.write_bytes(RESULT.dump_json(result))
    part.replace(file)


if __name__ == "__main__":
    main()
