"""Runs steps one after the other: each within its own time, and with its figures on disk as soon as it ends."""

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.gpu_check.inputs import Inputs

Figures = dict[str, Any]
"""Figures of a step by name, as JSON."""

_LONGEST_ERROR = 500


@dataclass(frozen=True)
class Step:
    """One thing to measure."""

    name: str
    seconds: float
    """The step is stopped after this time."""

    work: "Callable[[Inputs], Figures]"


@dataclass(frozen=True)
class Outcome:
    """One line of results.jsonl."""

    step: str
    status: str
    """ok, failed, or left out: no time was left."""

    seconds: float
    figures: Mapping[str, Any]
    error: str = ""


class OutOfTime(Exception):
    """A step took longer than it may."""


def read_results(results: Path) -> list[Outcome]:
    """The outcomes in a results.jsonl, the newest of each step; none if there is no such file."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    newest = {}
    for line in lines:
        fields = json.loads(line)
        del fields["at"]
        newest[fields["step"]] = Outcome(**fields)
    return list(newest.values())


def run_steps(steps: Sequence[Step], inputs: "Inputs", results: Path, seconds: float) -> None:
    """Run steps in their order, and append a line to `results` as each ends.

    A step that fails does not keep the others from running. One for which no time is left is not begun.

    Args:
        steps: the most important first.
        inputs: of all steps.
        results: results.jsonl.
        seconds: for all steps together.
    """
    began = time.monotonic()
    with results.open("a", encoding="utf-8") as file:
        for step in steps:
            left = seconds - (time.monotonic() - began)
            outcome = _run(step, inputs, min(step.seconds, left)) if left > 0 else Outcome(step.name, "left out", 0, {})
            inputs.figures[step.name] = outcome.figures
            line = {"at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", **outcome.__dict__}
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(f"{step.name}: {outcome.status} {outcome.error or json.dumps(outcome.figures)}", flush=True)


def _run(step: Step, inputs: "Inputs", seconds: float) -> Outcome:
    from edgetune_jobs.models.loading import free_memory

    inputs.begin()
    began = time.monotonic()
    try:
        with _limited(seconds):
            figures = step.work(inputs)
        outcome = Outcome(step.name, "ok", round(time.monotonic() - began, 2), figures)
    except Exception as error:  # noqa: BLE001 - whatever breaks on a GPU is a finding, and the other steps still run
        traceback.print_exception(error)
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_ERROR]
        spent = round(time.monotonic() - began, 2)
        outcome = Outcome(step.name, "failed", spent, {}, f"{text} ({Path(where.filename).name}:{where.lineno})")
    # Not within the except block: the error's traceback holds the tensors of the step.
    free_memory()
    return outcome


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTime(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
