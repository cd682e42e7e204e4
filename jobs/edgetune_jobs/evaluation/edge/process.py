"""`python -m edgetune_jobs.evaluation.edge.process REQUEST RESULT`: the process that measures one model.

Both are JSON files. RESULT is written twice: once the libraries are loaded, and at the end.
"""

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from edgetune_jobs.evaluation.edge.runtimes import LlamaCppRunner, Runner, Runtime, TransformersRunner
from edgetune_jobs.models import loading
from edgetune_jobs.models.libraries import end_with

REPEATS = 3
# No repeat starts after this time, so that a slow model on few cores does not take an hour.
_ENOUGH_SECONDS = 20.0


@dataclass(frozen=True)
class MeasurementRequest:
    """What to measure."""

    runtime: Runtime
    folder: Path
    """The model's folder."""

    dtype: str
    """For transformers: torch's name for the dtype of the weights, or AS_STORED."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""

    new_tokens: int
    """Tokens to generate, at least two."""

    threads: int
    parent: int
    """Process ID of the parent; when it ends, this process ends too."""

    is_timed: bool = True
    """Whether to time the tokens; otherwise the model is loaded and asked for `new_tokens` once."""


@dataclass(frozen=True)
class Timing:
    """Medians over the repeats, in seconds."""

    first_token: float
    """From the prompt to the first token."""

    further_token: float
    """Between two tokens after the first."""


@dataclass(frozen=True)
class MeasurementResult:
    """The measured figures."""

    runtime: str
    """The runtime with its version."""

    baseline_bytes: int
    """Resident set before the model was loaded."""

    peak_bytes: int
    """Largest resident set."""

    timing: Timing | None = None
    """None before the model has run, and if it is not timed."""

    problem: str = ""
    """Message of the runtime if it does not load or run the model."""


REQUEST = TypeAdapter(MeasurementRequest)
RESULT = TypeAdapter(MeasurementResult)


def time_tokens(start: Callable[[], Iterator[int]], new_tokens: int, clock: Callable[[], float]) -> Timing:
    """Medians over a few answers of `new_tokens` tokens to a prompt, after a warm-up of two tokens."""
    warm_up = start()
    next(warm_up)
    next(warm_up)
    first: list[float] = []
    further: list[float] = []
    began = clock()
    while not first or (len(first) < REPEATS and clock() - began < _ENOUGH_SECONDS):
        tokens, started = start(), clock()
        next(tokens)
        first_at = clock()
        for _ in range(new_tokens - 1):
            next(tokens)
        first.append(first_at - started)
        further.append((clock() - first_at) / (new_tokens - 1))
    return Timing(median(first), median(further))


def main() -> None:
    """Run the measurement in the request file."""
    request_file, result_file = map(Path, sys.argv[1:])
    request = REQUEST.validate_json(request_file.read_bytes())
    end_with(request.parent)
    keep_to_cores(request.threads)
    runner = _open_runner(request)
    baseline = loading.peak_resident_bytes()
    _write(result_file, MeasurementResult(runner.name, baseline, baseline))
    try:
        runner.load(request.folder, len(request.prompt) + request.new_tokens)
        if not request.is_timed:
            deque(islice(runner.tokens(request.prompt), request.new_tokens), maxlen=0)
            return
    except Exception as error:
        problem = str(error) or type(error).__name__
        _write(result_file, MeasurementResult(runner.name, baseline, baseline, problem=problem))
        raise
    timing = time_tokens(lambda: runner.tokens(request.prompt), request.new_tokens, perf_counter)
    _write(result_file, MeasurementResult(runner.name, baseline, loading.peak_resident_bytes(), timing))


def _open_runner(request: MeasurementRequest) -> Runner:
    if request.runtime is Runtime.LLAMA_CPP:
        return LlamaCppRunner(request.threads)
    return TransformersRunner(request.dtype)


def keep_to_cores(count: int) -> None:
    """Run on this number of cores only. Call it before any thread starts."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # not permitted: the number of threads is a limit too
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def _write(file: Path, result: MeasurementResult) -> None:
    """Write atomically: the reader may read at any time."""
    part = file.with_suffix(".part")
    part.write_bytes(RESULT.dump_json(result))
    part.replace(file)


if __name__ == "__main__":
    main()
